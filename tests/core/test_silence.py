"""A lowest level that often has no guess (a lookup): what is learnt of it, and what its chain is predicted to take."""

from __future__ import annotations

import pytest

from specrouter_core.adaptive import Adaptive
from specrouter_core.agreement import Deviation
from specrouter_core.event import NOTHING, Commit
from specrouter_core.planner import Choice
from specrouter_core.tables import Member

COSTS = {"lookup": {1: 0.00001}, "target": {1: 0.060, 2: 0.100, 16: 0.110}}  # seconds of a step by its tokens


def taught(guesses: int, right: int, of: int = 10) -> Adaptive:
    """Rounds in some of which the lookup had a guess, and in some it was right, always for four tokens."""
    adaptive = Adaptive([Member(n, c) for n, c in COSTS.items()], modes=(False,), explore=0.0)
    adaptive.begin("a", 0.0)
    for n in range(600):
        if n % of < right:
            commit = Commit(0, (5,) * 5, ("lookup",) * 5, ({"lookup": 5},) * 4 + ({},))
        else:
            commit = Commit(0, (5,), ("target",), ({"lookup": 6 if n % of < guesses else NOTHING},))
        adaptive.committed("a", commit, 0.1 * n)
    adaptive.changed()
    adaptive.look(60.0)
    return adaptive


def choice(adaptive: Adaptive, levels: int) -> Choice:
    return next(c for c in adaptive.explain() if len(c.plan.levels) == levels)


def test_no_guess_is_a_wrong_one_and_is_counted_besides() -> None:
    adaptive = taught(guesses=4, right=2)
    assert adaptive.agreement.rates("lookup", "target")[0] == pytest.approx(0.2, abs=0.07)
    assert adaptive.agreement.silent("lookup") == pytest.approx(0.6, abs=0.07)
    assert adaptive.agreement.silent("target") == 0.0
    easier, harder = Deviation(shift=1.0), Deviation(shift=-1.0)
    assert adaptive.agreement.silent("lookup", easier) < 0.5 and adaptive.agreement.silent("lookup", harder) > 0.7


def test_a_level_that_always_has_a_guess_is_never_silent() -> None:
    assert taught(guesses=10, right=5).agreement.silent("lookup") == 0.0


def test_silence_costs_a_step_of_one_token_and_a_wrong_guess_one_of_many() -> None:
    silent, wrong = choice(taught(2, 2), 2), choice(taught(10, 2), 2)
    alone = COSTS["target"][1]
    # in 8 of 10 rounds one token in 60 ms, in 2 of 10 five tokens in about 105
    assert silent.model == pytest.approx((0.8 * 0.060 + 0.2 * 0.105) / (0.8 * 1 + 0.2 * 5), rel=0.2)
    assert silent.model < alone
    # the same tokens, each round in about 105 ms
    assert wrong.model == pytest.approx(0.105 / (0.8 * 1 + 0.2 * 5), rel=0.2)
