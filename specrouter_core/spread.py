"""Histograms: how often values fell into each of some buckets, and what quantiles that shows.

Bucket i counts values above ``bounds[i - 1]`` and up to ``bounds[i]``; one more bucket counts what is above the last
bound. Adding a value takes a binary search and two additions: it can be done for every step and every round.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise

_E12 = (1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2)
# Seconds from 0.22 ms to 10 s, each bound about 1.2 times the one before: quantiles are right to 10 %.
SECONDS = (*(float(f"{m}e{d}") for d in range(-4, 1) for m in _E12 if m > 2 or d > -4), 10.0)
COUNTS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 512.0,
          1024.0, 4096.0)  # fmt: skip


class Spread:
    """One histogram. Raises ValueError unless ``bounds`` grow."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        if not bounds or any(b <= a for a, b in pairwise(bounds)):
            raise ValueError(f"bounds: must grow, got {bounds}")
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0  # of all values

    def observe(self, value: float) -> None:
        """Add one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def quantile(parts: Iterable[tuple[Sequence[float], Sequence[float]]], share: float) -> float | None:
    """The value that ``share`` of all values are below. ``parts``: (bounds, counts), whose bounds may differ.

    Between bounds, values are taken as spread evenly; what is above the last bound, as at it. None without values.
    """
    # Density changes at bounds only, so the number of values below is a line between any two neighbours of them.
    steps: dict[float, float] = {}  # bound -> change of density there
    jumps: dict[float, float] = {}  # bound -> values exactly there
    total = 0.0
    for bounds, counts in parts:
        low = 0.0
        for bound, count in zip(bounds, counts, strict=False):
            if count > 0:
                total += count
                if bound > low:
                    density = count / (bound - low)
                    steps[low] = steps.get(low, 0.0) + density
                    steps[bound] = steps.get(bound, 0.0) - density
                else:
                    jumps[bound] = jumps.get(bound, 0.0) + count
            low = max(bound, 0.0)
        if len(counts) > len(bounds) and counts[-1] > 0:
            total += counts[-1]
            jumps[low] = jumps.get(low, 0.0) + counts[-1]
    if total <= 0:
        return None
    wanted, below, density, at = share * total, 0.0, 0.0, 0.0
    for bound in sorted({*steps, *jumps}):
        step = density * (bound - at)
        if below + step >= wanted and density > 0:
            return at + (wanted - below) / density
        below += step + jumps.get(bound, 0.0)
        if below >= wanted:
            return bound
        density += steps.get(bound, 0.0)
        at = bound
    return at
