"""A stub engine with a memory like KV: what is at a position follows from the text up to there, and is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from specrouter_core.prefix import Text
from specrouter_level.codec import Array, Layout, Part
from specrouter_level.engine import Drawn, Span, StepCost
from specrouter_level.stub import StubEngine


class Remembering(StubEngine):
    """``seconds``: that its curve says a token costs, so that restoring seems worth it. ``dim``: of a head."""

    def __init__(self, *, slots: int = 4, max_length: int = 1024, seconds: float = 0.01, dim: int = 16) -> None:
        super().__init__(
            name="target", agreement=1.0, costs=(), max_length=max_length, slots=slots, max_rows=max_length
        )
        self.info = replace(self.info, costs=(StepCost(64, 64 * seconds),))
        self.memory = self
        self.layout = Layout("float32", (Part("k.0", 2, dim), Part("v.0", 1, dim)), "test")
        self.kept = [np.zeros((slots, part.heads, max_length, part.dim), np.float32) for part in self.layout.parts]

    def read(self, slot: int, begin: int, end: int) -> list[Array]:
        return [part[slot, :, begin:end].copy() for part in self.kept]

    def write(self, slot: int, begin: int, block: Sequence[Array]) -> None:
        for part, new in zip(self.kept, block, strict=True):
            part[slot, :, begin : begin + new.shape[1]] = new

    def step(self, spans: Sequence[Span]) -> list[Drawn]:
        for span in spans:
            right = expected(list(span.text), self.layout)
            for part, want in zip(self.kept, right, strict=True):
                held = part[span.slot, :, : span.start]
                assert np.array_equal(held, want[:, : span.start]), f"slot {span.slot} is not what its text makes"
                part[span.slot, :, span.start : len(span.text)] = want[:, span.start :]
        return super().step(spans)


def expected(tokens: list[int], layout: Layout) -> list[Array]:
    """What belongs to a text."""
    hashes = np.array([value % 2**20 for value in Text(tokens).hashes[1:]], np.float32)
    return [
        hashes[None, :, None] + np.arange(part.heads * part.dim, dtype=np.float32).reshape(part.heads, 1, part.dim)
        for part in layout.parts
    ]
