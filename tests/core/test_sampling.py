"""A draw is an exact sample of the processed distribution, and the rules come in the documented order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from specrouter_core.sampling import Sampling, draw, penalise, survivors


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


LOGITS = np.asarray([2.0, 1.0, 0.5, 0.0, -1.0, 1.9, -3.0, 0.4], dtype=np.float32)


@pytest.mark.parametrize(
    "kw",
    [dict(), dict(temperature=0.7), dict(top_k=3), dict(top_p=0.8), dict(min_p=0.3), dict(top_p=0.9, temperature=1.5)],
)
def test_draws_over_seeds_follow_the_softmax_of_the_survivors(kw: dict[str, Any]) -> None:
    ids, scores = survivors(LOGITS, Sampling(**kw))
    want = softmax(scores) * 4000
    got = np.bincount([draw(LOGITS, [0], 1, Sampling(seed=s, **kw)) for s in range(4000)], minlength=len(LOGITS))
    assert got.sum() == got[ids].sum()
    assert stats.chisquare(got[ids], want).pvalue > 1e-3


def test_draws_over_positions_follow_the_softmax_too() -> None:
    got = np.bincount([draw(LOGITS, [0] * n, 1, Sampling(seed=5)) for n in range(1, 3001)], minlength=len(LOGITS))
    assert stats.chisquare(got, softmax(LOGITS.astype(float)) * 3000).pvalue > 1e-3


def test_temperature_0_is_argmax_without_noise_and_the_smallest_id_wins_a_tie() -> None:
    logits = np.asarray([0.0, 3.0, 3.0], dtype=np.float32)
    assert {draw(logits, [0], 1, Sampling(seed=s, temperature=0)) for s in range(50)} == {1}


def test_penalties_count_generated_tokens_and_repetition_the_prompt_too() -> None:
    s = Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    out = penalise(LOGITS, [0, 4, 1, 1], 2, s)
    want = LOGITS.copy()
    want[0] /= 2
    want[4] *= 2
    want[1] = 1.0 / 2 - 0.5 - 0.25 * 2
    assert out == pytest.approx(want, rel=1e-6)


def test_bias_comes_before_the_penalties_and_the_temperature() -> None:
    out = penalise(LOGITS, [3], 1, Sampling(logit_bias={3: 4.0, 10**6: 5.0}, repetition_penalty=2.0))
    assert out[3] == pytest.approx(2.0)
    assert draw(LOGITS, [0], 1, Sampling(temperature=0, logit_bias={6: 100.0})) == 6
    assert draw(LOGITS, [0], 1, Sampling(temperature=0, logit_bias={0: -100.0})) == 5


def test_top_k_keeps_ties_and_top_p_takes_the_smallest_reaching_set() -> None:
    tied = np.asarray([1.0, 1.0, 1.0, 0.0], dtype=np.float32)
    assert survivors(tied, Sampling(top_k=2))[0].tolist() == [0, 1, 2]
    p = np.log(np.asarray([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    assert survivors(p, Sampling(top_p=0.6))[0].tolist() == [0, 1]
    assert survivors(p, Sampling(top_p=0.4))[0].tolist() == [0]
    assert survivors(p, Sampling(top_p=1e-9))[0].tolist() == [0]
    assert survivors(p, Sampling(min_p=0.2))[0].tolist() == [0, 1, 2]
    assert survivors(p, Sampling(top_k=3, top_p=0.99, min_p=0.4))[0].tolist() == [0, 1]


@given(st.integers(0, 2**64 - 1), st.floats(0.1, 2), st.floats(0.01, 1), st.integers(0, 8))
def test_a_draw_is_always_a_survivor(seed: int, temperature: float, top_p: float, top_k: int) -> None:
    s = Sampling(seed=seed, temperature=temperature, top_p=top_p, top_k=top_k)
    assert draw(LOGITS, [1, 2], 1, s) in survivors(LOGITS, s)[0]


def test_coupled_draws_agree_between_the_bounds_of_total_variation() -> None:
    """(1 - TV) / (1 + TV) <= agreement <= 1 - TV (Daliri, Musco, Suresh, arXiv 2408.07978)."""
    rng = np.random.default_rng(1)
    other = (LOGITS + rng.normal(0, 0.8, LOGITS.size)).astype(np.float32)
    tv = 0.5 * np.abs(softmax(LOGITS.astype(float)) - softmax(other.astype(float))).sum()
    n = 6000
    same = np.mean([draw(LOGITS, [0], 1, Sampling(seed=s)) == draw(other, [0], 1, Sampling(seed=s)) for s in range(n)])
    slack = 3 * np.sqrt(0.25 / n)
    assert (1 - tv) / (1 + tv) - slack <= same <= 1 - tv + slack


@pytest.mark.parametrize(
    ("kw", "field"),
    [
        (dict(seed=-1), "seed"),
        (dict(seed=2**64), "seed"),
        (dict(temperature=-0.1), "temperature"),
        (dict(temperature=float("nan")), "temperature"),
        (dict(temperature=2.1), "temperature"),
        (dict(top_p=0), "top_p"),
        (dict(top_p=1.1), "top_p"),
        (dict(top_p=float("nan")), "top_p"),
        (dict(top_k=-1), "top_k"),
        (dict(min_p=-0.1), "min_p"),
        (dict(repetition_penalty=0), "repetition_penalty"),
        (dict(presence_penalty=3), "presence_penalty"),
        (dict(frequency_penalty=float("inf")), "frequency_penalty"),
        (dict(logit_bias={1: 101.0}), "logit_bias"),
        (dict(logit_bias={-1: 1.0}), "logit_bias"),
        (dict(logit_bias={i: 1.0 for i in range(301)}), "logit_bias"),
    ],
)
def test_a_value_out_of_bounds_names_its_field(kw: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        Sampling(**kw)
