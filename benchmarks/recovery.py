"""What a client sees when a part dies: one of two replicas of each level, one of two routers, under 16 streams.

Stub levels (steps of about 1, 2 and 6 ms), two replicas of each, two routers, Valkey, 16 clients that ask for one text
after the other; a client whose stream breaks attaches at the other router. Every few seconds a part is killed (kill -9)
and started again, one after the other.

- failed_level: requests, of those that ran while replicas died, whose stream broke or whose text was not exactly what
  the target alone says.
- failed_router: requests, of those that ran while routers died, that lost or repeated a token or did not end. Their
  streams do break (broken_router): the client attaches again.
- gap: of each stream that ran when a part was killed, the longest wait for tokens in the 5 s after that; beside
  it the same without any fault. A stream on the replica that died waits for another one to read its text.
- detect_killed_s, detect_hung_s: the longest time from kill -9 (SIGSTOP) until a router's status says that the replica
  is not there.

Writes results/recovery.json and results/recovery.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

import drawing
import results
from follower import Follower
from replicated import LEVELS, Replicated
from sighting import Ask, Broke, Ended, Event, GaveUp, Got

STEP_MS = {"draft": "1:1,32:2", "mid": "1:2,32:4", "target": "1:6,32:10"}
STREAMS = 16
TEXTS = 16  # different ones
LOOK_S = 5.0  # after a fault
CALM_S = 3.0  # between one part's return and the next one's death
PATIENCE_S = 60.0
POLL_S = 0.02
KILLED_LEVEL = [f"kill {name}" for name in LEVELS]


@dataclass
class Load:
    """16 clients, and all that they saw."""

    follower: Follower
    texts: Sequence[Ask]
    whole: dict[int, tuple[int, ...]] = field(default_factory=dict)  # what the target alone says, by text
    events: list[Event] = field(default_factory=list)
    asks: dict[str, int] = field(default_factory=dict)  # sequence -> text
    stopping: bool = False

    async def learn(self) -> None:
        """The texts of the target alone."""
        for number, text in enumerate(self.texts):
            await self._one(f"alone-{number}", number, ("target",))
            self.whole[number] = tokens(self.of(f"alone-{number}"))
            assert len(self.whole[number]) == text.max_tokens

    async def run(self) -> None:
        """Until told to stop."""
        await asyncio.gather(*(self._client(number) for number in range(STREAMS)))

    async def _client(self, number: int) -> None:
        turn = 0
        while not self.stopping:
            await self._one(f"s{number}-{turn}", (number + turn) % len(self.texts), ())
            turn += 1

    async def _one(self, name: str, number: int, chain: tuple[str, ...]) -> None:
        text = self.texts[number]
        self.asks[name] = number
        ask = Ask(name, text.prompt, text.max_tokens, text.seed, text.temperature, chain=chain)
        await self.follower.follow(ask, PATIENCE_S)

    def of(self, name: str) -> list[Event]:
        """What its client saw."""
        return [event for event in self.events if event.sequence == name]

    def running(self, begin: float, end: float) -> dict[str, list[Event]]:
        """Sequences that ran at some time between these two, and have ended; with all that was seen of each."""
        found: dict[str, list[Event]] = {}
        for event in self.events:
            found.setdefault(event.sequence, []).append(event)
        return {
            name: seen
            for name, seen in found.items()
            if name[0] == "s" and seen[0].at <= end and seen[-1].at >= begin and isinstance(seen[-1], Ended | GaveUp)
        }

    def right(self, name: str, seen: Sequence[Event]) -> bool:
        """Whether it got each token of its text once, and its end."""
        at = 0
        for event in seen:
            if isinstance(event, Got):
                if event.offset != at:
                    return False
                at += len(event.tokens)
        return isinstance(seen[-1], Ended) and tokens(seen) == self.whole[self.asks[name]]


def tokens(seen: Sequence[Event]) -> tuple[int, ...]:
    """All that came, in its order."""
    return tuple(token for event in seen if isinstance(event, Got) for token in event.tokens)


def gaps(load: Load, at: float) -> list[float]:
    """Per stream that ran then: the longest wait for tokens that ended in the ``LOOK_S`` after that."""
    found = []
    for seen in load.running(at, at).values():
        heard = [seen[0].at, *(event.at for event in seen if isinstance(event, Got | Ended))]
        waits = [b - a for a, b in pairwise(heard) if at <= b <= at + LOOK_S]
        found += [max(waits)] if waits else []
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """0 without values."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


async def noticed(mesh: Replicated, part: str, begin: float) -> float:
    """Seconds from ``begin`` until every router's status says that the replica can't be used."""
    address = mesh.levels[part].address
    async with httpx.AsyncClient(timeout=2, trust_env=False) as client:

        async def good(url: str) -> bool:
            status = (await client.get(f"{url}/v1/status")).json()
            replicas = [replica for level in status["levels"] for replica in level["replicas"]]
            return any(replica["address"] == address and replica["state"] == "ready" for replica in replicas)

        async def gone(url: str) -> float:
            while await good(url):  # noqa: ASYNC110  # another process's state
                await asyncio.sleep(POLL_S)
            return time.monotonic() - begin

        async with asyncio.timeout(20):
            return max(await asyncio.gather(*(gone(router.url) for router in mesh.routers.values())))


@dataclass
class Phase:
    """One kind of loss, several times."""

    name: str
    faults: list[float] = field(default_factory=list)  # when
    detected: list[float] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0

    def row(self, load: Load) -> dict[str, Any]:
        """Its numbers."""
        ran = load.running(self.begin, self.end)
        begun = {name: seen for name, seen in ran.items() if seen[0].at >= self.begin}  # each counts once
        broken = [name for name, seen in ran.items() if any(self._broke(event) for event in seen)]
        found = [gap for at in self.faults for gap in gaps(load, at)]
        return {
            "loss": self.name,
            "losses": len(self.faults),
            "requests": len(begun),
            "broken": len(broken),
            "not_right": sum(not load.right(name, seen) for name, seen in begun.items()),
            "gap_p50_s": round(statistics.median(found), 3) if found else 0.0,
            "gap_p99_s": round(quantile(found, 0.99), 3),
            "detect_max_s": round(max(self.detected), 3) if self.detected else None,
        }

    def _broke(self, event: Event) -> bool:
        return isinstance(event, Broke) and self.begin <= event.at <= self.end


async def phase(name: str, lose: Callable[[Phase], Awaitable[None]], times: int) -> Phase:
    """The same loss so many times."""
    made = Phase(name, begin=time.monotonic())
    for _ in range(times):
        await lose(made)
        await asyncio.sleep(CALM_S)
    made.end = time.monotonic()
    print(f"{name}: {times} times in {made.end - made.begin:.0f} s", flush=True)
    return made


def killing(mesh: Replicated, part: str) -> Callable[[Phase], Awaitable[None]]:
    """kill -9, and a start."""

    async def lose(into: Phase) -> None:
        at = time.monotonic()
        into.faults.append(at)
        mesh.child(part).popen.kill()
        if part in mesh.levels:
            into.detected.append(await noticed(mesh, part, at))
        mesh.child(part).popen.wait(10)
        await asyncio.sleep(max(at + LOOK_S - time.monotonic(), 0))
        await mesh.restart(part)

    return lose


def freezing(mesh: Replicated, part: str) -> Callable[[Phase], Awaitable[None]]:
    """SIGSTOP, until it is noticed, and SIGCONT."""

    async def lose(into: Phase) -> None:
        at = time.monotonic()
        into.faults.append(at)
        mesh.child(part).freeze()
        try:
            into.detected.append(await noticed(mesh, part, at))
            await asyncio.sleep(max(at + LOOK_S - time.monotonic(), 0))
        finally:
            mesh.child(part).thaw()

    return lose


def calm(seconds: float) -> Callable[[Phase], Awaitable[None]]:
    """No loss at all."""

    async def lose(into: Phase) -> None:
        into.faults.append(time.monotonic())
        await asyncio.sleep(seconds)

    return lose


def report(load: Load, phases: Sequence[Phase]) -> None:
    """Table, JSON and plot, as far as it has come."""
    rows = [done.row(load) for done in phases]

    def those(*words: str) -> list[dict[str, Any]]:
        return [row for row in rows if all(word in row["loss"] for word in words)]

    levels = [row for row in those("kill") + those("hang") if "router" not in row["loss"]]
    routers = those("kill", "router")
    after_level = [gap for done in phases if done.name in KILLED_LEVEL for at in done.faults for gap in gaps(load, at)]
    after_router = [
        gap for done in phases if done.name == "kill router" for at in done.faults for gap in gaps(load, at)
    ]
    summary = {
        "failed_level": sum(max(row["broken"], row["not_right"]) for row in levels),
        "requests_level": sum(row["requests"] for row in levels),
        "failed_router": sum(row["not_right"] for row in routers),
        "requests_router": sum(row["requests"] for row in routers),
        "broken_router": sum(row["broken"] for row in routers),
        "gap_p50_s": round(quantile(after_level, 0.5), 3),
        "gap_p99_s": round(quantile(after_level, 0.99), 3),
        "gap_router_p50_s": round(quantile(after_router, 0.5), 3),
        "gap_router_p99_s": round(quantile(after_router, 0.99), 3),
        "detect_killed_s": max((row["detect_max_s"] for row in levels if "kill" in row["loss"]), default=0.0),
        "detect_hung_s": max((row["detect_max_s"] for row in those("hang")), default=0.0),
    }
    results.write("recovery", rows, summary)
    bars = {"p50": [row["gap_p50_s"] for row in rows], "p99": [row["gap_p99_s"] for row in rows]}
    title = "Longest wait for a token after a loss, seconds"
    (results.FOLDER / "recovery.svg").write_text(drawing.bars(title, [row["loss"] for row in rows], bars))


async def measure(options: argparse.Namespace, folder: Path) -> None:
    """All of it."""
    dice = random.Random(5)
    texts = [
        Ask("", tuple(dice.choices(range(97, 123), k=64)), dice.randint(80, 160), number, 0.8)
        for number in range(TEXTS)
    ]
    mesh = Replicated(folder, STEP_MS)
    await mesh.start()
    try:
        events: list[Event] = []
        addresses = [router.grpc for router in mesh.routers.values()]
        async with Follower(addresses, [], events.append) as follower:
            load = Load(follower, texts, events=events)
            await load.learn()
            running = asyncio.create_task(load.run())
            phases = [await phase("nothing", calm(LOOK_S), 2)]
            for name in LEVELS:
                phases.append(await phase(f"kill {name}", killing(mesh, f"{name}-0"), options.times))
            for name in LEVELS:
                phases.append(await phase(f"hang {name}", freezing(mesh, f"{name}-1"), max(options.times // 2, 1)))
            phases.append(await phase("kill router", killing(mesh, "router-0"), options.times))
            load.stopping = True
            await running
        report(load, phases)
    finally:
        mesh.stop()


def main() -> None:
    """Run it and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=4, help="each part is killed; half as often frozen")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        asyncio.run(measure(options, Path(folder)))


if __name__ == "__main__":
    main()
