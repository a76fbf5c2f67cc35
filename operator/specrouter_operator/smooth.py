"""Smoothing of ratios: noise is damped, a jump is followed quickly."""

from __future__ import annotations

import math

LEAST = 1e-6


def smoothed(before: float | None, new: float, *, share: float, quick: float, jump: float) -> float:
    """The next value: ``share`` of the way (as logarithms) from ``before`` to ``new``; ``quick`` of it, where the two
    differ by more than the factor ``jump``. Values are taken as at least ``LEAST``."""
    new = max(new, LEAST)
    if before is None:
        return new
    way = math.log(new / max(before, LEAST))
    return max(before, LEAST) * math.exp((quick if abs(way) > math.log(jump) else share) * way)
