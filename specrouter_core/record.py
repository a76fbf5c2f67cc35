"""How the committed tokens stand in the recovery record."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

TOKEN_BYTES = 4


def pack(tokens: Sequence[int]) -> bytes:
    """Token ids as unsigned 32-bit little-endian integers. Raises OverflowError on an id beyond that."""
    packed = array("I", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(data: bytes) -> list[int]:
    """The ids that ``pack`` packed. Raises ValueError when the length is not a multiple of 4 bytes."""
    if len(data) % TOKEN_BYTES:
        raise ValueError(f"tokens: {len(data)} bytes are not a whole number of tokens")
    unpacked = array("I")
    unpacked.frombytes(data)
    if sys.byteorder == "big":
        unpacked.byteswap()
    return unpacked.tolist()
