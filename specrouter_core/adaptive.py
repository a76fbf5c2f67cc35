"""What a router knows of its levels, and the plan it gives each sequence.

Fed from traffic alone: every answered call (its own times) and every commit (what each level drew on it). No I/O and no
clock: the caller tells the time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from specrouter_core.agreement import Agreement, Deviation
from specrouter_core.chain import Plan
from specrouter_core.event import NOTHING, Commit
from specrouter_core.planner import Choice, same_chain
from specrouter_core.profile import Answered, Curve, Profile
from specrouter_core.promise import Promise
from specrouter_core.similarity import Probe, Similarity
from specrouter_core.tables import COMMON, Limits, Member, Tables, Tolls, kind_of
from specrouter_core.trust import Trust

STAY = 4  # rounds a sequence keeps its plan at least
TRIAL = 12  # the same of a plan that is explored: in fewer rounds nothing can be learnt of it
ROUNDS = 8  # rounds over which a chain's time per token is taken
ANSWER = 128.0  # tokens of an answer, before any has ended
RECENT = 16  # answers whose length the next one is expected to have
ENDLESS = 1 << 30  # tokens
BLOCK = 50  # rounds of a chain over which its prediction is judged
LIKELY = 50  # observations of a pair from which similarity is calibrated by it
ANYBODY = Promise()

__all__ = ["STAY", "Adaptive", "Follower", "Limits", "Member"]


@dataclass(slots=True)
class Follower:
    """What is known of one sequence."""

    plan: Plan
    free: bool = True  # its plan is chosen here
    ease: Deviation = field(default_factory=Deviation)
    promise: Promise = ANYBODY
    prompt: int = 0  # tokens
    limit: int = ENDLESS  # tokens that it may generate
    read: set[str] = field(default_factory=set)  # levels that have its text
    judged: dict[str, int] = field(default_factory=dict)  # by level: the position up to which it was judged on this
    rank: int = 0
    asked: float = 0.0  # when it began
    first: float = 0.0  # when its first token was there
    generated: int = 0  # tokens
    rounds: int = 0  # since the plan was taken
    stay: int = STAY
    last: float = 0.0  # when the last round was committed
    tokens: int = 0  # since ``since``
    measured: int = 0  # rounds since ``since``
    since: float = 0.0
    skip: int = 0  # rounds still to come that say nothing of the plan
    switches: int = 0

    def take(self, plan: Plan, now: float) -> None:
        """It uses this plan from now on, and is measured afresh."""
        if not same_chain(plan, self.plan):
            self.enter(plan)
        self.plan, self.rounds, self.tokens, self.measured, self.since = plan, 0, 0, 0, now

    def enter(self, plan: Plan) -> None:
        """A chain begins: its first round read the prompt or was the old chain's, and in its second new levels read."""
        self.skip = 1 if plan.overlapped or self.has_read(plan) else 2
        self.read.update(plan.levels)

    def has_read(self, plan: Plan) -> bool:
        """Whether all levels below the target have its text."""
        return self.read.issuperset(plan.levels[:-1])

    def grew(self, tokens: int, now: float) -> None:
        """So many tokens were committed."""
        if not self.generated:
            self.first = now
        self.generated += tokens
        self.last = now

    def ranked(self, now: float) -> int:
        """Its rank now."""
        return self.promise.rank(self.promise.behind(now - self.asked, now - self.first, self.generated))


@dataclass(slots=True)
class _Block:
    """Rounds of one chain, as predicted and as they were; seconds."""

    predicted: float = 0.0
    measured: float = 0.0
    rounds: int = 0


class Adaptive:
    """Plans for the sequences of one family.

    ``explore``: the share of rounds at which a sequence tries a chain that was measured little, for TRIAL rounds.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        modes: Sequence[bool] = (True,),
        explore: float = 0.0015,
    ) -> None:
        self.members = list(members)
        self.agreement = Agreement()
        self.similarity = Similarity()
        self.trust = Trust()
        self.profiles: dict[str, Profile] = {m.name: self._profile(m) for m in members}
        self.running: dict[int | str, Follower] = {}
        self.errors: list[float] = []  # of predictions, relative, each over BLOCK rounds of a chain; the last ones
        self.tables = Tables(self.members, self.profiles, self.agreement, self.trust, Limits(tuple(modes)))
        self._waiting: dict[int | str, Follower] = {}  # for a first token that was promised in time
        self._usual: dict[tuple[int, int], Plan] = {}  # what new sequences begin with, by kind and rank
        self._blocks: dict[tuple[str, ...], _Block] = {}
        self._explore = explore
        self._owed = 0.0  # explorations not yet made
        self._answer = ANSWER

    @staticmethod
    def _profile(member: Member) -> Profile:
        return Profile(curve=Curve.of(member.costs) if member.costs else Curve())

    # What happens.

    def begin(
        self,
        sequence: int | str,
        now: float,
        *,
        ease: float = 0.0,
        plan: Plan | None = None,
        promise: Promise = ANYBODY,
        prompt: int = 0,
        limit: int = ENDLESS,
    ) -> Plan:
        """A new sequence: its first plan. ``ease``: its class's shift. With a ``plan`` it is followed, not steered.

        It has ``prompt`` tokens to be read, and may generate ``limit``.
        """
        kind, rank = kind_of(ease), promise.rank(False)
        self.tables.ranks.add(rank)
        self.look(now, coming=1)
        # the last one's choice is the present plan of this one, lest that flutters
        usual = self._usual.get((kind, rank))
        chosen = plan or self.tables.plan(kind, rank, usual, now)
        follower = self.running[sequence] = Follower(
            chosen, plan is None, Deviation(shift=ease), promise, prompt, limit, rank=rank, asked=now, since=now
        )
        if plan is None:
            chosen = follower.plan = self._usual[kind, rank] = self._suited(chosen, follower, usual, now)
        follower.enter(chosen)
        if promise.ttft is not None:
            self._waiting[sequence] = follower
        return chosen

    def look(self, now: float, coming: int = 0) -> None:
        """New tables if they are due; who has waited too long for a first token comes first in them."""
        running = len(self.running) + coming
        if self.tables.due(running, now):
            for follower in self._waiting.values():
                self._rank(follower, now)
            self.tables.look(running, now)

    def uses(self, sequence: int | str, plan: Plan, now: float) -> None:
        """The sequence's plan is this one from now on, whatever was chosen for it; it is measured afresh."""
        follower = self.running.get(sequence)
        if follower is not None:
            follower.take(plan, now)

    def best(self, sequence: int | str, now: float, fits: Callable[[Plan], bool]) -> Plan | None:
        """For a sequence that may not use all plans: the best that ``fits``, with the planner's hysteresis."""
        follower = self.running.get(sequence)
        self.look(now)
        if follower is None:
            table = self.tables.fair(COMMON, now)
        else:
            table = self.tables.table(kind_of(follower.ease.shift), follower.rank, now)
        table = [choice for choice in table if fits(choice.plan)]
        if not table:
            return None
        return self.tables.planner.choose(table, follower.plan if follower is not None else None)

    @property
    def absent(self) -> Collection[str]:
        """Levels that cannot be used."""
        return self.tables.absent

    def without(self, absent: Collection[str]) -> None:
        """These levels cannot be used, all others can."""
        self.tables.absent = frozenset(absent)
        self.tables.changed()

    def changed(self) -> None:
        """Levels are not what they were: what was chosen before does not hold any more."""
        self.tables.changed()

    def end(self, sequence: int | str) -> None:
        """It has ended."""
        follower = self.running.pop(sequence, None)
        self._waiting.pop(sequence, None)
        if follower is not None:
            if follower.tokens:
                self._measure(follower, follower.last)
            self.tables.ranks.remove(follower.rank)
            self._answer += (follower.generated - self._answer) / RECENT

    def answered(self, level: str, call: Answered, now: float) -> None:
        """A call was answered."""
        self.profiles[level].observe(call, now)

    def committed(self, sequence: int | str, commit: Commit, now: float) -> Plan | None:
        """A round was committed. Returns the plan to use from now on, None to stay with the present one."""
        follower = self.running.get(sequence)
        if follower is None:
            return None
        target = self.members[-1].name
        for position, (token, draws) in enumerate(zip(commit.tokens, commit.draws, strict=True)):
            self.drew(position, {**draws, target: token}, follower)
        follower.rounds += 1
        if not follower.generated:
            self._waiting.pop(sequence, None)
        follower.grew(len(commit.tokens), now)
        self._rank(follower, now)
        if follower.skip:
            follower.skip, follower.since = follower.skip - 1, now
            return None
        follower.tokens += len(commit.tokens)
        follower.measured += 1
        if follower.measured >= ROUNDS:
            self._measure(follower, now)
        if not follower.free or follower.rounds < follower.stay:
            return None
        follower.stay = STAY
        kind = kind_of(follower.ease.shift)
        self.look(now)
        self._owed += self._explore
        if self._owed >= 1:
            self._owed -= 1
            follower.stay = TRIAL
            table = self.tables.table(kind, follower.rank, now, self._tolls(follower))
            plan = self.tables.planner.explore(table, follower.plan)
        else:
            plan = self.tables.plan(kind, follower.rank, follower.plan, now)
            plan = self._suited(plan, follower, follower.plan, now)
        if plan == follower.plan:
            return None
        if follower.tokens:
            self._measure(follower, now)
        follower.switches += plan.levels != follower.plan.levels
        follower.take(plan, now)
        return plan

    def _suited(self, plan: Plan, follower: Follower, current: Plan | None, now: float) -> Plan:
        """The plan, or what is better for this sequence because levels of that would have to read its text first."""
        if plan.overlapped or follower.has_read(plan) or not follower.prompt:
            return plan
        return self.tables.plan(kind_of(follower.ease.shift), follower.rank, current, now, self._tolls(follower))

    def _tolls(self, follower: Follower) -> Tolls:
        """The reading of levels that have not its text, by token: where levels take turns, all wait meanwhile.

        However much it has generated, it is expected to go on for as long as answers are.
        """
        left = max(min(self._answer, follower.limit - follower.generated), 1.0)
        length = follower.prompt + follower.generated
        unread = [member.name for member in self.members[:-1] if member.name not in follower.read]
        return {name: self.profiles[name].curve.seconds(length) / left for name in unread}

    def _rank(self, follower: Follower, now: float) -> None:
        """Is it behind what it was promised?"""
        rank = follower.ranked(now)
        if rank != follower.rank:
            self.tables.ranks.add(rank)
            self.tables.ranks.remove(follower.rank)
            follower.rank = rank

    def drew(self, position: int, draws: Mapping[str, int], follower: Follower | None = None) -> None:
        """What levels drew at one position of committed text, the target among them; any two of them are compared."""
        names = [member.name for member in self.members if member.name in draws]
        if not position:
            for lower in names[:-1]:
                self.agreement.began(lower, draws[lower] != NOTHING)
        for j, upper in enumerate(names):
            for lower in names[:j]:
                agreed = draws[lower] == draws[upper]
                if follower is not None and upper == self.members[-1].name:
                    follower.ease.observe(self.agreement.rate(lower, upper), agreed)
                self.agreement.observe(lower, upper, position, agreed)

    def probed(self, a: str, b: str, p: Probe, q: Probe) -> None:
        """Top probabilities of two levels at the same position of the same text."""
        self.similarity.observe(a, b, p, q)
        if self.agreement.seen(a, b) > LIKELY:
            self.similarity.calibrate(a, b, self.agreement.rate(a, b))
        predicted = self.similarity.agreement(a, b)
        if predicted is not None:
            self.agreement.expect(a, b, predicted)

    def _measure(self, follower: Follower, now: float) -> None:
        """How long a token took under the plan, against what was predicted."""
        tokens, rounds, seconds = follower.tokens, follower.measured, now - follower.since
        follower.tokens, follower.measured, follower.since = 0, 0, now
        self.look(now)
        table = self.tables.fair(kind_of(follower.ease.shift), now)
        choice = next((c for c in table if same_chain(c.plan, follower.plan)), None)
        if choice is None or seconds <= 0 or not tokens:
            return
        block = self._blocks.setdefault((*choice.plan.levels, str(choice.plan.overlapped)), _Block())
        block.predicted += choice.expected * tokens
        block.measured += seconds
        block.rounds += rounds
        if block.rounds >= BLOCK:
            self.errors = [*self.errors[-255:], abs(block.predicted / block.measured - 1)]
            block.predicted, block.measured, block.rounds = 0.0, 0.0, 0
        self.tables.planner.observe(choice, seconds / tokens, tokens, rounds)

    def explain(self, kind: int = COMMON, tier: int = 0) -> list[Choice]:
        """The table that sequences of a kind (COMMON: most) and tier are planned from, best first."""
        return self.tables.made(kind, tier)
