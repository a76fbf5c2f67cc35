"""Two replicas of each of three stub levels, two routers and a Valkey: processes that can be lost and started again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from processes import HOST, START_S, Process, Valkey, answers, until
from stub_mesh import Level, Router

LEVELS = ("draft", "mid", "target")
REPLICAS = 2
ROUTERS = 2
SLOTS = 64
MODEL_LENGTH = 512  # tokens of a sequence, of levels with a model
AGREEMENT = {"draft": 0.6, "mid": 0.8, "target": 1.0}
CHAIN: dict[str, Any] = {"policy": "adaptive", "lookahead": 16, "windows": {"draft": 4, "mid": 6, "target": 8}}


async def direct(_link: str, address: str) -> str:
    """A connection as it is."""
    return address


class Replicated:
    """See the module. ``step_ms`` is the step-time curve of each level.

    Parts are named draft-0 ... target-1, router-0, router-1 and redis. ``via`` gives the address by which a link
    ("router-0>mid-1", "router-1>redis") goes to the address it is given, so that something can be put between.
    ``models``: per level, options of a model's engine, --model DIR first; then these are the levels. ``redis_url``: a
    Redis that somebody else keeps. ``env`` gives what a part has in its environment.
    """

    def __init__(
        self,
        folder: Path,
        step_ms: Mapping[str, str],
        via: Callable[[str, str], Awaitable[str]] = direct,
        env: Callable[[str], Mapping[str, str]] = lambda _name: {},
        models: Mapping[str, Sequence[str]] | None = None,
        redis_url: str = "",
    ) -> None:
        self.folder = folder
        self.redis = Valkey(folder / "valkey", env=env("redis"))
        self.levels: dict[str, Level] = {}
        self.routers: dict[str, Router] = {}
        self._step_ms = step_ms
        self._via = via
        self._env = env
        self._models = models or {}
        self._names = tuple(self._models) or LEVELS
        self._redis_url = redis_url

    async def start(self) -> None:
        """Returns when all parts are ready. Raises AssertionError, with the logs."""
        if not self._redis_url:
            self.redis.start()
        for name in self._names:
            for replica in range(REPLICAS):
                part = f"{name}-{replica}"
                (self.folder / part).mkdir()
                self.levels[part] = self._level(name, part)
                self.levels[part].start(self.folder / part)
        for part in self.levels:
            await self.there(part)
        for number in range(ROUTERS):
            part = f"router-{number}"
            self.routers[part] = await self._router(part)
            self.routers[part].start(wait=False)
        for part in self.routers:
            await self.there(part)

    def _level(self, name: str, part: str) -> Level:
        if name in self._models:
            return Level(name, slots=SLOTS, max_length=MODEL_LENGTH, model=self._models[name], env=self._env(part))
        return Level(name, AGREEMENT[name], self._step_ms[name], slots=4 * SLOTS, env=self._env(part))

    async def _router(self, part: str) -> Router:
        levels: list[dict[str, Any]] = []
        for name in self._names:
            replicas = {other: level for other, level in self.levels.items() if level.name == name}
            addresses = [await self._via(f"{part}>{other}", level.address) for other, level in replicas.items()]
            engine = {"engine": "torch", "model": self._models[name][1]} if name in self._models else {"engine": "stub"}
            levels.append({"name": name, "addresses": addresses, **engine})
        path = self.folder / f"{part}.yaml"
        windows = {name: size for name, size in CHAIN["windows"].items() if name in self._names}
        tokenizer = "target" if self._models else "bytes"
        family = {"name": "test", "tokenizer": tokenizer, "levels": levels, "chain": {**CHAIN, "windows": windows}}
        path.write_text(json.dumps(family))
        url = self._redis_url or "redis://" + await self._via(f"{part}>redis", f"{HOST}:{self.redis.port}")
        return Router(path, url, self.folder / f"{part}.log", self._env(part))

    def stop(self) -> None:
        """End all of them at once."""
        parts: list[Router | Level] = [*self.routers.values(), *self.levels.values()]
        for part in parts:
            if part.child is not None:
                part.child.kill()
        if self.redis.process is not None:
            self.redis.process.kill()

    def child(self, part: str) -> Process:
        """Its process."""
        found = self.redis.process if part == "redis" else (self.levels.get(part) or self.routers[part]).child
        assert found is not None
        return found

    async def restart(self, part: str) -> None:
        """Start a part that has ended. Returns when it is ready. Raises AssertionError, with its log."""
        if part == "redis":
            self.redis.start()
        elif part in self.levels:
            self.levels[part].start(self.folder / part)
            await self.there(part)
        else:
            self.routers[part].start(wait=False)
            await self.there(part)

    async def there(self, part: str) -> None:
        """Returns when a level or router is ready. Raises AssertionError, with its log."""
        if part in self.levels:
            ready = self.levels[part].ready
        else:
            url = self.routers[part].url

            def ready() -> bool:
                return answers(f"{url}/readyz")

        child = self.child(part)
        if not await asyncio.to_thread(until, lambda: ready() or not child.alive, START_S) or not child.alive:
            raise AssertionError(f"{part} {'is not ready' if child.alive else 'died'}\n{child.log.read_text()[-4000:]}")
