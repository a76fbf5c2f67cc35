"""The core does no I/O and needs numpy at most; prefix hashes and records round-trip."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_core.prefix import START, Text
from specrouter_core.record import pack, unpack

IMPORT_ALL = """
import pkgutil, sys, specrouter_core
for m in pkgutil.iter_modules(specrouter_core.__path__, "specrouter_core."):
    __import__(m.name)
print(" ".join(sorted({n.split(".")[0] for n in sys.modules})))
"""


def test_the_core_imports_nothing_but_numpy() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(run.stdout.split())
    assert "numpy" in loaded
    foreign = {"torch", "grpc", "asyncio", "google", "redis", "pydantic", "transformers", "socket", "threading"}
    # numpy itself may load threading; nothing of ours may name it
    assert not loaded & (foreign - {"threading", "socket"})


ids = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(ids, ids)
def test_a_hash_names_a_prefix(a: list[int], b: list[int]) -> None:
    x, y = Text(a), Text(b)
    assert x.hashes[0] == START and len(x.hashes) == len(a) + 1
    n = x.shared(b)
    assert a[:n] == b[:n] and (n == min(len(a), len(b)) or a[n] != b[n])
    assert x.hashes[: n + 1] == y.hashes[: n + 1]
    if n < min(len(a), len(b)):
        assert x.hashes[n + 1] != y.hashes[n + 1]
    assert x.holds(n, y.hashes[n]) and not x.holds(len(a) + 1, 0)


@given(ids, ids, st.integers(0, 40))
def test_truncate_then_extend_is_the_hash_of_the_result(a: list[int], b: list[int], n: int) -> None:
    x = Text(a)
    x.truncate(min(n, len(a)))
    x.extend(b)
    assert x.hashes == Text(a[:n] + b).hashes


@given(ids)
def test_pack_round_trips(tokens: list[int]) -> None:
    assert unpack(pack(tokens)) == tokens


def test_what_cannot_be_packed_or_unpacked_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^tokens:"):
        unpack(b"12345")
    with pytest.raises(OverflowError):
        pack([2**32])
