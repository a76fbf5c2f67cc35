"""Cost curves, agreement and similarity: what is learnt is what was there, and one outlier is not enough."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_core.agreement import PRIOR_RATE, Agreement, Deviation
from specrouter_core.profile import Answered, Curve, Mean, Profile
from specrouter_core.similarity import Similarity, bounds, overlap


def test_a_curve_passes_through_its_calibration_and_is_flat_before_it() -> None:
    curve = Curve.of({1: 0.057, 2: 0.100, 4: 0.085, 8: 0.076, 16: 0.092})
    for rows, seconds in ((1, 0.057), (2, 0.100), (4, 0.085), (8, 0.076), (16, 0.092), (3, 0.0925)):
        assert curve.seconds(rows) == pytest.approx(seconds, rel=1e-6)
    assert curve.seconds(512) > curve.seconds(32) > curve.seconds(16)
    with pytest.raises(ValueError, match=r"^costs:"):
        Curve.of({})


def test_a_level_that_becomes_slower_is_known_within_20_steps_everywhere_on_its_curve() -> None:
    curve = Curve.of({1: 0.010, 8: 0.012})
    for _ in range(20):
        curve.observe(1, 0.050)
    assert curve.seconds(1) == pytest.approx(0.050, rel=0.1)
    assert curve.seconds(8) == pytest.approx(0.060, rel=0.25)


def test_one_stalled_step_moves_a_curve_by_less_than_a_fifth() -> None:
    curve = Curve.of({1: 0.010})
    for _ in range(50):
        curve.observe(1, 0.010)
    curve.observe(1, 3.0)
    assert curve.seconds(1) < 0.012


def test_a_jump_between_rows_is_learnt_from_traffic() -> None:
    rng = random.Random(1)
    curve = Curve()
    for _ in range(3000):
        rows = rng.choice([1, 2, 3, 4, 6, 8])
        curve.observe(rows, (0.010 if rows < 4 else 0.016) * rng.uniform(0.95, 1.05))
    assert curve.seconds(2) == pytest.approx(0.010, rel=0.12)
    assert curve.seconds(6) == pytest.approx(0.016, rel=0.12)


def test_a_mean_forgets_with_time_and_resists_an_outlier() -> None:
    mean = Mean()
    for i in range(40):
        mean.observe(0.001, i * 0.01)
    mean.observe(5.0, 0.5)
    assert mean.value < 0.0013
    for i in range(12):
        mean.observe(0.004, 600 + i)
    assert mean.value == pytest.approx(0.004, rel=0.2)


def test_a_profile_splits_a_reply_into_step_queue_and_hop() -> None:
    """What calls of several steps take beyond a hop lies between their steps, and belongs to them."""
    profile = Profile()
    for i in range(30):
        steps = 1 + i % 2
        between = 0.001 * (steps - 1)
        total = 0.003 + 0.010 * steps + between + 0.0015
        call = Answered(steps=steps, rows=3, fed=3 * steps, batch=1, compute=0.010 * steps, queue=0.003, total=total)
        profile.observe(call, i * 0.03)
    assert profile.curve.seconds(3) == pytest.approx(0.01025, rel=0.03)
    assert profile.queue.value == pytest.approx(0.003, rel=0.05)
    assert profile.hop.value == pytest.approx(0.0015, rel=0.05)


def test_a_step_that_read_a_prompt_does_not_spoil_the_curve() -> None:
    """A call of many steps of which one held another's prompt: its mean says nothing of so many rows."""
    profile = Profile(curve=Curve.of({1: 0.01, 512: 0.1}))
    for i in range(50):
        call = Answered(steps=20, rows=512, fed=550, batch=2, compute=0.3, queue=0.0, total=0.301)
        profile.observe(call, i * 0.3)
    assert profile.curve.seconds(512) == pytest.approx(0.1) and profile.curve.seconds(1) == pytest.approx(0.01)


def test_short_prompts_do_not_make_the_level_look_faster() -> None:
    """32 sequences begin together: the first of 32 steps holds three tokens of each, the others one."""
    costs = {1: 0.035, 16: 0.040, 32: 0.070, 64: 0.135, 128: 0.265}
    profile = Profile(curve=Curve.of(costs))
    compute = profile.curve.seconds(96) + 31 * 0.070
    for i in range(64):
        call = Answered(steps=32, rows=96, fed=96 + 31 * 32, batch=32, compute=compute, queue=0.0, total=compute)
        profile.observe(call, i * 0.1)
    assert profile.curve.seconds(32) == pytest.approx(0.070, rel=0.05)


def test_a_position_keeps_its_place_when_the_pair_changes() -> None:
    agreement, rng = Agreement(), random.Random(3)
    for _ in range(2000):
        for position, p in enumerate((0.9, 0.6)):
            agreement.observe("a", "b", position, rng.random() < p)
    for _ in range(150):
        for position, p in enumerate((0.45, 0.2)):
            agreement.observe("a", "b", position, rng.random() < p)
    rates = agreement.rates("a", "b")
    assert rates[0] > rates[1] + 0.1 and agreement.rate("a", "b") == pytest.approx(0.33, abs=0.12)


def test_agreement_starts_from_its_prior_and_finds_each_positions_rate() -> None:
    agreement = Agreement()
    assert agreement.rate("a", "b") == PRIOR_RATE
    rng = random.Random(2)
    truth = [0.9, 0.7, 0.5]
    for _ in range(3000):
        for position, p in enumerate(truth):
            agreement.observe("a", "b", position, rng.random() < p)
    rates = agreement.rates("a", "b")
    for position, p in enumerate(truth):
        assert rates[position] == pytest.approx(p, abs=0.08)
    assert rates[10] == pytest.approx(agreement.rate("a", "b"))
    assert agreement.rate("b", "a") == PRIOR_RATE, "pairs are ordered"


def test_agreement_follows_a_change() -> None:
    agreement = Agreement()
    for _ in range(2000):
        agreement.observe("a", "b", 0, True)
    for _ in range(1000):
        agreement.observe("a", "b", 0, False)
    assert agreement.rate("a", "b") < 0.12


def test_a_sequences_shift_shrinks_to_the_common_rate() -> None:
    fresh = Deviation()
    assert fresh.apply(0.7) == pytest.approx(0.7)
    fresh.observe(0.7, False)
    assert 0.5 < fresh.apply(0.7) < 0.7, "one observation moves it little"
    hard = Deviation()
    rng = random.Random(3)
    for _ in range(300):
        hard.observe(0.7, rng.random() < 0.2)
    assert hard.apply(0.7) == pytest.approx(0.2, abs=0.1)


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_overlap_bounds_contain_the_truth(seed: int, shown: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet([0.5] * 12), rng.dirichlet([0.5] * 12)

    def probe(x: np.ndarray) -> list[tuple[int, float]]:
        return [(int(v), float(x[v])) for v in np.argsort(-x)[:shown]]

    low, high = overlap(probe(p), probe(q))
    truth = float(np.minimum(p, q).sum())
    assert low - 1e-9 <= truth <= high + 1e-9


def test_similarity_predicts_agreement_inside_its_bounds_and_learns_where() -> None:
    similarity = Similarity()
    assert similarity.agreement("a", "b") is None
    p, q = [(1, 0.6), (2, 0.4)], [(1, 0.4), (2, 0.6)]
    similarity.observe("a", "b", p, q)
    assert similarity.score("b", "a") == pytest.approx(0.8)
    low, high = bounds(0.8)
    for _ in range(200):
        similarity.calibrate("a", "b", low + 0.9 * (high - low))
    assert similarity.agreement("a", "b") == pytest.approx(low + 0.9 * (high - low), abs=0.005)
    with pytest.raises(ValueError, match=r"^probe:"):
        overlap([], q)
