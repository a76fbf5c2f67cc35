"""The bytes of a written block: what Redis holds, and when it is not believed.

    32 bytes   HMAC-SHA256 with the tenant's key over all that follows up to the payload; zeros without a key
    32 bytes   SHA-256 of the payload
     8 bytes   length of the header, little endian   \
    header     JSON                                   }  this much is a safetensors file
    payload    the tensors                           /

The payload is covered by the HMAC through its SHA-256, so it is read only once. The header is the one safetensors
defines, tensors with dtype, shape and offsets; its ``__metadata__`` says what the block is: model digest, codec, dtype
of the engine, exactness, first and last position, and the block's name, which is made from the text (``block_name``).

A reader knows every byte of the header that it must find, so it compares bytes and parses nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence

import numpy as np

from specrouter_level import codec
from specrouter_level.block_name import DIGITS as NAME_DIGITS
from specrouter_level.codec import Array, Layout

MAC, SUM, LENGTH = 32, 32, 8  # bytes of the fields before the header
FORMAT = "specrouter-kv-1"


class BlobError(Exception):
    """Bytes that are not the block that was asked for. The text is why, in one word: size, mac, header, checksum."""


class Framing:
    """Writes and reads the blocks of one model with one codec. ``key``: the tenant's; empty = none."""

    def __init__(self, layout: Layout, codec_name: str, model_digest: str, positions: int, key: bytes) -> None:
        self._layout = layout
        self._codec = codec_name
        self._key = key
        self._positions = positions
        self._tensors = codec.tensors(layout, codec_name, positions)
        self._meta = {
            "format": FORMAT,
            "model": model_digest,
            "codec": codec_name,
            "dtype": layout.dtype,
            "numerics": layout.numerics,
        }
        self.payload_bytes = sum(tensor.size for tensor in self._tensors)

    @property
    def blob_bytes(self) -> int:
        """Of a written block, within a few bytes (positions have more or fewer digits)."""
        return MAC + SUM + self.payload_bytes + len(self._header("0" * NAME_DIGITS, 0))

    def write(self, block: Sequence[Array], name: str, first: int) -> bytes:
        """The bytes of a block whose first position is ``first``."""
        written = codec.encode(block, self._layout, self._codec)
        payload = b"".join(part.view(np.uint8).reshape(-1).data for part in written)
        checked = hashlib.sha256(payload).digest() + self._header(name, first)
        return self._mac(checked) + checked + payload

    def read(self, data: bytes, name: str, first: int) -> list[Array]:
        """The block. Raises BlobError unless it is exactly the one that was asked for, unharmed."""
        header = self._header(name, first)
        begin = MAC + SUM + len(header)
        if len(data) != begin + self.payload_bytes:
            raise BlobError("size")
        view = memoryview(data)
        if not hmac.compare_digest(view[:MAC], self._mac(view[MAC:begin])):
            raise BlobError("mac")
        if view[MAC + SUM : begin] != header:
            raise BlobError("header")
        payload = view[begin:]
        if hashlib.sha256(payload).digest() != view[MAC : MAC + SUM]:
            raise BlobError("checksum")
        written, at = [], 0
        for tensor in self._tensors:
            flat = np.frombuffer(payload[at : at + tensor.size], dtype=codec.DTYPES[tensor.dtype])
            written.append(flat.reshape(tensor.shape))
            at += tensor.size
        return codec.decode(written, self._layout, self._codec)

    def _mac(self, checked: bytes | memoryview) -> bytes:
        return hmac.digest(self._key, checked, "sha256") if self._key else bytes(MAC)

    def _header(self, name: str, first: int) -> bytes:
        """Length and JSON, padded with spaces to a multiple of 8 as safetensors does."""
        last = first + self._positions - 1
        content: dict[str, object] = {"__metadata__": {**self._meta, "name": name, "positions": f"{first}-{last}"}}
        at = 0
        for tensor in self._tensors:
            content[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": [at, at + tensor.size],
            }
            at += tensor.size
        text = json.dumps(content, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(LENGTH, "little") + text
