"""The keys and values of every slot, and one step's view of them.

Memory is allocated once. How much of a slot counts is not kept here: each span of a step says
where it starts, so a rollback costs nothing, and what lies behind is overwritten or masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128  # positions; the length of a slot is a multiple of it
SCATTER_FROM = 4  # pieces from which one indexed write is cheaper than a write per piece


@dataclass(frozen=True, slots=True)
class Shape:
    """One layer's part of the cache, for one position."""

    heads: int  # key-value heads
    key_dim: int
    value_dim: int


class KV:
    """``keys[layer]``: [slots, heads, length, key_dim]; ``values[layer]`` likewise. Zeros at first, always finite.

    A layer's memory is set aside when its first keys come, in the trial at load, and never again.
    """

    def __init__(self, slots: int, length: int) -> None:
        self.slots = slots
        self.length = -(-length // BLOCK) * BLOCK
        self.shapes: dict[int, Shape] = {}
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def add(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Set aside the memory of a layer with such keys and values, [1, heads, rows, dim]."""
        heads = key.shape[1]
        self.shapes[layer] = Shape(heads, key.shape[-1], value.shape[-1])
        self.keys[layer] = key.new_zeros(self.slots, heads, self.length, key.shape[-1])
        self.values[layer] = value.new_zeros(self.slots, heads, self.length, value.shape[-1])

    @property
    def bytes(self) -> int:
        """Memory that is set aside; the system hands it out when it is first written."""
        parts = (*self.keys.values(), *self.values.values())
        return sum(part.numel() * part.element_size() for part in parts)


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a step that belong to one slot and look at the same keys."""

    slot: int
    first: int  # its first row in the step
    rows: int
    start: int  # position of that row
    stored: int  # rows written to the slot; the rest is padding
    span: int  # positions looked at, from 0: start + rows, or more (then masked)


class Step:
    """The cache as the model sees it during one pass: transformers calls ``update`` in every layer."""

    def __init__(self, kv: KV, pieces: Sequence[Piece], rows: int) -> None:
        self.kv = kv
        self.pieces = tuple(pieces)
        self.rows = rows  # of the pass; those of no piece are padding
        self.windows: dict[int, int | None] = {}  # by layer, as the model asked of the attention
        self.masks: dict[tuple[int, int, int, int, int | None], Tensor] = {}
        self._index: tuple[Tensor, Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write the rows' keys and values, [1, heads, rows, dim], to their slots; returns them unchanged."""
        if layer not in self.kv.keys:
            self.kv.add(layer, key, value)
        keys, values = self.kv.keys[layer], self.kv.values[layer]
        if len(self.pieces) < SCATTER_FROM:
            for piece in self.pieces:
                end, last = piece.start + piece.stored, piece.first + piece.stored
                keys[piece.slot, :, piece.start : end] = key[0, :, piece.first : last]
                values[piece.slot, :, piece.start : end] = value[0, :, piece.first : last]
        else:
            rows, slots, positions = self._scatter(key.device)
            keys[slots, :, positions] = key[0].transpose(0, 1)[rows]
            values[slots, :, positions] = value[0].transpose(0, 1)[rows]
        return key, value

    def _scatter(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Row, slot and position of every stored row; int64, made once per step."""
        if self._index is None:
            triples = [(p.first + i, p.slot, p.start + i) for p in self.pieces for i in range(p.stored)]
            table = torch.tensor(triples, dtype=torch.int64).to(device)
            self._index = (table[:, 0], table[:, 1], table[:, 2])
        return self._index
