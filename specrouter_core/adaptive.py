"""What a router knows of its levels, and the plan it gives each sequence.

Fed from traffic alone: every answered call (its own times) and every commit (what each level drew on it). The table of
candidate chains is made anew every ``REFRESH`` seconds, for a few kinds of sequences (easier or harder than common), so
a round costs a look into it and not a search. No I/O and no clock: the caller tells the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from specrouter_core.agreement import Agreement, Deviation
from specrouter_core.chain import Plan
from specrouter_core.event import Commit
from specrouter_core.planner import Choice, Level, Planner, same_chain
from specrouter_core.profile import Curve, Profile
from specrouter_core.similarity import Probe, Similarity

REFRESH = 0.1  # seconds between two tables
KINDS = (-1.2, -0.4, 0.4, 1.2)  # bounds of a sequence's shift (log-odds) between the kinds
SHIFTS = (-1.6, -0.8, 0.0, 0.8, 1.6)  # what a kind is planned with
COMMON = 2
AGE = 60.0  # seconds after which a correction that is not renewed counts half
CALM = 0.7  # seconds after which half of the sequences that have gone are still counted: they may come again
CROWDED = 1.25  # times as many sequences as the tables were made for: they are made anew
BLOCK = 50  # rounds of a chain over which its prediction is judged
STAY = 4  # rounds a sequence keeps its plan at least
ROUNDS = 8  # rounds over which a chain's time per token is taken


@dataclass(slots=True)
class Member:
    """One level as configured."""

    name: str
    costs: Mapping[int, float]  # rows -> seconds, from its calibration; empty = unknown
    replicas: int = 1
    weight: float = 100.0  # the operator's


@dataclass(slots=True)
class Follower:
    """What is known of one sequence."""

    plan: Plan
    free: bool = True  # its plan is chosen here
    ease: Deviation = field(default_factory=Deviation)
    rounds: int = 0  # since the plan was taken
    tokens: int = 0  # since ``since``
    measured: int = 0  # rounds since ``since``
    since: float = 0.0
    started: bool = False  # the first round, which reads the prompt or was begun by another chain, is over
    switches: int = 0

    def take(self, plan: Plan, now: float) -> None:
        """It uses this plan from now on, and is measured afresh."""
        if not same_chain(plan, self.plan):
            self.started = False  # the round under way is the old chain's still
        self.plan, self.rounds, self.tokens, self.measured, self.since = plan, 0, 0, 0, now


@dataclass(slots=True)
class _Block:
    """Rounds of one chain, as predicted and as they were; seconds."""

    predicted: float = 0.0
    measured: float = 0.0
    rounds: int = 0


def _kind(shift: float) -> int:
    return sum(shift > bound for bound in KINDS)


class Adaptive:
    """Plans for the sequences of one family. ``modes``: True = overlapped, False = lock-step.

    ``explore``: the share of rounds at which a sequence tries a chain that was measured little, for STAY rounds.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        modes: Sequence[bool] = (True,),
        max_window: int = 16,
        explore: float = 0.004,
    ) -> None:
        self.members = list(members)
        self.modes = tuple(modes)
        self.max_window = max_window
        self.agreement = Agreement()
        self.similarity = Similarity()
        self.profiles: dict[str, Profile] = {m.name: self._profile(m) for m in members}
        self.running: dict[int | str, Follower] = {}
        self.absent: set[str] = set()  # levels that cannot be reached
        self.errors: list[float] = []  # of predictions, relative, each over BLOCK rounds of a chain; the last ones
        self._usual: dict[int, Plan] = {}  # what new sequences of a kind begin with, lest that flutters
        self._blocks: dict[tuple[str, ...], _Block] = {}
        self._planner = Planner()
        self._plans: dict[tuple[int, tuple[str, ...] | None], Plan] = {}
        self._tables: dict[int, list[Choice]] = {}
        self._made = -1e9
        self._count = 1.0  # sequences, falling slowly
        self._now: list[Level] = []  # as the tables were made from
        self._explore = explore
        self._owed = 0.0  # explorations not yet made

    @staticmethod
    def _profile(member: Member) -> Profile:
        return Profile(curve=Curve.of(member.costs) if member.costs else Curve())

    # What happens.

    def begin(self, sequence: int | str, now: float, *, ease: float = 0.0, plan: Plan | None = None) -> Plan:
        """A new sequence: its first plan. ``ease``: its class's shift. With a ``plan`` it is followed, not steered."""
        kind = _kind(ease)
        chosen = plan or self._plan(kind, self._usual.get(kind), now)
        if plan is None:
            self._usual[kind] = chosen
        self.running[sequence] = Follower(chosen, plan is None, Deviation(shift=ease), since=now)
        return chosen

    def uses(self, sequence: int | str, plan: Plan, now: float) -> None:
        """The sequence's plan is this one from now on, whatever was chosen for it; it is measured afresh."""
        follower = self.running.get(sequence)
        if follower is not None:
            follower.take(plan, now)

    def best(self, sequence: int | str, now: float, fits: Callable[[Plan], bool]) -> Plan | None:
        """For a sequence that may not use all plans: the best that ``fits``, with the planner's hysteresis."""
        follower = self.running.get(sequence)
        kind = _kind(follower.ease.shift) if follower is not None else COMMON
        table = [choice for choice in self._table(kind, now) if fits(choice.plan)]
        if not table:
            return None
        return self._planner.choose(table, follower.plan if follower is not None else None)

    def changed(self) -> None:
        """Levels came or went: what was chosen before does not hold any more."""
        self._made = -1e9

    def end(self, sequence: int | str) -> None:
        """It has ended."""
        self.running.pop(sequence, None)

    def answered(
        self,
        level: str,
        *,
        rows: float,
        batch: float,
        steps: int,
        compute: float,
        queue: float,
        total: float,
        now: float,
    ) -> None:
        """A call was answered; see ``Profile.observe``."""
        self.profiles[level].observe(
            rows=rows, batch=batch, steps=steps, compute=compute, queue=queue, total=total, now=now
        )

    def committed(self, sequence: int | str, commit: Commit, now: float) -> Plan | None:
        """A round was committed. Returns the plan to use from now on, None to stay with the present one."""
        follower = self.running.get(sequence)
        if follower is None:
            return None
        target = self.members[-1].name
        for position, (token, draws) in enumerate(zip(commit.tokens, commit.draws, strict=True)):
            self.drew(position, {**draws, target: token}, follower)
        follower.rounds += 1
        if not follower.started:
            follower.started, follower.since = True, now
            return None
        follower.tokens += len(commit.tokens)
        follower.measured += 1
        if follower.measured >= ROUNDS:
            self._measure(follower, now)
        if not follower.free or follower.rounds < STAY:
            return None
        kind = _kind(follower.ease.shift)
        self._owed += self._explore
        if self._owed >= 1:
            self._owed -= 1
            plan = self._planner.explore(self._table(kind, now), follower.plan)
        else:
            plan = self._plan(kind, follower.plan, now)
        if plan == follower.plan:
            return None
        if follower.tokens:
            self._measure(follower, now)
        follower.switches += plan.levels != follower.plan.levels
        follower.take(plan, now)
        return plan

    def drew(self, position: int, draws: Mapping[str, int], follower: Follower | None = None) -> None:
        """What levels drew at one position of committed text, the target among them; any two of them are compared."""
        names = [member.name for member in self.members if member.name in draws]
        for j, upper in enumerate(names):
            for lower in names[:j]:
                agreed = draws[lower] == draws[upper]
                if follower is not None and upper == self.members[-1].name:
                    follower.ease.observe(self.agreement.rate(lower, upper), agreed)
                self.agreement.observe(lower, upper, position, agreed)

    def probed(self, a: str, b: str, p: Probe, q: Probe) -> None:
        """Top probabilities of two levels at the same position of the same text."""
        self.similarity.observe(a, b, p, q)
        if self.agreement.seen(a, b) > 50:
            self.similarity.calibrate(a, b, self.agreement.rate(a, b))
        predicted = self.similarity.agreement(a, b)
        if predicted is not None:
            self.agreement.expect(a, b, predicted)

    def _measure(self, follower: Follower, now: float) -> None:
        """How long a token took under the plan, against what was predicted."""
        tokens, rounds, seconds = follower.tokens, follower.measured, now - follower.since
        follower.tokens, follower.measured, follower.since = 0, 0, now
        table = self._table(_kind(follower.ease.shift), now)
        choice = next((c for c in table if same_chain(c.plan, follower.plan)), None)
        if choice is None or seconds <= 0 or not tokens:
            return
        block = self._blocks.setdefault((*choice.plan.levels, str(choice.plan.overlapped)), _Block())
        block.predicted += choice.seconds * tokens
        block.measured += seconds
        block.rounds += rounds
        if block.rounds >= BLOCK:
            self.errors = [*self.errors[-255:], abs(block.predicted / block.measured - 1)]
            block.predicted, block.measured, block.rounds = 0.0, 0.0, 0
        self._planner.observe(choice, seconds / tokens, tokens, rounds)

    # The tables.

    def _plan(self, kind: int, current: Plan | None, now: float) -> Plan:
        table = self._table(kind, now)
        key = kind, (*current.levels, str(current.overlapped)) if current is not None else None
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._planner.choose(table, current)
        return plan

    def _table(self, kind: int, now: float) -> list[Choice]:
        """What sequences of a kind are planned from, at most ``REFRESH`` old."""
        if now - self._made > REFRESH or len(self.running) > CROWDED * self._count:
            self._count = max(self._count * 0.5 ** (min(now - self._made, AGE) / CALM), len(self.running), 1)
            self._planner.age(0.5 ** (min(now - self._made, AGE) / AGE))
            self._now = self._levels(now)
            self._planner.sharing = self._now[-1].sharing
            self.agreement.together = self._count
            self._made = now
            self._plans.clear()
            self._tables.clear()
        if kind not in self._tables:
            shift = Deviation(shift=SHIFTS[kind])
            self._tables[kind] = self._planner.table(
                self._now,
                lambda lower, upper: self.agreement.rates(lower, upper, shift if kind != COMMON else None),
                overlapped=self.modes,
                max_window=self.max_window,
            )
        return self._tables[kind]

    def _levels(self, now: float) -> list[Level]:
        target = self.members[-1]
        batch = self.profiles[target.name].batch
        count = self._count
        if batch.weight > 0:  # other routers' sequences show in the steps
            count = max(count, batch.value * target.replicas * 0.5 ** (max(now - batch.at, 0.0) / CALM))
        levels = []
        for member in self.members:
            weight = 0.0 if member.name in self.absent else member.weight
            profile, sharing = self.profiles[member.name], max(count / member.replicas, 1.0)
            wait = max(profile.queue.value - profile.curve.seconds(sharing), 0.0)
            levels.append(Level(member.name, profile, weight, sharing, wait))
        return levels

    def explain(self, kind: int = COMMON) -> list[Choice]:
        """The table that sequences of a kind (COMMON: most) are planned from, best first."""
        return self._tables.get(kind, [])
