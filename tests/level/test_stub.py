"""The synthetic language and its levels."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from specrouter_core.sampling import Sampling
from specrouter_level.engine import Drawn, Params, Span, StepCost
from specrouter_level.stub import ALPHABET, STOP_ID, VOCAB_DIGEST, StubEngine, curve, step_seconds

PROMPT = list(b"hello there")


def stub(name: str = "target", agreement: float = 1.0, step_ms: str = "") -> StubEngine:
    return StubEngine(name=name, agreement=agreement, costs=curve(step_ms), max_length=4096, slots=2, max_rows=4096)


def draws(engine: StubEngine, text: Sequence[int], count: int, seed: int = 1, temperature: float = 1.0) -> Drawn:
    params = Params(Sampling(seed=seed, temperature=temperature), prompt_length=1)
    return engine.step([Span(slot=0, start=0, text=text, draws=count, params=params, probe=3)])[0]


def written(engine: StubEngine, count: int, seed: int = 1, temperature: float = 1.0) -> list[int]:
    text = list(PROMPT)
    for _ in range(count):
        text += draws(engine, text, 1, seed, temperature).tokens
    return text


def test_many_draws_at_once_equal_one_at_a_time() -> None:
    text = written(stub(), 200)
    assert draws(stub(), text[:-1], 200).tokens == text[-200:]
    assert set(text[len(PROMPT) :]) <= set(ALPHABET) and STOP_ID not in text


def test_the_seed_matters_except_at_temperature_0() -> None:
    assert written(stub(), 50, seed=1) != written(stub(), 50, seed=2)
    assert written(stub(), 50, seed=1, temperature=0) == written(stub(), 50, seed=2, temperature=0)
    assert written(stub(), 50, seed=1, temperature=0) != written(stub(), 50, seed=1)


@pytest.mark.parametrize("agreement", [0.0, 0.3, 0.8, 1.0])
def test_agreement_is_what_was_asked(agreement: float) -> None:
    text = written(stub(), 3000)
    guesses = draws(stub("draft", agreement), text[:-1], 3000).tokens
    share = sum(a == b for a, b in zip(guesses, text[-3000:], strict=True)) / 3000
    assert abs(share - agreement) <= (0.0 if agreement in (0.0, 1.0) else 0.03)  # 3.5 standard deviations


def test_what_is_easy_for_a_level_is_easy_for_a_better_one_and_misses_differ() -> None:
    text = written(stub(), 1000)
    worse, better = (draws(stub(name, a), text[:-1], 1000).tokens for name, a in (("a", 0.4), ("b", 0.6)))
    places = list(zip(worse, better, text[-1000:], strict=True))
    assert all(y == t for x, y, t in places if x == t)
    misses = [(x, y) for x, y, t in places if y != t]
    assert sum(x == y for x, y in misses) < len(misses) / 10


def test_probes_are_distributions_led_by_the_draw() -> None:
    drawn = draws(stub(), PROMPT, 4)
    assert len(drawn.probes) == 4
    for token, confidence, probe in zip(drawn.tokens, drawn.confidence, drawn.probes, strict=True):
        assert probe[0] == (token, confidence) and len({i for i, _ in probe}) == 3
        assert probe[0][1] >= probe[1][1] and sum(p for _, p in probe) <= 1


def test_every_stub_level_shares_the_vocabulary() -> None:
    assert stub("a").info.vocab_digest == stub("b", 0.2).info.vocab_digest == VOCAB_DIGEST
    assert stub("a").info.model_digest != stub("b").info.model_digest


def test_step_times_follow_the_curve() -> None:
    costs = curve("2:4,4:8,8:10")
    assert costs == (StepCost(2, 0.004), StepCost(4, 0.008), StepCost(8, 0.010))
    seconds = {1: 4, 2: 4, 3: 6, 4: 8, 6: 9, 8: 10, 12: 12}
    assert {rows: step_seconds(costs, rows) * 1000 for rows in seconds} == pytest.approx(seconds)
    assert step_seconds((), 5) == 0 and step_seconds(curve("1:3"), 9) == 0.003
    engine = stub(step_ms="1:30")
    assert not engine.inline and stub().inline
    start = time.perf_counter()
    draws(engine, PROMPT, 1)
    assert time.perf_counter() - start >= 0.03


@pytest.mark.parametrize("text", ["5", "1:", ":3", "a:1", "0:1", "2:1,1:2", "1:-1", "1:nan", "1:2,,"])
def test_a_wrong_curve_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"^step-ms: "):
        curve(text)


def test_a_wrong_agreement_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^agreement: "):
        stub("a", 1.5)
