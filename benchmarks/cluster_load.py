"""Streams through the Gateway while something happens to the mesh, and what their clients saw of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cluster_mesh import Release
from follower import Follower
from sighting import Ask, Broke, Ended, Event, GaveUp, Got

STREAMS = 8
TOKENS = 120
PATIENCE_S = 90.0
SEEDS = 8  # different texts; each is asked for again and again


@dataclass
class Seen:
    """What clients saw. ``gaps``: of each text, the longest time between two tokens, seconds."""

    texts: int = 0
    changed: int = 0  # not the target's own
    failed: int = 0  # never ended
    breaks: list[str] = field(default_factory=list)  # connections that ended before their text, by why
    gaps: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        """For people."""
        worst = max(self.gaps, default=0.0)
        return (
            f"{self.texts} texts, {self.changed} changed, {self.failed} failed, {len(self.breaks)} breaks, "
            f"longest gap {worst:.1f} s"
        )


class Load:
    """Texts of one family, over gRPC and REST in turn."""

    def __init__(self, release: Release, family: str) -> None:
        self._release, self._family = release, family
        self._own: dict[int, tuple[int, ...]] = {}  # seed: the target's own tokens

    async def learn(self) -> None:
        """Ask the target alone for each text."""
        async with self._follower() as (follower, events):
            asks = [self._ask(f"own-{seed}-{time.time_ns()}", seed, alone=True) for seed in range(SEEDS)]
            await asyncio.gather(*(follower.follow(ask, PATIENCE_S) for ask in asks))
            for ask in asks:
                self._own[ask.seed] = tokens_of(events, ask.name)
                assert len(self._own[ask.seed]) == TOKENS, f"the target alone gave {len(self._own[ask.seed])} tokens"

    async def during(self, happening: Callable[[], Awaitable[None]], *, streams: int = STREAMS) -> Seen:
        """Stream as long as something happens, and see what comes of it."""
        numbers = itertools.count()
        over = asyncio.Event()
        asks: list[Ask] = []

        async def client(follower: Follower) -> None:
            while not over.is_set():
                number = next(numbers)
                name = f"load-{number}-{time.time_ns()}"
                ask = self._ask(name, number % SEEDS, rest=bool(number % 2))
                asks.append(ask)
                await follower.follow(ask, PATIENCE_S)

        async with self._follower() as (follower, events):
            clients = [asyncio.create_task(client(follower)) for _ in range(streams)]
            try:
                await asyncio.sleep(1)
                await happening()
                await asyncio.sleep(1)
            finally:
                over.set()
                await asyncio.gather(*clients)
            return self._judge(asks, events)

    def _follower(self) -> _Followed:
        return _Followed(self._release, self._family)

    def _ask(self, name: str, seed: int, *, alone: bool = False, rest: bool = False) -> Ask:
        return Ask(
            name=name,
            prompt=tuple(range(65 + seed, 90)),
            max_tokens=TOKENS,
            seed=seed,
            temperature=0.8,
            chain=("target",) if alone else (),
            interface="rest" if rest else "grpc",
        )

    def _judge(self, asks: list[Ask], events: list[Event]) -> Seen:
        seen = Seen()
        for ask in asks:
            seen.texts += 1
            mine = [event for event in events if event.sequence == ask.name]
            seen.breaks += [f"{event.code} {event.why}" for event in mine if isinstance(event, Broke)]
            if any(isinstance(event, GaveUp) for event in mine) or not any(isinstance(event, Ended) for event in mine):
                seen.failed += 1
            elif tokens_of(mine, ask.name) != self._own[ask.seed]:
                seen.changed += 1
            times = [event.at for event in mine if isinstance(event, Got)]
            seen.gaps.append(max((b - a for a, b in itertools.pairwise(times)), default=0.0))
        return seen


class _Followed:
    """A follower through the Gateway, and the events it notes."""

    def __init__(self, release: Release, family: str) -> None:
        self.events: list[Event] = []
        at = [release.cluster.gateway] * 2
        hosts = (release.grpc_host, release.rest_host)
        self._follower = Follower(at, at, self.events.append, silence=10.0, model=family, hosts=hosts)

    async def __aenter__(self) -> tuple[Follower, list[Event]]:
        return await self._follower.__aenter__(), self.events

    async def __aexit__(self, *of: object) -> None:
        await self._follower.__aexit__(*of)


def tokens_of(events: list[Event], name: str) -> tuple[int, ...]:
    """A text as its client has it: each token once, none missing, none other than before; else no tokens."""
    found: dict[int, int] = {}
    for event in events:
        if isinstance(event, Got) and event.sequence == name:
            for i, token in enumerate(event.tokens, event.offset):
                if found.setdefault(i, token) != token:
                    return ()
    return tuple(found[i] for i in sorted(found)) if sorted(found) == list(range(len(found))) else ()
