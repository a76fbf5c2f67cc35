"""The engine's text is transformers' text, greedy and in distribution, for every kind of model."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from small_models import CONFIGS, VOCAB, save
from transformers import AutoModelForCausalLM

from specrouter_core.sampling import Sampling
from specrouter_level import torch_engine
from specrouter_level.engine import Params, Span
from specrouter_level.torch_engine import TorchEngine
from specrouter_local import paths

DEMO = paths.cache() / "models/smollm2-135m-instruct"
GREEDY = Sampling(temperature=0.0)


def generated(directory: Path, prompt: list[int], count: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
    ids = torch.tensor([prompt])
    out: torch.Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def drafted(engine: TorchEngine, prompt: list[int], count: int, chunk: int, slot: int = 0) -> list[int]:
    """Greedy text: the prompt in chunks, then a token a step."""
    text, params = list(prompt), Params(GREEDY, len(prompt))
    for start in range(0, len(prompt), chunk):
        end = min(len(prompt), start + chunk)
        drawn = engine.step([Span(slot, start, text[:end], int(end == len(prompt)), params)])
    while True:
        text += drawn[0].tokens
        if len(text) == len(prompt) + count:
            return text[len(prompt) :]
        drawn = engine.step([Span(slot, len(text) - 1, text, 1, params)])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TorchEngine]:
    directory = save("llama", tmp_path_factory.mktemp("llama"))
    return directory, torch_engine.load(directory, threads=1, max_length=256, slots=16)


@pytest.mark.parametrize("exactness", ["shape", "bitwise"])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_greedy_text_is_transformers(kind: str, exactness: str, tmp_path: Path) -> None:
    directory = save(kind, tmp_path)
    engine = torch_engine.load(directory, threads=1, max_length=256, slots=2, exactness=exactness)
    prompt = [3 + (7 * i * i) % 90 for i in range(75)]
    assert drafted(engine, prompt, 40, chunk=30) == generated(directory, prompt, 40)


@pytest.mark.demo
@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo family is not there")
@pytest.mark.timeout(300)
def test_greedy_text_of_the_demo_model() -> None:
    engine = torch_engine.load(DEMO, max_length=512, slots=2)
    prompt = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018]
    assert drafted(engine, prompt, 32, chunk=512) == generated(DEMO, prompt, 32)


def test_batches_and_verification_give_the_same_tokens(llama: tuple[Path, TorchEngine]) -> None:
    """Eight sequences in one step, at different places, each checking several tokens at once."""
    _, engine = llama
    prompts = [[3 + (i * k + k) % 90 for i in range(20 + 7 * k)] for k in range(1, 9)]
    texts = [prompt + drafted(engine, prompt, 12, 64, slot=i) for i, prompt in enumerate(prompts)]
    params = [Params(GREEDY, len(prompt)) for prompt in prompts]
    # Into fresh slots: prompts but for one token, together; then all the generated tokens at once.
    engine.step([Span(8 + i, 0, p[:-1], 0, params[i]) for i, p in enumerate(prompts)])
    spans = [Span(8 + i, len(prompts[i]) - 1, texts[i][:-1], 12, params[i], probe=3) for i in range(8)]
    for i, drawn in enumerate(engine.step(spans)):
        assert drawn.tokens == texts[i][len(prompts[i]) :]
        assert all(0 < confidence <= 1 for confidence in drawn.confidence)
        for probe, confidence, token in zip(drawn.probes, drawn.confidence, drawn.tokens, strict=True):
            assert probe[0][0] == token and probe[0][1] == pytest.approx(confidence, rel=1e-5)
            assert len(probe) == 3


def test_a_rollback_leaves_no_trace(llama: tuple[Path, TorchEngine]) -> None:
    _, engine = llama
    prompt = [5 + i % 80 for i in range(50)]
    right = drafted(engine, prompt, 10, 64, slot=1)
    params = Params(GREEDY, len(prompt))
    engine.step([Span(2, 0, prompt, 1, params)])
    wrong = [(token + 1) % VOCAB for token in right[:6]]
    checked = engine.step([Span(2, len(prompt), [*prompt, *right[:2], *wrong], 8, params)])[0]
    assert checked.tokens[:2] == right[1:3]
    after = engine.step([Span(2, len(prompt) + 2, [*prompt, *right[:9]], 7, params)])[0]
    assert after.tokens == right[3:10]


def softmax(directory: Path, text: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([text])).logits[0, -1]
        return logits.double().softmax(-1).numpy()


def fits(counts: Counter[int], probability: Callable[[int], float], outcomes: int, draws: int) -> float:
    """Chi-square p-value; outcomes expected fewer than 5 times are put together."""
    expected = np.array([probability(i) * draws for i in range(outcomes)])
    seen = np.array([counts[i] for i in range(outcomes)], dtype=float)
    common = expected >= 5
    seen = np.append(seen[common], seen[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    keep = expected > 0
    return float(stats.chisquare(seen[keep], expected[keep] * seen[keep].sum() / expected[keep].sum()).pvalue)


def test_first_token_has_the_softmax_distribution(llama: tuple[Path, TorchEngine]) -> None:
    directory, engine = llama
    prompt = [3, 14, 15, 92, 65]
    counts: Counter[int] = Counter()
    engine.step([Span(0, 0, prompt, 0, Params(GREEDY, 5))])
    for seed in range(4000):
        params = Params(Sampling(seed=seed, temperature=1.0), len(prompt))
        counts[engine.step([Span(0, 4, prompt, 1, params)])[0].tokens[0]] += 1
    want = softmax(directory, prompt)
    assert fits(counts, lambda i: float(want[i]), VOCAB, 4000) > 1e-3


def test_two_tokens_have_the_joint_distribution(llama: tuple[Path, TorchEngine]) -> None:
    """The first two tokens, sharpened so that few pairs matter, against softmax times conditional softmax."""
    directory, engine = llama
    prompt = [3, 14, 15, 92, 65]
    temperature, draws = 0.5, 3000
    counts: Counter[int] = Counter()
    for begin in range(0, draws, 15):
        seeds = range(begin, begin + 15)
        params = [Params(Sampling(seed=seed, temperature=temperature), 5) for seed in seeds]
        first = engine.step([Span(i, 0, prompt, 1, params[i]) for i in range(15)])
        texts = [[*prompt, drawn.tokens[0]] for drawn in first]
        second = engine.step([Span(i, 5, texts[i], 1, params[i]) for i in range(15)])
        for text, drawn in zip(texts, second, strict=True):
            counts[text[-1] * VOCAB + drawn.tokens[0]] += 1

    def tempered(text: list[int]) -> np.ndarray:
        power = softmax(directory, text) ** (1 / temperature)
        return np.asarray(power / power.sum())

    one = tempered(prompt)
    two = np.stack([tempered([*prompt, i]) if one[i] > 1e-3 else np.full(VOCAB, 1 / VOCAB) for i in range(VOCAB)])
    joint = (one[:, None] * two).reshape(-1)
    assert fits(counts, lambda i: float(joint[i]), VOCAB * VOCAB, draws) > 1e-3
