"""The meshes that episodes run on: what levels they have, what Redis, and what their target says."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from faults import LEVELS, World
from language import Expected, expected
from redis_sets import Cluster, RedisSet, Sentinels

from follower import Follower
from sighting import Ask, Ended, Event, Got

TINY = Path(__file__).with_name("tiny_models.py")
ALONE = "alone-"  # what the names of sequences begin with that say what the target alone does
ALONE_S = 60.0
KEY_BYTES = 32


def redis_set(world: World, folder: Path) -> RedisSet | None:
    """Its Redis, where that is more than one server. Blocking."""
    kinds: dict[str, Callable[[Path], RedisSet]] = {"sentinel": Sentinels, "cluster": Cluster}
    return kinds[world](folder) if world in kinds else None


def models(world: World, folder: Path, kv_url: str) -> Mapping[str, Sequence[str]]:
    """Options of the levels that have a model: exact steps, KV checkpoints of everything. Writes the weights."""
    if world != "models":
        return {}
    weights, key = folder / "weights", folder / "kv.key"
    subprocess.run([sys.executable, TINY, weights], check=True, capture_output=True)
    key.write_bytes(bytes(range(KEY_BYTES)))
    key.chmod(0o600)
    options = ["--engine", "torch", "--exactness", "bitwise", "--threads", "1"]
    options += ["--kv-checkpoints", "all", "--kv-url", kv_url, "--kv-key-file", str(key)]
    return {name: ["--model", str(weights / name), *options] for name in LEVELS[world]}


class Truth:
    """What the target alone says: computed for stubs; asked of the mesh, while nothing is wrong, for models."""

    def __init__(self, world: World) -> None:
        self._asked = world == "models"
        self._known: dict[str, Expected] = {}

    def __call__(self, ask: Ask) -> Expected:
        return self._known[ask.name] if self._asked else expected(ask)

    async def learn(self, asks: Sequence[Ask], over_grpc: Sequence[str], over_rest: Sequence[str]) -> None:
        """Ask the target alone, in lock-step. Raises AssertionError when it does not answer to the end."""
        if not self._asked:
            return
        events: list[Event] = []
        alone = [
            dataclasses.replace(ask, name=ALONE + ask.name, chain=("target",), mode="lockstep", interface="grpc")
            for ask in asks
        ]
        async with Follower(over_grpc, over_rest, events.append) as follower:
            await asyncio.gather(*(follower.follow(ask, ALONE_S) for ask in alone))
        for ask in asks:
            seen = [event for event in events if event.sequence == ALONE + ask.name]
            (end,) = [event for event in seen if isinstance(event, Ended)]
            got = [event for event in seen if isinstance(event, Got)]
            tokens = tuple(token for event in got for token in event.tokens)
            assert end.tokens == len(tokens), (ask, end)
            self._known[ask.name] = Expected(tokens, "".join(event.text for event in got) + end.text, end.finish)
