"""One episode: requests run, one fault or several happen to them, everything must come out right."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from changes import Commit
from chaos_mesh import ChaosMesh
from faults import TRIGGER_S, Fault, Plan
from history import Problem, judge, judge_late

from follower import Follower
from sighting import Broke, Ended, Event, GaveUp, Got, Opened

TOGETHER = 32  # requests that run at once
PATIENCE_S = 60.0  # of a client
BACK_S = 2.0  # until a router has found a Redis that is back
FREE_S = 10.0  # until nothing is left of ended sequences
TICK_S = 0.1
STILL_S = 3.0  # a tick that takes longer: this process itself, which is the network and all clients, stood still


@dataclass(frozen=True)
class Blow:
    """A fault as it was: whether its event came, from when to when it lasted."""

    cued: bool
    struck: float
    mended: float


@dataclass
class Outcome:
    """What came of a plan."""

    plan: Plan
    faulted: int  # sequences that ran while a fault did
    broken: int  # connections that broke
    gap_s: float  # the longest a client waited between two tokens
    seconds: float
    still_s: float  # the longest time for which the test itself did nothing
    cued: tuple[bool, ...]  # of each fault: whether it came by its event
    problems: list[Problem]
    events: list[Event] = field(repr=False)
    commits: list[Commit] = field(repr=False)

    def count(self, kind: str) -> int:
        """Sequences with such a problem."""
        return len({problem.sequence for problem in self.problems if problem.kind == kind})


async def run(mesh: ChaosMesh, plan: Plan, together: int = TOGETHER) -> Outcome:
    """Do it."""
    begin = time.monotonic()
    problems = late(mesh)
    await mesh.truth.learn(plan.asks, *mesh.entrances)
    mesh.asks |= {ask.name: ask for ask in plan.asks}
    events: list[Event] = []
    gate = asyncio.Semaphore(together)
    async with Follower(*mesh.entrances, events.append) as follower:
        soon = asyncio.Event()  # half of the requests have ended: whatever is to hit some must come now
        ended = itertools.count(1)

        async def one(number: int) -> None:
            async with gate:
                await follower.follow(plan.asks[number], PATIENCE_S)
            if next(ended) >= len(plan.asks) // 2:
                soon.set()

        over = asyncio.Event()
        watch = asyncio.create_task(_still(over))
        async with asyncio.TaskGroup() as group:
            faults = group.create_task(_faults(mesh, plan, soon))
            for number in range(len(plan.asks)):
                group.create_task(one(number))
    over.set()
    await watch
    blows = faults.result()
    problems += await _left(mesh, plan, _unkept(plan.faults, blows, events))
    problems += [Problem("traced", part, what) for part, what in mesh.tracebacks()]
    commits = mesh.commits()
    problems += judge(plan.asks, events, commits, mesh.truth)
    spans = _spans(events)
    return Outcome(
        plan=plan,
        faulted=sum(
            any(first < blow.mended and last > blow.struck for blow in blows) for first, last, _ in spans.values()
        ),
        broken=sum(isinstance(event, Broke) for event in events),
        gap_s=max((gap for *_, gap in spans.values()), default=0.0),
        seconds=time.monotonic() - begin,
        still_s=watch.result(),
        cued=tuple(blow.cued for blow in blows),
        problems=problems,
        events=events,
        commits=commits,
    )


async def _still(over: asyncio.Event) -> float:
    """The longest time, until it is over, in which this process did not get to run."""
    longest, last = 0.0, time.monotonic()
    while not over.is_set():  # the time between is what is measured
        await asyncio.sleep(TICK_S)
        now = time.monotonic()
        longest, last = max(longest, now - last - TICK_S), now
    return longest


def late(mesh: ChaosMesh) -> list[Problem]:
    """What was done to the records of earlier episodes after their end, by an owner that woke up, for example."""
    return judge_late(mesh.asks, mesh.commits(), mesh.truth)


async def _faults(mesh: ChaosMesh, plan: Plan, soon: asyncio.Event) -> list[Blow]:
    """The first, and when it has happened the others, which wait for their own events."""
    first, *others = plan.faults
    struck = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        blows = [group.create_task(_fault(mesh, first, soon, struck))]
        await struck.wait()
        blows += [group.create_task(_fault(mesh, other, soon, asyncio.Event())) for other in others]
    return [blow.result() for blow in blows]


async def _fault(mesh: ChaosMesh, fault: Fault, soon: asyncio.Event, happened: asyncio.Event) -> Blow:
    cued, struck = await mesh.strike(fault, TRIGGER_S, soon)
    happened.set()
    await asyncio.sleep(fault.seconds)  # so long it lasts
    await mesh.mend(fault)
    return Blow(cued, struck, time.monotonic())


def _unkept(faults: Sequence[Fault], blows: Sequence[Blow], events: Sequence[Event]) -> set[str]:
    """The sequences whose end came while Redis was away, for then routers let ends through that are not written yet."""
    away = [
        blow
        for fault, blow in zip(faults, blows, strict=True)
        if fault.where.startswith("redis") and fault.kind not in ("clock", "latency", "slow")
    ]
    ends = [event for event in events if isinstance(event, Ended)]
    return {end.sequence for end in ends if any(one.struck < end.at < one.mended + BACK_S for one in away)}


async def _left(mesh: ChaosMesh, plan: Plan, unkept: set[str]) -> list[Problem]:
    """What is still not free after ``FREE_S``."""
    limit = time.monotonic() + FREE_S
    names = [ask.name for ask in plan.asks]
    while left := await asyncio.to_thread(mesh.leftovers, names, False, unkept):
        if time.monotonic() > limit:
            return [Problem("leaked", where, what) for what, where in left.items()]
        await asyncio.sleep(0.1)  # before another look
    return []


def _spans(events: Sequence[Event]) -> dict[str, tuple[float, float, float]]:
    """Per sequence: when it began, when the last thing happened, the longest wait for a token."""
    spans: dict[str, tuple[float, float, float]] = {}
    heard: dict[str, float] = {}
    for event in events:
        first, _, gap = spans.get(event.sequence, (event.at, event.at, 0.0))
        if isinstance(event, Got | GaveUp):
            gap = max(gap, event.at - heard.get(event.sequence, event.at))
            heard[event.sequence] = event.at
        elif isinstance(event, Opened):
            heard.setdefault(event.sequence, event.at)
        spans[event.sequence] = first, event.at, gap
    return spans


def story(outcome: Outcome) -> str:
    """All that is known of the sequences with a problem, for people."""
    lines = [f"episode {outcome.plan.seed} of {outcome.plan.world}: {outcome.plan.name}"]
    for fault, cued in zip(outcome.plan.faults, outcome.cued, strict=True):
        lines.append(f"{fault}; its event {'came' if cued else 'did not come'}")
    lines += [f"{problem.kind} {problem.sequence}: {problem.what}" for problem in outcome.problems]
    begin = min((event.at for event in outcome.events), default=0.0)
    for name in list(dict.fromkeys(problem.sequence for problem in outcome.problems))[:3]:
        lines.append(f"\n{next((ask for ask in outcome.plan.asks if ask.name == name), name)}")
        lines += [_line(event, begin) for event in outcome.events if event.sequence == name]
        lines += [_record(commit) for commit in outcome.commits if commit.sequence == name]
    return "\n".join(lines)


def _record(commit: Commit) -> str:
    state = f"epoch {commit.epoch} round {commit.round} owner {commit.owner[:6] or '-'} finish {commit.finish}"
    return f"  record: {state}, {len(commit.tokens)} tokens {bytes(commit.tokens)[-20:]!r}"


def _line(event: Event, begin: float) -> str:
    parts = [f"{key}={value!r}" for key, value in vars(event).items() if key not in ("at", "sequence")]
    return f"  {event.at - begin:7.3f} {type(event).__name__} {' '.join(parts)}"
