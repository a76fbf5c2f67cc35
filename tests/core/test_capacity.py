"""The capacity planner: cheapest, within bounds, and right in the simulator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specrouter_core.capacity import Load, Offer, advise, frontier, priced
from specrouter_core.profile import Curve
from specrouter_core.rehearsal import rehearse, verified

TARGET = Curve.of({1: 0.035, 16: 0.037, 64: 0.060, 512: 0.400})


def offers(draft: float = 0.65, mid: float = 0.82, target: float = 4.0) -> list[Offer]:
    return [
        Offer("draft", Curve.of({1: 0.0025, 64: 0.003, 512: 0.01}), draft, 1.0, slots=256),
        Offer("mid", Curve.of({1: 0.009, 32: 0.01, 128: 0.02, 512: 0.07}), mid, 1.0, slots=256),
        Offer("target", TARGET, 1.0, target),
    ]


LOAD = Load(8, 64, 32, 0.03)


def test_the_best_comes_first_and_everything_adds_up() -> None:
    table = advise(offers(), LOAD)
    assert {a.plan.levels for a in table} == {
        ("target",),
        ("draft", "target"),
        ("mid", "target"),
        ("draft", "mid", "target"),
    }
    kept = [a for a in table if a.keeps]
    assert kept == table[: len(kept)] and [a.per_hour for a in kept] == sorted(a.per_hour for a in kept)
    prices = {"draft": 1.0, "mid": 1.0, "target": 4.0}
    for a in kept:
        assert a.per_token <= 0.03 and max(a.utilisation) <= LOAD.bound
        assert a.per_hour == sum(prices[n] * r for n, r in zip(a.plan.levels, a.replicas, strict=True))
        assert a.per_million == pytest.approx(a.per_hour / 3600 / (8 * 64) * 1e6)
        assert a.in_flight == pytest.approx(8 * 64 * a.per_token, rel=0.02)


def test_one_replica_fewer_does_not_do() -> None:
    best = advise(offers(), LOAD)[0]
    assert max(best.replicas) > 1
    for name, count in zip(best.plan.levels, best.replicas, strict=True):
        if count > 1:
            fewer = {**dict(zip(best.plan.levels, best.replicas, strict=True)), name: count - 1}
            assert not priced(offers(), fewer, LOAD).keeps


def test_what_no_replicas_can_do_is_said() -> None:
    assert not any(a.keeps for a in advise(offers(), replace(LOAD, per_token=0.004)))


def test_levels_that_never_agree_are_not_paid_for() -> None:
    assert advise(offers(0.02, 0.03), replace(LOAD, per_token=None))[0].plan.levels == ("target",)


def test_a_load_ten_times_as_large_costs_ten_times_as_much_at_most() -> None:
    small, large = advise(offers(), replace(LOAD, rate=10))[0], advise(offers(), replace(LOAD, rate=100))[0]
    assert 6 * small.per_hour <= large.per_hour <= 10 * small.per_hour, "whole replicas waste less of a large one"


def test_faster_tokens_cost_more() -> None:
    points = frontier(offers(), LOAD, points=5)
    assert len(points) >= 3
    assert [p.per_token for p in points] == sorted((p.per_token for p in points), reverse=True)
    assert [p.per_hour for p in points] == sorted(p.per_hour for p in points)


def test_the_advice_keeps_its_word_in_the_simulator_and_beats_equal_replicas() -> None:
    load = Load(16, 48, 32, 0.028)
    best = verified(offers(), load)[0]
    assert best.keeps and best.simulated is not None and best.simulated <= 0.028
    assert best.per_token == pytest.approx(best.simulated, rel=0.25)
    count = next(
        n
        for n in range(1, 20)
        if rehearse(offers(), priced(offers(), dict.fromkeys(best.plan.levels, n), load), load).per_token_mean <= 0.028
    )
    assert best.per_hour < priced(offers(), dict.fromkeys(best.plan.levels, count), load).per_hour


@pytest.mark.parametrize(
    ("wrong", "field"), [({"rate": 0}, "rate"), ({"tokens": -1}, "tokens"), ({"bound": 1.2}, "bound")]
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        replace(LOAD, **wrong)
