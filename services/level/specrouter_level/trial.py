"""Whether a model gives through our cache and attention what it gives by itself."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from specrouter_level import attention
from specrouter_level.kv import KV, Piece, Step
from specrouter_level.weights import RefusedModelError

LENGTH = 24  # tokens of the trial, more if a short sliding window must be passed
LONGEST = 512  # a longer window is compared by its size alone
# Difference of logits as part of their own spread (standard deviations): rounding is below, a wrong mask far above.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}
LAYER_TYPES = {"full_attention", "sliding_attention"}
ROPES_OF_LENGTH = {"dynamic", "longrope"}  # frequencies that change with the length of the batch


def text_config(model: nn.Module) -> Any:
    """The configuration of the decoder, also where it is part of a larger one."""
    config: Any = model.config
    return config.get_text_config()


def _window(config: Any, layer: int) -> int | None:
    """The sliding window the configuration gives layer ``layer``, or None."""
    types = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    if types is not None:
        return window if types[layer] == "sliding_attention" else None
    return window


def refuse_by_config(model: nn.Module, max_length: int, exactness: str) -> None:
    """Raise RefusedModelError for what the trial could not notice."""
    config = text_config(model)
    odd = set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES
    if odd:
        raise RefusedModelError(f"config.json: layer_types: not supported: {', '.join(sorted(odd))}")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise RefusedModelError(f"{type(model).__name__}: its forward takes no logits_to_keep")
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(value for value in ropes.values() if isinstance(value, dict))]:
        original: int = (
            rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", 0) or 0
        )
        if rope.get("rope_type") in ROPES_OF_LENGTH and max_length > original:
            raise RefusedModelError(
                f"config.json: rope_parameters: {rope['rope_type']} changes with the length of the text;"
                f" max_length must be at most {original}"
            )
    last: int = getattr(config, "max_position_embeddings", None) or max_length
    if max_length > last:
        raise RefusedModelError(f"max_length: {max_length}: the model's positions end at {last}")
    experts = max(getattr(config, name, 0) or 0 for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    if exactness == "bitwise" and experts > 1:
        raise RefusedModelError("exactness: bitwise: experts see row counts that vary; use shape")


def prompt(model: nn.Module, max_length: int) -> Tensor:
    """The trial's token ids, int64 [1, n]."""
    config = text_config(model)
    window = getattr(config, "sliding_window", None) or 0
    length = min(max(LENGTH, window + 8 if window <= LONGEST else 0), max_length)
    generator = torch.Generator().manual_seed(5)
    device = next(model.parameters()).device
    return torch.randint(0, config.vocab_size, (1, length), generator=generator).to(device)


def plain(model: nn.Module, ids: Tensor) -> Tensor:
    """The model's own logits, float32 [n, vocabulary]."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0].float()


def _run(model: nn.Module, step: Step, ids: Tensor, positions: Tensor) -> Tensor:
    """Logits of a pass through our path, float32 [rows, vocabulary]."""
    try:
        with attention.running(step):
            output: Any = model(input_ids=ids, position_ids=positions, past_key_values=step, use_cache=True)
    except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError) as error:
        # It asks the cache or the attention for what other kinds of models need.
        raise RefusedModelError(f"{type(model).__name__}: does not run over a level's cache: {error}") from error
    logits: Tensor = output.logits[0]
    return logits.float()


def compare(model: nn.Module, kv: KV, ids: Tensor, want: Tensor) -> None:
    """Run ``ids`` through our path, in parts and in two slots, against ``want``.

    Raises RefusedModelError if a logit differs by more than rounding, or the model's attention is not ours to replace.
    """
    config, length = text_config(model), ids.shape[1]
    cuts = [0, length - 6, length - 5, length]
    for slots in ([0], list(range(min(2, kv.slots)))):
        for begin, end in itertools.pairwise(cuts):
            rows = end - begin
            pieces = [Piece(slot, i * rows, rows, begin, rows, end) for i, slot in enumerate(slots)]
            step = Step(kv, pieces, rows * len(slots))
            positions = torch.arange(begin, end, device=ids.device)[None].repeat(1, len(slots))
            got = _run(model, step, ids[:, begin:end].repeat(1, len(slots)), positions).view(len(slots), rows, -1)
            for layer in range(config.num_hidden_layers):
                if layer not in step.windows or layer not in kv.keys:
                    raise RefusedModelError(
                        f"{type(model).__name__}: layer {layer} does not use the attention interface"
                    )
                if step.windows[layer] != _window(config, layer):
                    raise RefusedModelError(f"{type(model).__name__}: layer {layer}: sliding window not passed on")
            difference = float((got - want[begin:end]).std() / want.std())
            if not difference <= TOLERANCE[_dtype(model)]:
                raise RefusedModelError(
                    f"{type(model).__name__}: logits differ from the plain model's by {difference:.2g} of their spread"
                )


def _dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's weights."""
    return next(model.parameters()).dtype
