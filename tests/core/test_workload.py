"""Arrivals are what was asked for, and a summary counts what happened."""

from __future__ import annotations

from typing import Any

import pytest

from specrouter_core.workload import Arrival, Kind, Outcome, Summary, Workload


def test_arrivals_come_at_the_rate_with_the_mix() -> None:
    work = Workload(4000, 20.0, (10, 30), (5, 9), (Kind(3, 0.1), Kind(1, -0.2)))
    arrivals = work.arrivals(3)
    assert arrivals == work.arrivals(3) != work.arrivals(4)
    assert [a.at for a in arrivals] == sorted(a.at for a in arrivals)
    assert arrivals[-1].at == pytest.approx(200, rel=0.06)
    assert {a.tokens for a in arrivals} == set(range(10, 31)) and {a.prompt for a in arrivals} == set(range(5, 10))
    assert sum(a.ease > 0 for a in arrivals) / 4000 == pytest.approx(0.75, abs=0.03)
    assert all(a.at == 0 for a in Workload(5).arrivals(1))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"requests": 0}, "requests"),
        ({"requests": 1, "rate": 0.0}, "rate"),
        ({"requests": 1, "tokens": (3, 2)}, "tokens"),
        ({"requests": 1, "prompt": (0, 2)}, "prompt"),
        ({"requests": 1, "kinds": (Kind(0),)}, "kinds"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        Workload(**wrong)


def test_a_summary_of_two_requests() -> None:
    chain, alone = ("draft", "target"), ("target",)
    fast = Outcome(Arrival(1.0, 10), first=1.5, end=2.0, tokens=10, rounds=5, switches=1, chains={chain: 8, alone: 2})
    slow = Outcome(Arrival(2.0, 10), first=4.0, end=5.0, tokens=10, rounds=5, chains={chain: 10})
    found = Summary.of([fast, slow], objective=0.2)
    assert found.per_token_mean == pytest.approx(0.2) and found.per_token_p99 == pytest.approx(0.3)
    assert (found.seconds, found.tokens, found.kept, found.goodput) == (4.0, 20, 0.5, 2.5)
    assert found.to_first_p50 == 2.0 and found.switches == 10.0
    assert found.chains == {chain: 0.9, alone: 0.1}
