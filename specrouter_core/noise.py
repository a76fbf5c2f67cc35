"""Coupled noise: the same random number for the same (seed, position, token) everywhere.

Normative definition. All integers are unsigned, 64 bits wide, and wrap; ``>>`` shifts in zeros.

    mix(z):   z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
              z = (z ^ (z >> 27)) * 0x94D049BB133111EB
              return z ^ (z >> 31)
    key       = mix(mix(seed + GOLDEN) ^ (position * ODD + GOLDEN))
    bits(v)   = mix(key + (v + 1) * GOLDEN)
    uniform   = ((bits >> 12) + 0.5) / 2**52         exact in IEEE double, never 0 or 1
    gumbel    = -log(-log(uniform))                  IEEE double, each log within one ulp
    GOLDEN    = 0x9E3779B97F4A7C15,  ODD = 0xD1342543DE82EF95

``mix`` is the finalizer of SplitMix64 (Steele, Lea, Flood 2014) and ``bits`` over v is that
generator's stream from ``key``. ``position`` is the absolute index of the drawn token in
the sequence, the first token of the prompt being 0. The key is a few integer operations per
position; the work per token id is three multiplications and the two logarithms.

Only integer arithmetic decides the uniform, so it has the same bits on every device. The two
logarithms may differ in the last place between mathematics libraries; a draw changes by that
only when two scores tie to 1e-15.

``tests/core/noise_vectors.json`` holds values for implementations in other languages.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
ODD = 0xD1342543DE82EF95
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB
MASK = 0xFFFFFFFFFFFFFFFF
SEED_MAX = MASK


def mix(z: int) -> int:
    """SplitMix64's finalizer on one 64-bit integer."""
    z &= MASK
    z = ((z ^ (z >> 30)) * MIX1) & MASK
    z = ((z ^ (z >> 27)) * MIX2) & MASK
    return z ^ (z >> 31)


def key(seed: int, position: int) -> int:
    """The 64-bit key of one position of one sequence."""
    return mix(mix(seed + GOLDEN) ^ ((position * ODD + GOLDEN) & MASK))


def bits(seed: int, position: int, ids: NDArray[np.integer]) -> NDArray[np.uint64]:
    """The 64 random bits of each token id; shape of ``ids``."""
    z = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN) + np.uint64(key(seed, position))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX2)
    return z ^ (z >> np.uint64(31))


def uniform(seed: int, position: int, ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """Uniforms in (0, 1), exact in double; shape of ``ids``."""
    return ((bits(seed, position, ids) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def gumbel(seed: int, position: int, ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """Standard Gumbel noise of each token id; shape of ``ids``, float64."""
    return -np.log(-np.log(uniform(seed, position, ids)))
