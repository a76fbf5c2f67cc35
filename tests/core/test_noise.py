"""The noise is the one its definition says, and is noise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from specrouter_core import noise

VECTORS = json.loads(Path(__file__).with_name("noise_vectors.json").read_text())["vectors"]
M = 2**64


def by_hand(seed: int, position: int, token: int) -> int:
    """The definition once more, in plain integers."""

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % M
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % M
        return z ^ (z >> 31)

    golden, odd = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
    key = mix(mix((seed + golden) % M) ^ (position * odd + golden) % M)
    return mix((key + (token + 1) * golden) % M)


@given(st.integers(0, M - 1), st.integers(0, 2**31), st.integers(0, 2**31))
def test_bits_follow_the_definition(seed: int, position: int, token: int) -> None:
    got = noise.bits(seed, position, np.asarray([token]))
    assert int(got[0]) == by_hand(seed, position, token)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['seed']}-{v['position']}")
def test_vectors(vector: dict[str, Any]) -> None:
    seed, position, ids = int(vector["seed"]), vector["position"], np.asarray(vector["ids"])
    assert f"{noise.key(seed, position):016x}" == vector["key"]
    assert [f"{int(b):016x}" for b in noise.bits(seed, position, ids)] == vector["bits"]
    assert [float(u).hex() for u in noise.uniform(seed, position, ids)] == vector["uniform"]
    want = np.asarray([float.fromhex(g) for g in vector["gumbel"]])
    assert np.all(np.abs(noise.gumbel(seed, position, ids) - want) <= 2 * np.spacing(np.abs(want)))


def test_extreme_bits_stay_inside_the_open_interval() -> None:
    low, high = (0 + 0.5) * 2.0**-52, ((2**52 - 1) + 0.5) * 2.0**-52
    assert 0 < low < high < 1
    assert math.isfinite(-math.log(-math.log(low))) and math.isfinite(-math.log(-math.log(high)))


def test_uniforms_are_uniform_over_ids_positions_and_seeds() -> None:
    ids = np.arange(20000)
    for sample in (
        noise.uniform(3, 5, ids),
        np.asarray([noise.uniform(3, p, np.asarray([9]))[0] for p in range(5000)]),
        np.asarray([noise.uniform(s, 5, np.asarray([9]))[0] for s in range(5000)]),
    ):
        assert stats.kstest(sample, "uniform").pvalue > 1e-3


def test_neighbouring_positions_and_seeds_are_independent() -> None:
    ids = np.arange(50000)
    here = noise.uniform(3, 5, ids)
    for other in (noise.uniform(3, 6, ids), noise.uniform(4, 5, ids), noise.uniform(3, 5, ids + 1)):
        assert abs(np.corrcoef(here, other)[0, 1]) < 0.02
