"""What a level is believed to hold of one sequence, and how a call names its prefix by it.

A call names the prefix as (length, hash) of what the level should hold and sends only the rest. The belief is
simple: the committed text as it was at the last call. Whatever is beyond that is sent, a few tokens. A level that
does not hold it says what it has, and the call is sent again; that is hidden from the state machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from specrouter.v1 import level_pb2 as pb
from specrouter_core.prefix import Text

MAX_MISSES = 3  # times in a row that a level may say it does not hold what it said it holds


class Holding:
    """The belief about one level. ``committed`` is the sequence's text; it only grows."""

    __slots__ = ("_committed", "_held", "_misses", "_params")

    def __init__(self, committed: Text, params: pb.SequenceParams) -> None:
        self._committed = committed
        self._params = params
        self._held = 0
        self._misses = 0

    @property
    def held(self) -> int:
        """Tokens that it is believed to hold."""
        return self._held

    def name_prefix(self, message: pb.ExtendCall, length: int, ahead: Sequence[int]) -> None:
        """Write the prefix ``committed[:length] + ahead`` into the message, and believe that it is held."""
        base = min(self._held, length)
        message.base = base
        message.base_hash = self._committed.hashes[base]
        message.suffix.extend(self._committed.tokens[base:length])
        message.suffix.extend(ahead)
        if base == 0:
            message.params.CopyFrom(self._params)
        self._held = length

    def confirm(self) -> None:
        """The level answered."""
        self._misses = 0

    def refused(self) -> None:
        """The level had no room for the sequence: the next call brings it whole, and is no second miss."""
        self._held = self._misses = 0

    def correct(self, held: int, value: int) -> bool:
        """The level holds ``held`` tokens of this hash, not what was named. Returns whether to try again."""
        self._misses += 1
        self._held = held if self._misses == 1 and self._committed.holds(held, value) else 0
        return self._misses < MAX_MISSES
