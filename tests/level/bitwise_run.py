"""One engine, the same texts one token at a time and in random groups: are KV and logits equal to the bit?

A program for exact.py. Usage: bitwise_run.py DIRECTORY DTYPE QUANTIZATION EXACTNESS; prints JSON: positions compared,
and how many differ.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from specrouter_core.sampling import Sampling
from specrouter_level import torch_engine
from specrouter_level.engine import Params, Span
from specrouter_level.sampler import Request, Result

PROMPTS = (37, 64, 100)  # tokens: part of a chunk, a whole one, more than one
MORE = 40  # tokens after the prompt; the last text passes the first block of 128 keys


class Watched:
    """An engine whose logits are kept by (sequence, position)."""

    def __init__(self, directory: Path, dtype: str, quantization: str, exactness: str) -> None:
        self.engine = torch_engine.load(
            directory, dtype=dtype, quantization=quantization, exactness=exactness, max_length=256, slots=7
        )
        self.logits: dict[tuple[int, int], torch.Tensor] = {}

        def draw(logits: torch.Tensor, requests: Sequence[Request]) -> list[Result]:
            for row, request in zip(logits, requests, strict=True):
                if request.sampling.seed < 100:  # not wrong proposals'
                    self.logits[request.sampling.seed, request.position] = row.clone()
            return original(logits, requests)

        original = self.engine._sampler.draw
        self.engine._sampler.draw = draw  # type: ignore[method-assign]

    def kv(self, slot: int, length: int) -> list[torch.Tensor]:
        parts = (*self.engine._kv.keys.values(), *self.engine._kv.values.values())
        return [part[slot, :, :length].clone() for part in parts]


def span(number: int, slot: int, text: list[int], start: int, draws: int, *, right: bool = True) -> Span:
    params = Params(Sampling(seed=number if right else 100 + number, temperature=0.8), PROMPTS[number])
    return Span(slot, start, text, draws, params)


def one_by_one(watched: Watched, texts: list[list[int]]) -> None:
    for number, text in enumerate(texts):
        watched.engine.step([span(number, number, text[: PROMPTS[number]], 0, 1)])
        for end in range(PROMPTS[number] + 1, len(text) + 1):
            watched.engine.step([span(number, number, text[:end], end - 1, 1)])


def grouped(watched: Watched, texts: list[list[int]], rng: random.Random) -> None:
    """All sequences together, each with as many tokens as chance says; some wrong, then fed again."""
    held = [0] * len(texts)
    while any(h < len(text) for h, text in zip(held, texts, strict=True)):
        spans, after = [], list(held)
        for number, text in enumerate(texts):
            if held[number] == len(text) or rng.random() < 0.2:
                continue
            inside = held[number] < PROMPTS[number]
            end = min(len(text), held[number] + rng.randint(1, 50 if inside else 11))
            fed, right = list(text[:end]), True
            if not inside and rng.random() < 0.3:  # wrong proposals from some token on
                wrong = rng.randrange(held[number], end)
                fed[wrong:] = [rng.randrange(3, 90) for _ in fed[wrong:]]
                right, end = False, wrong
            draws = min(len(fed) - held[number], max(0, len(fed) - PROMPTS[number] + 1))
            spans.append(span(number, 6 - number, fed, held[number], draws, right=right))
            after[number] = end
        rng.shuffle(spans)
        if spans:
            watched.engine.step(spans)
        held = after
    for number, text in enumerate(texts):  # where a wrong proposal stood, the draws were not kept
        for end in range(PROMPTS[number], len(text) + 1):
            if (number, end) not in watched.logits:
                watched.engine.step([span(number, 6 - number, text[:end], end - 1, 1)])


def main() -> None:
    directory, dtype, quantization, exactness = sys.argv[1:5]
    rng = random.Random(4)
    texts = [[rng.randrange(3, 90) for _ in range(length + MORE)] for length in PROMPTS]
    watched = Watched(Path(directory), dtype, quantization, exactness)
    one_by_one(watched, texts)
    want, kv = watched.logits, [watched.kv(n, len(text)) for n, text in enumerate(texts)]
    differ = kv_differ = 0
    for _ in range(2):
        watched.logits = {}
        grouped(watched, texts, rng)
        differ += sum(not torch.equal(want[at], watched.logits[at]) for at in want)
        for number, text in enumerate(texts):
            pairs = zip(kv[number], watched.kv(6 - number, len(text)), strict=True)
            kv_differ += sum(not torch.equal(one, other) for one, other in pairs)
    json.dump({"positions": 2 * len(want), "logits_differ": differ, "kv_differ": kv_differ}, sys.stdout)


if __name__ == "__main__":
    main()
