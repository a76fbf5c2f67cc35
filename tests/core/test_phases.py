"""Adaptive routing against static plans through a world that changes; simulated, so the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from phases import COSTS, PHASES, Seen, contest

from specrouter_core.adaptive import Adaptive, Member


def adaptive() -> Adaptive:
    return Adaptive([Member(name, costs) for name, costs in COSTS.items()], modes=(True, False))


@pytest.fixture(scope="module")
def lived() -> Iterator[tuple[list[Seen], Adaptive]]:
    yield contest(adaptive, PHASES)


def test_every_phase_is_within_ten_percent_of_its_best_static_plan(lived: tuple[list[Seen], Adaptive]) -> None:
    ratios = {seen.phase.name: round(seen.ratio, 3) for seen in lived[0]}
    assert max(ratios.values()) <= 1.10, ratios


def test_the_target_alone_is_never_better(lived: tuple[list[Seen], Adaptive]) -> None:
    ratios = {seen.phase.name: round(seen.adaptive / seen.statics["alone"], 3) for seen in lived[0]}
    assert max(ratios.values()) <= 1.03, ratios


def test_chains_are_changed_seldom(lived: tuple[list[Seen], Adaptive]) -> None:
    """What each phase asks for, exploring, and no flutter besides."""
    for seen in lived[0]:
        assert seen.switches <= 2 * seen.phase.together + 0.06 * seen.rounds, seen.phase.name


def test_predictions_come_true(lived: tuple[list[Seen], Adaptive]) -> None:
    errors = sorted(lived[1].errors)
    assert len(errors) > 20 and errors[len(errors) // 2] <= 0.15


@pytest.mark.parametrize("hop", [0.001, 0.005])
def test_hops_do_not_change_that(hop: float) -> None:
    few = [phase for phase in PHASES if phase.name in ("usual", "draft at 0.2", "load 8", "load 1 again")]
    ratios = {seen.phase.name: round(seen.ratio, 3) for seen in contest(adaptive, few, hop=hop)[0]}
    assert max(ratios.values()) <= 1.10, ratios
