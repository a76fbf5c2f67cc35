"""When the lowest level stops drafting: by how sure it is, and by how much of its work may be wasted."""

from __future__ import annotations

import random

import pytest

from specrouter_core.adaptive import Adaptive
from specrouter_core.adaptive_policy import AdaptivePolicy
from specrouter_core.chain import Plan
from specrouter_core.event import Call, Commit, Reply
from specrouter_core.machine import Machine
from specrouter_core.prediction import Level, Space
from specrouter_core.profile import Curve, Profile
from specrouter_core.replica import SimLevel
from specrouter_core.simulator import Simulator
from specrouter_core.tables import Limits, Member
from specrouter_core.trust import Trust
from specrouter_core.workload import Arrival, Outcome

COSTS = {"draft": {1: 0.0025}, "mid": {1: 0.009}, "target": {1: 0.035}}
AGREEMENT = {"draft": 0.65, "mid": 0.82, "target": 1.0}


def taught(right_by_confidence: float = 1.0) -> Trust:
    """A level that is right as often as it is sure, or always as often."""
    trust, rng = Trust(), random.Random(5)
    for _ in range(4000):
        confidence = rng.random()
        right = right_by_confidence * confidence + (1 - right_by_confidence) * 0.7
        trust.observe("draft", confidence, rng.random() < right)
    return trust


def test_the_threshold_is_where_draws_become_too_seldom_right() -> None:
    trust = taught()
    assert trust.threshold("draft", 0.45) == pytest.approx(0.4, abs=0.11)
    assert trust.threshold("draft", 0.05) == 0.0
    assert trust.threshold("draft", 0.99) >= 0.8
    assert taught(0.0).threshold("draft", 0.5) == 0.0, "a level whose confidence says nothing is never stopped"


def test_nothing_is_concluded_from_little() -> None:
    trust = Trust()
    for _ in range(100):
        trust.observe("draft", 0.2, False)
    assert trust.threshold("draft", 0.9) == 0.0 and trust.threshold("other", 0.9) == 0.0


def test_only_the_lowest_level_is_told_to_stop() -> None:
    plan = Plan(("draft", "target"), (4, 4), 8, False, (1, 1), 0.5)
    machine = Machine(plan, [1], limit=30)
    first = machine.start()
    assert [c.confidence for c in first if isinstance(c, Call)] == [0.0], "the target is never stopped"
    (call,) = (c for c in first if isinstance(c, Call))
    calls = [a for a in machine.receive(Reply(call.call, [7], True)) if isinstance(a, Call)]
    assert [(c.level, c.confidence) for c in calls] == [("draft", 0.5)]
    assert plan.without("draft").confidence == 0.0
    with pytest.raises(ValueError, match=r"^confidence: "):
        Plan(("draft", "target"), (4, 4), confidence=1.5)


def test_the_plan_carries_the_threshold_where_levels_take_turns() -> None:
    made = Adaptive([Member(n, c) for n, c in COSTS.items() if n != "draft"], modes=(False,), explore=0.0)
    for i in range(600):
        made.agreement.observe("mid", "target", i % 4, i % 10 < 7)
        sure = (i % 10) / 10
        made.trust.observe("mid", sure, sure > 0.5)
    plan = made.begin("a", 0.0)
    assert plan.levels == ("mid", "target") and 0.3 <= plan.confidence <= 0.9
    assert made.begin("b", 0.0).confidence == plan.confidence
    made.committed("a", Commit(0, (1,), ("target",), ({},)), 0.1)


def level(name: str) -> Level:
    return Level(name, Profile(curve=Curve.of(COSTS[name])))


def test_a_bound_on_waste_keeps_drafts_short_and_useless_drafts_out() -> None:
    def rates(lower: str, upper: str) -> list[float]:
        return [0.65] * 16

    free = Space([level("draft"), level("target")], rates).candidates(overlapped=True)
    tight = Space([level("draft"), level("target")], rates, waste=0.5).candidates(overlapped=True)
    none = Space([level("draft"), level("target")], rates, waste=0.2).candidates(overlapped=True)
    assert free[-1][0].lookahead >= 16 and tight[-1][0].lookahead == 2 and max(tight[-1][0].windows[1:]) <= 2
    assert [plan.levels for plan, _ in none] == [("target",)], "not one draft in five may be wrong"


@pytest.mark.parametrize("waste", [0.4, 0.5, 0.7])
def test_no_more_is_wasted_than_the_policy_allows(waste: float) -> None:
    def make() -> Adaptive:
        made = Adaptive([Member(n, c) for n, c in COSTS.items()], explore=0.0)
        made.tables.limits = Limits(modes=(True, False), waste=waste)
        return made

    policy = Watching(make)
    levels = [SimLevel(n, Curve.of(c), AGREEMENT[n]) for n, c in COSTS.items()]
    Simulator(levels, policy).run([Arrival(0, 1200)])
    assert policy.drawn and 1 - policy.useful / policy.drawn <= waste + 0.08
    assert policy.used > 0.5, "speculation goes on all the same"


class Watching(AdaptivePolicy):
    """Sees what the lowest level drafts, once the first rates are known."""

    drawn = useful = 0
    used = 0.0

    def ended(self, sequence: int, outcome: Outcome) -> None:
        super().ended(sequence, outcome)
        whole = sum(outcome.chains.values())
        self.used = sum(count for chain, count in outcome.chains.items() if len(chain) > 1) / whole

    def next(self, sequence: int, machine: Machine, commit: Commit, now: float) -> Plan | None:
        if machine.rounds == 50:
            self._before = self._tally(machine)
        elif machine.rounds > 50:
            self.drawn, self.useful = (a - b for a, b in zip(self._tally(machine), self._before, strict=True))
        return super().next(sequence, machine, commit, now)

    @staticmethod
    def _tally(machine: Machine) -> tuple[int, int]:
        lowest = [tally for name, tally in machine.tallies.items() if name != "target"]
        drawn = max(tally.drawn for tally in lowest) if lowest else 0
        return drawn, max(tally.committed for tally in lowest) if lowest else 0
