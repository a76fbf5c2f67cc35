"""Attention over our own cache, as a transformers attention function.

A pass is one flat sequence of rows; each piece of it attends to its own slot. transformers finds
``attend`` by NAME; as no mask function has that name, it builds no mask of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from specrouter_level.kv import BLOCK, Piece, Step
from specrouter_level.weights import RefusedModelError

NAME = "specrouter"
PACKED_BELOW = 64  # rows; shorter pieces lay the query heads of one key head out as rows: no key is read twice

_step: ContextVar[Step] = ContextVar("specrouter_step")

# What models pass that changes nothing here; anything else they pass must be None or False.
_HARMLESS = frozenset({"dropout", "position_ids", "use_cache", "cache_position", "past_key_values", "is_causal"})


@contextmanager
def running(step: Step) -> Iterator[None]:
    """Make ``step`` the one that ``attend`` works on, in this thread."""
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention of the rows ``query``, [1, heads, rows, dim], each over its own slot's cache.

    Returns [1, rows, heads, value_dim]; rows of no piece are zero. Raises RefusedModelError for an argument it does
    not know.
    """
    step = _step.get()
    if attention_mask is not None or not _HARMLESS.issuperset(kwargs):
        _refuse_unknown({"attention_mask": attention_mask, **kwargs})
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # every transformers attention has one
    step.windows[layer] = sliding_window
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if len(step.pieces) == 1 and step.pieces[0].rows == step.rows:
        return _piece(step, 0, layer, query, scale, sliding_window, softcap).unsqueeze(0), None
    shape = step.kv.shapes[layer]
    out = query.new_zeros(1, step.rows, query.shape[1], shape.value_dim)
    for index, piece in enumerate(step.pieces):
        rows = slice(piece.first, piece.first + piece.rows)
        out[0, rows] = _piece(step, index, layer, query[:, :, rows], scale, sliding_window, softcap)
    return out, None


def _refuse_unknown(arguments: dict[str, object]) -> None:
    """Raise RefusedModelError if any argument that could change the result is given."""
    given = [k for k, v in arguments.items() if k not in _HARMLESS and v is not None and v is not False]
    if given:
        raise RefusedModelError(f"attention: arguments not supported: {', '.join(given)}")


def _piece(
    step: Step, index: int, layer: int, query: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """One piece: query [1, heads, rows, dim] to [rows, heads, value_dim]."""
    piece = step.pieces[index]
    heads, rows = query.shape[1], piece.rows
    low = 0 if window is None else max(0, piece.start - window + 1)
    if piece.span > piece.start + rows:  # shapes may depend on the position alone, in blocks
        low -= low % BLOCK
    groups = step.kv.shapes[layer].heads
    keys = step.kv.keys[layer][piece.slot : piece.slot + 1, :, low : piece.span]
    values = step.kv.values[layer][piece.slot : piece.slot + 1, :, low : piece.span]
    packed = rows < PACKED_BELOW or softcap is not None
    mask = _mask(step, index, low, window, heads // groups if packed else 1, query.dtype)
    if not packed:
        out = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scale, enable_gqa=heads > groups
        )
        return out[0].transpose(0, 1)
    query = query.reshape(1, groups, -1, query.shape[-1])
    if softcap is None:
        out = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    else:
        scores = torch.tanh(query @ keys.transpose(-1, -2) * (scale / softcap)) * softcap
        scores = scores if mask is None else scores + mask
        out = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ values
    return out.reshape(heads, rows, -1).transpose(0, 1)


def _mask(step: Step, index: int, low: int, window: int | None, repeat: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores, [repeat * rows, span - low], or None where every key counts.

    Made once per pass and kind of layer, shared by the layers.
    """
    piece: Piece = step.pieces[index]
    if piece.rows == 1 and piece.span == piece.start + 1:
        return None
    name = (index, low, piece.span, repeat, window)
    if name not in step.masks:
        device = step.kv.keys[0].device
        here = torch.arange(piece.start, piece.start + piece.rows, device=device)[:, None]
        there = torch.arange(low, piece.span, device=device)[None]
        hidden = there > here
        if window is not None:
            hidden |= there <= here - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)
        step.masks[name] = mask.repeat(repeat, 1) if repeat > 1 else mask
    return step.masks[name]


AttentionInterface.register(NAME, attend)
