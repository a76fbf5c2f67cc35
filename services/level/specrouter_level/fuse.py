"""Fewer, larger operations in a loaded model, with the same mathematics.

Linear layers that read the same input (query, key, value; gate, up) become one product; RMS norms
become torch's own. Both are recognised by what they do, not by the model's class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Shared:
    """One linear layer's output, split, waiting for the siblings that read their parts of it."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.source: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()


class First(nn.Module):
    """Stands where the first sibling stood: computes all of them, returns its own part."""

    def __init__(self, linear: nn.Module, shared: Shared) -> None:
        super().__init__()
        self.linear = linear
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] to the first part, [..., sizes[0]]."""
        self.shared.parts = self.linear(x).split(self.shared.sizes, -1)
        self.shared.source = x
        return self.shared.parts[0]


class Other(nn.Module):
    """Stands where another sibling stood: returns its part of what First computed."""

    def __init__(self, shared: Shared, part: int) -> None:
        super().__init__()
        self.shared = shared
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """x, the very tensor First was given, to part ``part``. Raises RuntimeError for another tensor."""
        if x is not self.shared.source:
            raise RuntimeError("fused layers were called with different inputs")
        return self.shared.parts[self.part]


class Norm(nn.Module):
    """torch's RMS norm with the weight of another module."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.size = tuple(weight.shape)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size], normalised over its last dimension."""
        return functional.rms_norm(x, self.size, self.weight, self.eps)


def join_siblings(model: nn.Module) -> int:
    """Make one layer of linear layers that read one input; returns how many groups were joined."""
    joined = 0
    for module in list(model.modules()):
        for names in SIBLINGS:
            parts = [getattr(module, name, None) for name in names]
            linears = [part for part in parts if type(part) is nn.Linear]
            biases = [linear.bias is not None for linear in linears]
            if len(linears) != len(names) or any(b != biases[0] for b in biases):
                continue
            whole = nn.Linear(1, 1, bias=biases[0], device="meta")
            whole.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]), requires_grad=False)
            if biases[0]:
                whole.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
            whole.out_features, whole.in_features = whole.weight.shape
            shared = Shared([linear.out_features for linear in linears])
            setattr(module, names[0], First(whole, shared))
            for part, name in enumerate(names[1:], 1):
                setattr(module, name, Other(shared, part))
            joined += 1
    return joined


def replace_norms(model: nn.Module) -> int:
    """Put torch's RMS norm where a module computes the same; returns how many were replaced."""
    replaced = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm") and (norm := _same_norm(child)) is not None:
                setattr(module, name, norm)
                replaced += 1
    return replaced


def _same_norm(module: nn.Module) -> Norm | None:
    """A Norm that agrees with ``module`` on random input to rounding, or None."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, weight.shape[0], generator=generator).to(weight.device, weight.dtype) * 3
    want = module(x).float()
    tolerance = 4 * torch.finfo(weight.dtype).eps * want.abs().amax()
    for candidate in (weight.detach(), 1 + weight.detach()):  # Gemma's norms scale by one plus the weight
        norm = Norm(candidate, eps)
        if (norm(x).float() - want).abs().amax() <= tolerance:
            return norm
    return None
