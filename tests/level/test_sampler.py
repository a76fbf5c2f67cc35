"""The sampler on the device draws what the core's reference draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_core.sampling import Sampling, draw
from specrouter_level.sampler import Request, Sampler

CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**64 - 1)


SAMPLINGS = st.builds(
    Sampling,
    seed=SEEDS,
    temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 3, 50, 10_000]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.5]),
    logit_bias=st.sampled_from([{}, {}, {3: 100.0, 5: -100.0}]),
)


@given(
    st.lists(SAMPLINGS, min_size=1, max_size=4),
    st.integers(1, 2000),
    st.sampled_from(["normal", "flat", "sharp", "ties", "wide"]),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=300)
def test_draws_are_the_cores(samplings: list[Sampling], vocab: int, kind: str, number: int) -> None:
    rng = np.random.default_rng(number)
    logits = rng.standard_normal((len(samplings), vocab)).astype(np.float32)
    if kind == "flat":
        logits[:] = 1.5
    elif kind == "sharp":
        logits *= 12
    elif kind == "ties":
        logits = np.round(logits)
    elif kind == "wide":
        logits *= 1000
    text = rng.integers(0, vocab, 40).tolist()
    requests = [Request(text, 20 + i, 12, s) for i, s in enumerate(samplings)]
    drawn = Sampler(vocab, CPU).draw(torch.from_numpy(logits.copy()), requests)
    for row, request, result in zip(logits, requests, drawn, strict=True):
        assert result.token == draw(row, text[: request.position], 12, request.sampling)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_confidence_and_probes_are_probabilities(temperature: float) -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(2)) * 3
    requests = [Request([1, 2, 3], 3, 3, Sampling(temperature=temperature), probe=p) for p in (0, 5)]
    plain, probed = Sampler(300, CPU).draw(logits, requests)
    want = (logits / (temperature or 1.0)).softmax(-1)
    assert plain.confidence == pytest.approx(float(want[0].max()), rel=1e-5)
    assert plain.probe == []
    values, ids = want[1].topk(5)
    assert [token for token, _ in probed.probe] == ids.tolist()
    assert [value for _, value in probed.probe] == pytest.approx(values.tolist(), rel=1e-5)


def test_logits_that_are_not_numbers_are_an_error() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 3] = float("nan")
    with pytest.raises(FloatingPointError, match="position 4"):
        Sampler(10, CPU).draw(logits, [Request([1] * 4, 4, 1, Sampling())])


def test_a_batch_leaves_the_callers_logits_alone() -> None:
    logits = torch.randn(2, 50)
    before = logits.clone()
    sampling = Sampling(temperature=0.5, repetition_penalty=1.5, logit_bias={1: 5.0})
    Sampler(50, CPU).draw(logits, [Request([1, 2], 2, 1, sampling), Request([1], 1, 1, Sampling())])
    assert torch.equal(logits, before)
