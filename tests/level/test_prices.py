"""What a level expects restoring and computing to cost follows what they have cost."""

from __future__ import annotations

import pytest

from specrouter_level.engine import StepCost
from specrouter_level.prices import FIRST_BYTE, LONG, Prices


def test_the_first_measurements_replace_what_was_expected() -> None:
    prices = Prices((StepCost(1, 0.01), StepCost(32, 0.064)))
    assert prices.prefill(100) == pytest.approx(0.2) and prices.restore(10**6) == pytest.approx(1e6 * FIRST_BYTE)
    prices.stepped(64, 0.064)
    prices.restored(10**6, 0.5)
    assert prices.prefill(100) == pytest.approx(0.1) and prices.restore(10**6) == pytest.approx(0.5)
    prices.restored(10**6, 1.5)
    assert prices.restore(10**6) == pytest.approx(1.0)
    for _ in range(20):
        prices.restored(10**6, 2.0)
        prices.stepped(LONG, LONG * 0.003)
    assert prices.restore(10**6) == pytest.approx(2.0, rel=0.02) and prices.prefill(1) == pytest.approx(0.003, rel=0.05)


def test_short_steps_say_nothing_of_prefill_and_declined_restores_are_forgiven() -> None:
    prices = Prices((StepCost(32, 0.032),))
    prices.stepped(LONG - 1, 100.0)
    assert prices.prefill(1) == pytest.approx(0.001)
    prices.restored(10**6, 100.0)
    before = prices.restore(1)
    for _ in range(200):
        prices.declined()
    assert FIRST_BYTE <= prices.restore(1) < before / 20
