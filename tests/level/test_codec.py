"""How blocks of KV are written, named and checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from specrouter_level import codec
from specrouter_level.blob import MAC, SUM, BlobError, Framing
from specrouter_level.block_name import Namer, tenant
from specrouter_level.codec import Array, Layout, Part

KEY = b"k" * 32
POSITIONS = 64
PARTS = (Part("k.0", 2, 8), Part("v.0", 2, 4), Part("k.1", 1, 8), Part("v.1", 1, 8))


def layout(dtype: str) -> Layout:
    return Layout(dtype, PARTS, "test")


def block(dtype: str, scale: float = 3.0) -> list[Array]:
    rng = np.random.default_rng(7)
    values = [rng.normal(0, scale, (part.heads, POSITIONS, part.dim)).astype(np.float32) for part in PARTS]
    return [codec._from_float32(value, dtype) for value in values]


def framing(dtype: str = "float32", name: str = "exact", key: bytes = KEY, model: str = "m" * 64) -> Framing:
    return Framing(layout(dtype), name, model, POSITIONS, key)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", codec.CODECS)
def test_what_is_read_is_what_was_written_as_far_as_the_codec_keeps_it(dtype: str, name: str) -> None:
    made, frame = block(dtype), framing(dtype, name)
    data = frame.write(made, "n" * 40, 128)
    assert abs(len(data) - frame.blob_bytes) <= 16
    back = frame.read(data, "n" * 40, 128)
    for one, other in zip(made, back, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        if name == "exact" or codec.STORED.get(name) == dtype:
            assert np.array_equal(one, other)
            continue
        want, got = codec._float32(one, dtype), codec._float32(other, dtype)
        most = np.abs(want).max(axis=1, keepdims=True)  # of the channel
        relative = {"bf16": 2**-8, "fp16": 2**-10, "int8": 0.0}[name] + {
            "float32": 0,
            "bfloat16": 2**-8,
            "float16": 2**-10,
        }[dtype]
        step = most / 254 if name == "int8" else 0
        assert np.all(np.abs(want - got) <= step * 1.001 + relative * np.abs(most))


def test_sizes() -> None:
    sizes = {name: framing(name=name).payload_bytes for name in codec.CODECS}
    assert sizes["exact"] == POSITIONS * layout("float32").position_bytes
    assert sizes["bf16"] == sizes["fp16"] == sizes["exact"] // 2
    assert sizes["exact"] // 4 < sizes["int8"] < sizes["exact"] // 3


def test_rounding_to_bfloat16_is_to_nearest_even() -> None:
    values = np.random.default_rng(1).normal(0, 100, 10_000).astype(np.float32)
    want = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view("u2")
    assert np.array_equal(codec._from_float32(values, "bfloat16"), want)


def test_zeros_and_large_values_survive_every_codec() -> None:
    for name in codec.CODECS:
        frame = framing(name=name)
        zeros = [np.zeros_like(part) for part in block("float32")]
        back = frame.read(frame.write(zeros, "n", 0), "n", 0)
        assert all(np.array_equal(one, other) for one, other in zip(zeros, back, strict=True))
        large = [np.full_like(part, 1e6) for part in block("float32")]
        back = frame.read(frame.write(large, "n", 0), "n", 0)
        assert all(np.isfinite(part).all() for part in back)


def test_the_bytes_are_a_safetensors_file() -> None:
    made = block("bfloat16")
    data = framing("bfloat16").write(made, "n", 64)[MAC + SUM :]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header["__metadata__"] == {
        "format": "specrouter-kv-1",
        "model": "m" * 64,
        "codec": "exact",
        "dtype": "bfloat16",
        "numerics": "test",
        "name": "n",
        "positions": "64-127",
    }
    assert header["k.1"]["shape"] == [1, POSITIONS, 8] and header["k.1"]["dtype"] == "BF16"
    plain = framing("float32").write(block("float32"), "n", 64)[MAC + SUM :]
    assert np.array_equal(load(plain)["v.0"], block("float32")[1])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data[:-1], "size"),
        (lambda data: data + b"\0", "size"),
        (lambda data: b"", "size"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "mac"),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "mac"),  # the payload's sum
        (lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], "mac"),  # the header
        (lambda data: data[:-5] + bytes([data[-5] ^ 128]) + data[-4:], "checksum"),
    ],
)
def test_harmed_bytes_are_refused(change: Callable[[bytes], bytes], why: str) -> None:
    data = framing().write(block("float32"), "n", 0)
    with pytest.raises(BlobError, match=why):
        framing().read(change(data), "n", 0)


def test_another_blocks_bytes_are_refused() -> None:
    data = framing().write(block("float32"), "n", 0)
    cases = {
        "another name": (framing(), "o", 0),
        "another place": (framing(), "n", 64),
        "another model": (framing(model="x" * 64), "n", 0),
        "another tenant": (framing(key=b"x" * 32), "n", 0),
        "no key where there was one": (framing(key=b""), "n", 0),
    }
    for what, (reader, name, first) in cases.items():
        with pytest.raises(BlobError):
            reader.read(data, name, first)
            pytest.fail(what)
    unsigned = framing(key=b"").write(block("float32"), "n", 0)
    assert unsigned[:MAC] == bytes(MAC)
    with pytest.raises(BlobError, match="mac"):
        framing().read(unsigned, "n", 0)
    with pytest.raises(BlobError, match="header"):
        framing(key=b"", model="x" * 64).read(unsigned, "n", 0)


def namer(exactness: str = "bitwise", **changes: Any) -> Namer:
    about: dict[str, Any] = {
        "model_digest": "m",
        "codec": "exact",
        "layout": layout("float32"),
        "positions": POSITIONS,
        "key": KEY,
    }
    return Namer(**{**about, "exactness": exactness, **changes})


TEXT = list(range(1, 330))


def test_a_text_has_a_name_for_each_whole_block() -> None:
    names = namer().names(TEXT, 329)
    assert len(names) == 5 == len(set(names))
    other = [*TEXT[:130], 0, *TEXT[131:]]
    assert [a == b for a, b in zip(names, namer().names(other, 329), strict=True)] == [True, True, False, False, False]
    assert namer().names(TEXT[:63], 10) == []


def test_the_end_of_the_prompt_is_part_of_the_names_from_its_block_on() -> None:
    long, short, shorter = (namer().names(TEXT, prompt) for prompt in (329, 150, 149))
    assert long[:2] == short[:2] == shorter[:2]
    assert not set(long[2:]) & set(short[2:]) and not set(short[2:]) & set(shorter[2:])
    assert namer().names(TEXT, 128)[:2] == long[:2] and namer().names(TEXT, 128)[2] != short[2]
    assert namer().names(TEXT[:140], 140) == namer().names(TEXT[:140], 300)  # a prompt that is not whole yet


def test_with_exactness_shape_it_is_not() -> None:
    assert namer("shape").names(TEXT, 329) == namer("shape").names(TEXT, 5)
    assert namer("shape").names(TEXT, 329)[0] != namer().names(TEXT, 329)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"model_digest": "x"},
        {"codec": "int8"},
        {"key": b"x" * 32},
        {"layout": Layout("float32", PARTS, "another processor")},
        {"layout": Layout("bfloat16", PARTS, "test")},
    ],
)
def test_names_differ_with_everything_that_bytes_depend_on(change: dict[str, Any]) -> None:
    assert not set(namer().names(TEXT, 329)) & set(namer(**change).names(TEXT, 329))


def test_tenants() -> None:
    assert tenant(b"") == "open" and tenant(KEY) != tenant(b"x" * 32) and len(tenant(KEY)) == 16
