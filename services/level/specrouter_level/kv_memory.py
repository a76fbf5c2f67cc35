"""A slot's keys and values, copied out and in beside the running steps.

On the CPU numpy does it and not torch: a second thread that computes in torch would make OpenMP a second pool, which
slows every step (see ``worker``). On a GPU a stream of its own does it, so that no step waits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specrouter_level.codec import Array, Layout, Part
from specrouter_level.kv import KV

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class KVMemory:
    """See ``engine.Memory``. Made when every layer of ``kv`` is known; ``threads``: that the engine computes with."""

    def __init__(self, kv: KV, device: torch.device, threads: int) -> None:
        parts: list[Part] = []
        tensors: list[Tensor] = []
        for layer in sorted(kv.shapes):
            shape = kv.shapes[layer]
            parts += [Part(f"k.{layer}", shape.heads, shape.key_dim), Part(f"v.{layer}", shape.heads, shape.value_dim)]
            tensors += [kv.keys[layer], kv.values[layer]]
        self.layout = Layout(NAMES[tensors[0].dtype], tuple(parts), _numerics(device, threads))
        self._tensors = tensors
        self._views = [_view(tensor) for tensor in tensors] if device.type == "cpu" else []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._device = device

    def read(self, slot: int, begin: int, end: int) -> list[Array]:
        """See ``engine.Memory``."""
        if self._stream is None:
            return [view[slot, :, begin:end].copy() for view in self._views]
        with torch.inference_mode(), torch.cuda.stream(self._after_steps()):
            return [_view(tensor[slot, :, begin:end].contiguous().cpu()) for tensor in self._tensors]

    def write(self, slot: int, begin: int, block: Sequence[Array]) -> None:
        """See ``engine.Memory``."""
        end = begin + block[0].shape[1]
        if self._stream is None:
            for view, part in zip(self._views, block, strict=True):
                view[slot, :, begin:end] = part
            return
        with torch.inference_mode(), torch.cuda.stream(self._after_steps()):
            for tensor, part in zip(self._tensors, block, strict=True):
                raw = torch.from_numpy(part.view("i2") if tensor.dtype == torch.bfloat16 else part)
                tensor[slot, :, begin:end] = raw.view(tensor.dtype).to(tensor.device)
        self._stream.synchronize()

    def _after_steps(self) -> Any:
        """The stream of its own (GPU), behind the steps that have been given to the GPU."""
        stream: Any = self._stream
        stream.wait_stream(torch.cuda.default_stream(self._device))
        return stream


def _view(tensor: Tensor) -> Array:
    """The same memory as an array; bfloat16 as its 16 bits."""
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy().view("u2")
        return bits
    plain: Array = tensor.numpy()
    return plain


def _numerics(device: torch.device, threads: int) -> str:
    """What the bits of a step depend on besides the model and the shapes."""
    if device.type == "cuda":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, cpu {capability}, MKL {os.environ.get('MKL_CBWR', '')}, {threads} threads"
