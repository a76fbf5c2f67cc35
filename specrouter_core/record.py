"""The part of the recovery record that moves: who owns a sequence, and what is committed.

Prompt, sampling and seed are written once. After that each round appends the committed tokens, on condition
that epoch and round are those expected; nothing is ever rewritten. A record that is read back
must extend what the client was sent.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(slots=True)
class Progress:
    """How far a sequence has come."""

    epoch: int  # counts the owners
    round: int  # counts the commits
    tokens: list[int]  # committed after the prompt

    def check_extends(self, sent: Sequence[int]) -> None:
        """Raises ValueError when what a client was sent is not a prefix of the committed tokens."""
        if self.tokens[: len(sent)] != list(sent):
            raise ValueError(f"tokens: the record's {len(self.tokens)} do not extend the {len(sent)} sent")
