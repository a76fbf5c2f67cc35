"""When tables are made anew, what they keep from before, and for whom they are."""

from __future__ import annotations

import pytest

from specrouter_core.adaptive import Adaptive
from specrouter_core.event import Commit
from specrouter_core.promise import Promise
from specrouter_core.tables import Member

COSTS = {
    "draft": {1: 0.0025, 64: 0.0035, 256: 0.011},
    "target": {1: 0.035, 16: 0.040, 32: 0.070, 64: 0.135, 256: 0.525},
}


def adaptive() -> Adaptive:
    return Adaptive([Member(name, costs) for name, costs in COSTS.items()], explore=0.0)


def commit(tokens: int = 1) -> Commit:
    return Commit(0, (1,) * tokens, ("target",) * tokens, ({},) * tokens)


def correction(made: Adaptive) -> float:
    """Of draft and target."""
    choice = next(choice for choice in made.explain() if len(choice.plan.levels) == 2)
    return choice.seconds / choice.model


def test_a_new_policy_does_not_unlearn_what_was_measured() -> None:
    """The operator may send weights every two seconds: corrections age with time, and the load is what it is."""
    made = adaptive()
    for number in range(16):
        made.begin(number, 0.0)
    (chain,) = [choice for choice in made.explain() if len(choice.plan.levels) == 2]
    for _ in range(50):
        made.tables.planner.observe(chain, 2 * chain.model)
    made.look(0.2)
    before = correction(made)
    assert before > 1.5
    for number in range(16):
        made.end(number)
    for _ in range(20):
        made.changed()
        made.look(0.25)
    assert made.tables.planner.sharing == pytest.approx(16, rel=0.1), "those who have gone may come again"
    assert correction(made) == pytest.approx(before, rel=0.02)


def test_a_rank_that_is_new_since_the_last_table_is_planned_with_those_below_it() -> None:
    made = adaptive()
    high, low = Promise(priority=90), Promise(priority=10)
    for number in range(12):
        made.begin(f"high{number}", 1.0, promise=high)
    for number in range(12):
        made.begin(f"low{number}", 1.0, promise=low)
    made.look(2.0)
    tables = made.tables
    middle, above = Promise(priority=50).rank(False), Promise(priority=95).rank(False)
    assert tables.table(2, middle, 2.0) == tables.table(2, low.rank(False), 2.0) != tables.table(2, above, 2.0)
    assert tables.table(2, above, 2.0) == tables.table(2, high.rank(False), 2.0)
    assert tables.table(2, 0, 2.0) == tables.table(2, low.rank(False), 2.0), "below all others: with the last"
