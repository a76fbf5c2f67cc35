"""Sampling rules: from logits and the text so far to one token.

One documented order, the same on every level:

1. logit bias (added),
2. repetition penalty (over every token of the text, prompt too: a positive logit is divided
   by it, a negative one multiplied; Keskar et al., arXiv 1909.05858), then presence and
   frequency penalty (over generated tokens only: minus ``presence`` once, minus ``frequency``
   times the count, as in OpenAI's API),
3. division by the temperature,
4. top-k (ties with the k-th stay in),
5. top-p (the smallest set of most likely tokens whose probability reaches ``top_p``, of what
   top-k left; equal logits are ordered by id, smallest first),
6. min-p (tokens at least ``min_p`` times as likely as the most likely one).

The draw is the argmax of the surviving logits plus ``noise.gumbel``; at temperature 0 steps
3 to 6 and the noise are left out and the draw is the argmax after the penalties. The
smallest id wins a tie. With coupled noise this argmax is an exact sample of the softmax over the
survivors (Gumbel-max), and the same sample on every level whose logits agree.

Arithmetic: logits are taken as float32, steps 1 and 2 are done in float32, everything after in
float64.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specrouter_core import noise

MAX_LOGIT_BIAS = 300


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one sequence is sampled; fixed for its life.

    Raises ValueError that begins with the field's name when a value is out of bounds.
    """

    seed: int = 0  # 0 .. 2**64-1
    temperature: float = 1.0  # 0 .. 2; 0 takes the most likely token
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0  # (0, 1]
    min_p: float = 0.0  # [0, 1]
    repetition_penalty: float = 1.0  # (0, 2]
    presence_penalty: float = 0.0  # -2 .. 2
    frequency_penalty: float = 0.0  # -2 .. 2
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # id -> -100 .. 100

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, want: str) -> None:
            if not ok:
                raise ValueError(f"{name}: must be {want}, got {getattr(self, name)!r}")

        check("seed", 0 <= self.seed <= noise.SEED_MAX, "an integer of 0 to 2**64-1")
        check("temperature", 0 <= self.temperature <= 2, "0 to 2")
        check("top_k", self.top_k >= 0, "0 (off) or more")
        check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        check("min_p", 0 <= self.min_p <= 1, "0 to 1")
        check("repetition_penalty", 0 < self.repetition_penalty <= 2, "above 0 and at most 2")
        check("presence_penalty", -2 <= self.presence_penalty <= 2, "-2 to 2")
        check("frequency_penalty", -2 <= self.frequency_penalty <= 2, "-2 to 2")
        check("logit_bias", len(self.logit_bias) <= MAX_LOGIT_BIAS, f"at most {MAX_LOGIT_BIAS} entries")
        for token, bias in self.logit_bias.items():
            if token < 0 or not -100 <= bias <= 100:
                raise ValueError(f"logit_bias: needs ids of 0 or more and values of -100 to 100, got {token}: {bias}")

    @property
    def penalised(self) -> bool:
        """Whether the text so far changes the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def penalise(
    logits: NDArray[np.float32], text: Sequence[int], prompt_length: int, sampling: Sampling
) -> NDArray[np.float32]:
    """Steps 1 and 2. ``logits``: float32 [vocabulary]; ``text``: the ids before the drawn one. A new array."""
    out = logits.astype(np.float32, copy=True)
    for token, bias in sampling.logit_bias.items():
        if token < out.size:
            out[token] += np.float32(bias)
    if not sampling.penalised:
        return out
    seen = np.unique(np.asarray(text, dtype=np.int64)) if len(text) else np.empty(0, np.int64)
    penalty = np.float32(sampling.repetition_penalty)
    out[seen] = np.where(out[seen] > 0, out[seen] / penalty, out[seen] * penalty)
    for token, count in Counter(text[prompt_length:]).items():
        out[token] -= np.float32(sampling.presence_penalty) + np.float32(sampling.frequency_penalty) * np.float32(count)
    return out


def survivors(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps 3 to 6 at a temperature above 0.

    Returns the surviving ids, ascending, and their tempered logits, float64.
    """
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    if 0 < sampling.top_k < order.size:
        order = order[scaled[order] >= scaled[order[sampling.top_k - 1]]]
    kept = scaled[order]
    weights = np.exp(kept - kept[0])
    if sampling.top_p < 1:
        before = np.cumsum(weights) - weights
        order = order[before < sampling.top_p * weights.sum()]
    if sampling.min_p > 0:
        limit = scaled[order[0]] + math.log(sampling.min_p)
        order = order[scaled[order] >= limit]
    ids = np.sort(order).astype(np.int64)
    return ids, scaled[ids]


def draw(logits: NDArray[np.float32], text: Sequence[int], prompt_length: int, sampling: Sampling) -> int:
    """The token at position ``len(text)``. ``logits``: float32 [vocabulary], for the text before it."""
    out = penalise(logits, text, prompt_length, sampling)
    if sampling.temperature == 0:
        return int(np.argmax(out))
    ids, scores = survivors(out, sampling)
    return int(ids[np.argmax(scores + noise.gumbel(sampling.seed, len(text), ids))])
