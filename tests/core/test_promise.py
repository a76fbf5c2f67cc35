"""Who gives way under load, and what a sequence that is behind may do."""

from __future__ import annotations

from typing import Any

import pytest

from specrouter_core.adaptive import Adaptive
from specrouter_core.chain import Plan
from specrouter_core.event import Commit
from specrouter_core.promise import MAX_TIERS, Promise, Ranks, tiers
from specrouter_core.tables import Limits, Member

COSTS = {
    "draft": {1: 0.0025, 64: 0.0035, 256: 0.011},
    "mid": {1: 0.009, 16: 0.010, 64: 0.020, 256: 0.080},
    "target": {1: 0.035, 16: 0.040, 32: 0.070, 64: 0.135, 256: 0.525},
}


def adaptive(**kw: Any) -> Adaptive:
    made = Adaptive([Member(name, costs) for name, costs in COSTS.items()], explore=0.0, **kw)
    for i in range(600):
        made.agreement.observe("draft", "target", i % 4, i % 5 == 0)
        made.agreement.observe("draft", "mid", i % 4, i % 5 == 0)
        made.agreement.observe("mid", "target", i % 4, i % 10 < 7)
    return made


def commit(tokens: int = 1) -> Commit:
    return Commit(0, (1,) * tokens, ("target",) * tokens, ({},) * tokens)


def test_tiers_go_by_priority_then_by_who_is_behind() -> None:
    high, low = Promise(priority=80, tpot=0.02), Promise(priority=20)
    ranks = Ranks()
    for promise, behind in ((low, False), (high, False), (high, True), (low, False)):
        ranks.add(promise.rank(behind))
    late, kept, last = ranks.tiers()
    assert [tier.sequences for tier in (late, kept, last)] == [1, 1, 2]
    assert late.sharing == 1 and late.beside == 3, "who gives way feeds a token each"
    assert last.sharing == 2 + 2 * 2 and last.beside == 0, "the time of those above is worth more"
    ranks.remove(high.rank(True))
    assert len(ranks.tiers()) == 2


def test_there_are_few_tiers_however_many_priorities() -> None:
    made = tiers({rank: 1 for rank in range(0, 200, 2)})
    assert len(made) == MAX_TIERS and sum(tier.sequences for tier in made) == 100
    assert made[0].ranks == (198,) and 0 in made[-1].ranks


def test_a_promise_is_kept_until_its_time_has_passed() -> None:
    promise = Promise(ttft=0.5, tpot=0.02)
    assert not promise.behind(0.4, 0.0, 0) and promise.behind(0.6, 0.0, 0)
    assert not promise.behind(9.0, 0.019 * 10, 11) and promise.behind(9.0, 0.021 * 10, 11)
    assert not Promise().behind(1e6, 1e6, 0)
    assert Promise(priority=100).patience == pytest.approx(0.25) and Promise(priority=0).patience == 4.0


def levels_used(made: Adaptive, promises: dict[str, Promise], together: int) -> dict[str, Plan]:
    """The plan of a new sequence of each class after so many of each have begun."""
    for number in range(together):
        for name, promise in promises.items():
            made.begin(f"{name}{number}", 1.0, promise=promise)
    return {name: made.begin(name, 2.0, promise=promise) for name, promise in promises.items()}


def test_the_low_class_loses_its_speculation_first() -> None:
    """As the load grows, both speculate, then only the high class, then none."""
    promises = {"high": Promise(priority=90), "low": Promise(priority=10)}
    windows = []
    for together in (1, 4, 8, 12, 16, 24, 32, 64):
        used = levels_used(adaptive(), promises, together)
        windows.append(tuple(used[name].windows[-1] if len(used[name].levels) > 1 else 0 for name in promises))
    assert all(high >= low for high, low in windows), windows
    assert windows[0][1] > 0 == windows[-1][1], "the low class speculates while there is room, and then no more"
    assert any(high > 0 == low for high, low in windows), "the high class goes on for longer"


def test_one_class_is_planned_as_before() -> None:
    plain = levels_used(adaptive(), {"a": Promise()}, 16)
    promised = levels_used(adaptive(), {"a": Promise(priority=90, tpot=5.0)}, 16)
    assert plain == promised


def test_a_sequence_behind_its_objective_comes_before_others() -> None:
    made = adaptive()
    slow = Promise(tpot=0.01)
    for number in range(24):
        made.begin(f"other{number}", 0.0)
    made.begin("slow", 0.0, promise=slow)
    for i in range(6):
        made.committed("slow", commit(), 0.1 * (i + 1))
    assert made.running["slow"].rank > made.running["other0"].rank
    first, rest = made.tables.ranks.tiers()
    assert first.sequences == 1 and rest.sequences == 24
    for i in range(200):  # it catches up
        made.committed("slow", commit(8), 0.7 + 0.001 * i)
    assert made.running["slow"].rank == made.running["other0"].rank
    for name in list(made.running):
        made.end(name)
    assert made.tables.ranks.tiers() == []


def test_others_give_way_to_those_who_wait_too_long_for_a_first_token() -> None:
    """The first token is promised within 0.3 s: from then on the others speculate less; then they may again."""
    made = adaptive()
    for number in range(4):
        made.begin(f"other{number}", 0.0)
        made.begin(f"chat{number}", 0.0, promise=Promise(ttft=0.3))
    assert len(made.tables.ranks.tiers()) == 1
    early = made.begin("early", 0.25)
    late = made.begin("late", 0.40)
    first, rest = made.tables.ranks.tiers()
    assert (first.sequences, rest.sequences) == (4, 6)
    assert len(early.levels) == 2 and late.levels == ("target",), (early, late)
    for number in range(4):
        made.committed(f"chat{number}", commit(), 0.45)
    assert len(made.tables.ranks.tiers()) == 1, "with the first token nobody waits any more"


def test_only_allowed_chains_are_used_and_the_target_when_none_can_be() -> None:
    made = adaptive()
    made.tables.limits = Limits(modes=(True, False), chains=frozenset({("mid", "target")}))
    made.changed()
    assert made.begin("a", 0.0).levels == ("mid", "target")
    assert {choice.plan.levels for choice in made.explain()} == {("mid", "target")}
    made.without({"mid"})
    assert made.begin("b", 1.0).levels == ("target",)
