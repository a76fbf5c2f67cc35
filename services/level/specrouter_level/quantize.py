"""Weight-only copies of linear layers: int8 with a scale a row, int4 in groups of 32.

The packed products are private operators of torch and exist for some devices only. ``probe`` tries them on a
small layer; a caller falls back from int4 to int8 to plain bfloat16. Activations are bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

GROUP = 32  # weights of a row that share a scale and a zero
KINDS = ("int4", "int8")


class Int8(nn.Module):
    """y = x W^T + b with W = ``weight`` (int8, [out, in]) times ``scale`` (bfloat16, [out])."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        wide = weight.float()
        scale = (wide.abs().amax(1) / 127).clamp_min(1e-12)
        self.register_buffer("weight", (wide / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.bfloat16())
        self.register_buffer("bias", None if bias is None else bias.bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """x: bfloat16 [..., in] to bfloat16 [..., out]."""
        rows = x.reshape(-1, self.in_features)
        y: Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scale)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features)


class Int4(nn.Module):
    """y = x W^T + b with W in groups of 32: q * scale + zero, q of 0 to 15; packed for the CPU."""

    packed: Tensor
    pairs: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        groups = weight.float().view(self.out_features, -1, GROUP)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp_min(1e-8)
        q = ((groups - low) / scale).round().clamp_(0, 15).to(torch.int32).view(self.out_features, -1)
        # The operator wants, by group and row, the scale and the value of q = 8.
        pairs = torch.cat([scale, low + 8 * scale], -1).transpose(0, 1).contiguous().bfloat16()
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1))
        self.register_buffer("pairs", pairs)
        self.register_buffer("bias", None if bias is None else bias.bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """x: bfloat16 [..., in] to bfloat16 [..., out]."""
        rows = x.reshape(-1, self.in_features)
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.pairs)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features)


_LAYERS: dict[str, type[Int8] | type[Int4]] = {"int8": Int8, "int4": Int4}


def probe(kind: str, device: torch.device) -> bool:
    """Whether the packed product of ``kind`` works on ``device`` and agrees with plain arithmetic."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(64, 2 * GROUP, generator=generator)
    x = torch.randn(3, 2 * GROUP, generator=generator).bfloat16()
    try:
        y = _LAYERS[kind](weight.to(device), None)(x.to(device)).float().cpu()
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    want = x.float() @ weight.T
    limit = 0.02 if kind == "int8" else 0.2  # relative; rounding to 4 bits costs about 7 %
    return bool((y - want).norm() <= limit * want.norm())


def best(wanted: str, device: torch.device) -> str:
    """``wanted`` if it works here, else the next coarser to work: int4, int8, none."""
    for kind in KINDS[KINDS.index(wanted) :]:
        if probe(kind, device):
            return kind
    return "none"


def replace_linears(
    model: nn.Module, kind: str, head: nn.Module | None, progress: Callable[[float], None] = lambda _: None
) -> int:
    """Replace every linear layer of ``model`` by its copy; returns how many.

    ``head`` (and any layer int4 cannot pack) becomes int8. A head that shares its weight with the
    embedding gets a copy of its own; the embedding stays.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    for done, (parent, name, child) in enumerate(found):
        fits = child.weight.shape[1] % GROUP == 0 and child.weight.shape[0] % 16 == 0
        layer = Int8 if child is head or not fits else _LAYERS[kind]
        setattr(parent, name, layer(child.weight.detach(), child.bias))
        progress((done + 1) / len(found))
    return len(found)
