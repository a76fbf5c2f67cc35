"""Adaptive routing against static plans through a world that changes; simulated, so the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contest import COSTS, Seen, contest

from phases import PHASES
from specrouter_core.adaptive import Adaptive
from specrouter_core.tables import Member


def adaptive() -> Adaptive:
    return Adaptive([Member(name, costs) for name, costs in COSTS.items()], modes=(True, False))


@pytest.fixture(scope="module")
def lived() -> Iterator[tuple[list[Seen], Adaptive]]:
    yield contest(adaptive, PHASES)


def test_every_phase_is_within_ten_percent_of_its_best_static_plan(lived: tuple[list[Seen], Adaptive]) -> None:
    ratios = {seen.phase.name: round(seen.ratio, 3) for seen in lived[0]}
    assert max(ratios.values()) <= 1.10, ratios


def test_the_target_alone_is_hardly_ever_better(lived: tuple[list[Seen], Adaptive]) -> None:
    """Within 3 % over all phases in which it is the best, and 6 % in one, with what is lost until that is noticed."""
    best = [seen for seen in lived[0] if seen.best == "alone"]
    ratios = {seen.phase.name: round(seen.adaptive / seen.statics["alone"], 3) for seen in lived[0]}
    assert max(ratios.values()) <= 1.06, ratios
    assert best and sum(seen.adaptive for seen in best) <= 1.03 * sum(seen.statics["alone"] for seen in best), ratios


def test_chains_are_changed_seldom(lived: tuple[list[Seen], Adaptive]) -> None:
    """What each phase asks for, exploring, and no flutter besides."""
    for seen in lived[0]:
        assert seen.switches <= 2 * seen.phase.together + 0.06 * seen.rounds, seen.phase.name


def test_predictions_come_true(lived: tuple[list[Seen], Adaptive]) -> None:
    errors = sorted(lived[1].errors)
    assert len(errors) > 20 and errors[len(errors) // 2] <= 0.15


@pytest.mark.parametrize(("hop", "most"), [(0.001, 1.10), (0.005, 1.25)])
def test_long_hops_cost_little_of_that(hop: float, most: float) -> None:
    few = [phase for phase in PHASES if phase.name in ("usual", "draft at 0.2", "load 8", "load 1 again")]
    ratios = {seen.phase.name: round(seen.ratio, 3) for seen in contest(adaptive, few, hop=hop)[0]}
    assert max(ratios.values()) <= most, ratios
