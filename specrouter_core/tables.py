"""The tables that plans are chosen from: one per kind of sequence and tier, made anew every ``REFRESH`` seconds.

So a round costs a look into a table and not a search, however many sequences there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from specrouter_core.agreement import Agreement, Deviation
from specrouter_core.chain import Plan
from specrouter_core.planner import Choice, Planner
from specrouter_core.prediction import MAX_AHEAD, Level
from specrouter_core.profile import Profile
from specrouter_core.promise import Ranks, Tier
from specrouter_core.trust import Trust

REFRESH = 0.1  # seconds between two tables
KINDS = (-1.2, -0.4, 0.4, 1.2)  # bounds of a sequence's shift (log-odds) between the kinds
SHIFTS = (-1.6, -0.8, 0.0, 0.8, 1.6)  # what a kind is planned with
COMMON = 2
AGE = 60.0  # seconds after which a correction that is not renewed counts half
CALM = 0.7  # seconds after which half of the sequences that have gone are still counted: they may come again
CROWDED = 1.25  # times as many sequences as the tables were made for: they are made anew
NEVER = -1e9  # before any table was made
SURE = 0.9  # the highest threshold of confidence

Tolls = Mapping[str, float]  # by level, seconds per token that it costs a sequence besides, where levels take turns
FREE: Tolls = {}
FAIR = Tier((), 0, 1.0, 0.0)  # as if all were alike: what predictions are measured against


@dataclass(slots=True)
class Member:
    """One level as configured."""

    name: str
    costs: Mapping[int, float]  # rows -> seconds, from its calibration; empty = unknown
    replicas: int = 1
    weight: float = 100.0  # the operator's


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be chosen. ``modes``: True = overlapped, False = lock-step; ``chains``: all when empty.

    ``windows``: by level, the most, where there is a limit; ``lookahead``: the same. ``waste``: of what the lowest
    level drafts, the share that may come to nothing.
    """

    modes: tuple[bool, ...] = (True,)
    windows: Mapping[str, int] = field(default_factory=dict)
    lookahead: int = MAX_AHEAD
    chains: frozenset[tuple[str, ...]] = frozenset()
    waste: float = 1.0


def kind_of(shift: float) -> int:
    """The kind of a sequence that agrees by this shift of the log-odds more than is common."""
    return sum(shift > bound for bound in KINDS)


def _dearer(choice: Choice, tolls: Tolls) -> Choice:
    """What the choice comes to for a sequence that pays tolls."""
    if choice.plan.overlapped:
        return choice
    return replace(choice, seconds=choice.seconds + sum(tolls.get(name, 0.0) for name in choice.plan.levels))


class Tables:
    """See the module. What it is given is looked at again for each table: it may change."""

    def __init__(
        self,
        members: Sequence[Member],
        profiles: Mapping[str, Profile],
        agreement: Agreement,
        trust: Trust,
        limits: Limits,
    ) -> None:
        self.limits = limits
        self.absent: frozenset[str] = frozenset()  # levels that cannot be reached
        self.ranks = Ranks()  # of the running sequences
        self.tiers: list[Tier] = []
        self.planner = Planner()
        self._members = members
        self._profiles = profiles
        self._agreement = agreement
        self._trust = trust
        self._tables: dict[tuple[int, int], list[Choice]] = {}
        self._plans: dict[tuple[int, int, Plan | None], Plan] = {}
        self._made = NEVER
        self._stale = False
        self._count = 1.0  # sequences, falling slowly

    def changed(self) -> None:
        """Something is not as it was: no table made before holds any more, but what was measured does."""
        self._stale = True

    def due(self, running: int, now: float) -> bool:
        """Whether the tables are old, or there are many more sequences (``running``) than they are for."""
        return self._stale or now - self._made > REFRESH or running > CROWDED * self._count

    def look(self, running: int, now: float) -> None:
        """Make everything anew, for so many sequences."""
        passed = min(max(now - self._made, 0.0), AGE)
        self._count = max(self._count * 0.5 ** (passed / CALM), running, 1)
        self.planner.age(0.5 ** (passed / AGE))
        self.planner.sharing = max(self._sequences(now) / self._members[-1].replicas, 1.0)
        self._agreement.together = self._count
        self.tiers = self.ranks.tiers()
        self._made, self._stale = now, False
        self._plans.clear()
        self._tables.clear()

    def plan(self, kind: int, rank: int, current: Plan | None, now: float, tolls: Tolls = FREE) -> Plan:
        """What a sequence should use that uses ``current`` now, and pays these ``tolls``."""
        if tolls:
            return self._chosen(self.table(kind, rank, now, tolls), current)
        key = kind, self._tier(rank), current
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._chosen(self.table(kind, rank, now), current)
        return plan

    def _chosen(self, table: Sequence[Choice], current: Plan | None) -> Plan:
        plan = self.planner.choose(table, current)
        return self._sure(plan, next(choice.seconds for choice in table if choice.plan == plan))

    def table(self, kind: int, rank: int, now: float, tolls: Tolls = FREE) -> list[Choice]:
        """What sequences of a kind and rank are planned from, best first."""
        table = self._table(kind, self._tier(rank), now)
        return sorted((_dearer(c, tolls) for c in table), key=lambda choice: choice.seconds) if tolls else table

    def _tier(self, rank: int) -> int:
        """Where a rank belongs; one that nobody had when the tables were made, with those just below it."""
        return next((i for i, tier in enumerate(self.tiers) if tier.ranks[-1] <= rank), max(len(self.tiers) - 1, 0))

    def fair(self, kind: int, now: float) -> list[Choice]:
        """The same without regard to ranks."""
        return self._table(kind, -1 if len(self.tiers) > 1 else 0, now)

    def made(self, kind: int, tier: int) -> list[Choice]:
        """A table as sequences would use its plans, for people; empty before the first sequence."""
        table = self._table(kind, tier, self._made) if self._made > NEVER else []
        return [replace(choice, plan=self._sure(choice.plan, choice.seconds)) for choice in table]

    def _table(self, kind: int, number: int, now: float) -> list[Choice]:
        table = self._tables.get((kind, number))
        if table is None:
            tier = self.tiers[number] if len(self.tiers) > 1 and number >= 0 else FAIR
            shift = Deviation(shift=SHIFTS[kind]) if kind != COMMON else None
            table = self._tables[kind, number] = self.planner.table(
                self._levels(tier, shift, now),
                lambda lower, upper: self._agreement.rates(lower, upper, shift),
                overlapped=self.limits.modes,
                windows=self.limits.windows,
                lookahead=self.limits.lookahead,
                waste=self.limits.waste,
                chains=self.limits.chains,
            )
        return table

    def _sequences(self, now: float) -> float:
        """All that share the levels, those of other routers too: they show in the target's steps."""
        target = self._members[-1]
        batch = self._profiles[target.name].batch
        if batch.weight <= 0:
            return self._count
        old: float = 0.5 ** (max(now - batch.at, 0.0) / CALM)
        return max(self._count, batch.value * target.replicas * old)

    def _levels(self, tier: Tier, shift: Deviation | None, now: float) -> list[Level]:
        count = self._sequences(now)
        alike, beside = count, 0.0
        if tier is not FAIR:
            scale = count / max(sum(each.sequences for each in self.tiers), 1)
            alike, beside = tier.sharing * scale, tier.beside * scale
        levels = []
        for member in self._members:
            profile = self._profiles[member.name]
            wait = max(profile.queue.value - profile.curve.seconds(max(count / member.replicas, 1.0)), 0.0)
            levels.append(
                Level(
                    name=member.name,
                    profile=profile,
                    weight=0.0 if member.name in self.absent else member.weight,
                    sharing=max(alike / member.replicas, 1.0),
                    beside=beside / member.replicas,
                    wait=wait,
                    silent=self._agreement.silent(member.name, shift),
                )
            )
        return levels

    def _sure(self, plan: Plan, seconds: float) -> Plan:
        """The plan with the confidence at which the lowest level should stop, where that saves time."""
        if plan.overlapped or len(plan.levels) == 1 or seconds <= 0:
            return plan
        lowest = plan.levels[0]
        step = self._profiles[lowest].curve.seconds(1)
        rate = self._agreement.rate(lowest, plan.levels[1])
        least = step / (rate * seconds) if rate > 0 else 1.0
        return replace(plan, confidence=min(self._trust.threshold(lowest, least), SURE))
