"""Blocks of keys and values as arrays, and how they are written: exact, bf16, fp16 or int8. Needs numpy only.

A block is a list of arrays, one for each part of the layout, [heads, positions, dim], of the engine's own dtype.
numpy has no bfloat16, so those arrays hold its 16 bits as uint16.

    exact   the bytes as they are
    bf16    rounded to nearest even, half of float32's bytes
    fp16    likewise; values beyond 65504 become that
    int8    per channel (head, dim): scale = max |x| over the block's positions / 127, then round(x / scale)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CODECS = ("exact", "bf16", "fp16", "int8")
RAW: dict[str, np.dtype[Any]] = {  # of an engine's dtype, in memory
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
}
SAFETENSORS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
STORED = {"bf16": "bfloat16", "fp16": "float16"}
FP16_MOST = 65504.0
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}  # bytes
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": RAW["float32"],
    "BF16": RAW["bfloat16"],
    "F16": RAW["float16"],
    "I8": np.dtype("i1"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One array of a block: the keys or the values of one layer."""

    name: str  # k.0, v.0, k.1, ...
    heads: int
    dim: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What an engine's blocks are made of."""

    dtype: str  # float32 | bfloat16 | float16
    parts: tuple[Part, ...]
    numerics: str  # what else the last bits depend on: library, processor, threads

    @property
    def position_bytes(self) -> int:
        """Of all parts, for one position."""
        return sum(part.heads * part.dim for part in self.parts) * RAW[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a written block."""

    name: str
    dtype: str  # as safetensors writes it
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        size = SIZES[self.dtype]
        for n in self.shape:
            size *= n
        return size


def tensors(layout: Layout, codec: str, positions: int) -> list[Tensor]:
    """What a block of so many positions is written as, in order."""
    found: list[Tensor] = []
    for part in layout.parts:
        shape = (part.heads, positions, part.dim)
        if codec == "int8":
            found.append(Tensor(f"{part.name}.scale", "F32", (part.heads, 1, part.dim)))
            found.append(Tensor(part.name, "I8", shape))
        else:
            found.append(Tensor(part.name, SAFETENSORS[STORED.get(codec, layout.dtype)], shape))
    return found


def encode(block: Sequence[Array], layout: Layout, codec: str) -> list[Array]:
    """The arrays of ``tensors``, in that order. ``block``: as the module says."""
    if codec == "exact" or STORED.get(codec) == layout.dtype:
        return [np.ascontiguousarray(part) for part in block]
    written: list[Array] = []
    for part in block:
        values = _float32(part, layout.dtype)
        if codec == "int8":
            scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
            written.append(np.ascontiguousarray(scale, dtype=np.float32))
            written.append(np.rint(values / np.where(scale > 0, scale, 1)).astype(np.int8))
        else:
            written.append(_from_float32(values, STORED[codec]))
    return written


def decode(written: Sequence[Array], layout: Layout, codec: str) -> list[Array]:
    """The block that ``encode`` was given, as far as the codec keeps it."""
    if codec == "exact" or STORED.get(codec) == layout.dtype:
        return list(written)
    if codec == "int8":
        pairs = zip(written[::2], written[1::2], strict=True)
        return [_from_float32(values.astype(np.float32) * scale, layout.dtype) for scale, values in pairs]
    return [_from_float32(_float32(part, STORED[codec]), layout.dtype) for part in written]


def _float32(part: Array, dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":
        return (part.astype(np.uint32) << 16).view(np.float32)
    return part.astype(np.float32)


def _from_float32(values: NDArray[np.float32], dtype: str) -> Array:
    if dtype == "float32":
        return np.ascontiguousarray(values)
    if dtype == "float16":
        return values.clip(-FP16_MOST, FP16_MOST).astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)  # to nearest, ties to even
