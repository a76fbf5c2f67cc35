"""One episode: requests run, one fault happens to them, everything must come out right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from changes import Commit
from chaos_mesh import ChaosMesh
from faults import TRIGGER_S, Plan
from history import Problem, judge, judge_late

from follower import Follower
from sighting import Broke, Event, GaveUp, Got, Opened

TOGETHER = 32  # requests that run at once
PATIENCE_S = 60.0  # of a client
FREE_S = 10.0  # until nothing is left of ended sequences


@dataclass
class Outcome:
    """What came of a plan."""

    plan: Plan
    faulted: int  # sequences that ran while the fault did
    broken: int  # connections that broke
    gap_s: float  # the longest a client waited between two tokens
    seconds: float
    cued: bool  # the fault came by its event
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
    mesh.asks |= {ask.name: ask for ask in plan.asks}
    events: list[Event] = []
    gate = asyncio.Semaphore(together)
    async with Follower(*mesh.entrances, events.append) as follower:

        async def one(number: int) -> None:
            async with gate:
                await follower.follow(plan.asks[number], PATIENCE_S)

        async with asyncio.TaskGroup() as group:
            fault = group.create_task(_fault(mesh, plan))
            for number in range(len(plan.asks)):
                group.create_task(one(number))
    cued, struck, mended = fault.result()
    problems += await _left(mesh, plan)
    problems += [Problem("traced", part, what) for part, what in mesh.tracebacks()]
    commits = mesh.commits()
    problems += judge(plan.asks, events, commits)
    spans = _spans(events)
    return Outcome(
        plan=plan,
        faulted=sum(first < mended and last > struck for first, last, _ in spans.values()),
        broken=sum(isinstance(event, Broke) for event in events),
        gap_s=max((gap for *_, gap in spans.values()), default=0.0),
        seconds=time.monotonic() - begin,
        cued=cued,
        problems=problems,
        events=events,
        commits=commits,
    )


def late(mesh: ChaosMesh) -> list[Problem]:
    """What was done to the records of earlier episodes after their end, by an owner that woke up, for example."""
    return judge_late(mesh.asks, mesh.commits())


async def _fault(mesh: ChaosMesh, plan: Plan) -> tuple[bool, float, float]:
    """Returns whether its event came, and from when to when it lasted."""
    cued, struck = await mesh.strike(plan.fault, TRIGGER_S)
    await asyncio.sleep(plan.fault.seconds)
    await mesh.mend(plan.fault)
    return cued, struck, time.monotonic()


async def _left(mesh: ChaosMesh, plan: Plan) -> list[Problem]:
    """What is still not free after ``FREE_S``."""
    limit = time.monotonic() + FREE_S
    names = [ask.name for ask in plan.asks]
    while left := await asyncio.to_thread(mesh.leftovers, names, False):
        if time.monotonic() > limit:
            return [Problem("leaked", where, what) for what, where in left.items()]
        await asyncio.sleep(0.1)
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
    lines = [
        f"episode {outcome.plan.seed}: {outcome.plan.fault}; its event {'came' if outcome.cued else 'did not come'}"
    ]
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
