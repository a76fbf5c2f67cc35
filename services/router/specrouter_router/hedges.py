"""When a call is late, and may be sent to a second replica as well.

Late is what takes longer than 99 of 100 calls of about its size took (tokens drawn, tokens read). The quantile is
followed by steps: up by ``UP`` for a call above it, down by ``DOWN`` for one below, so that it rests where one in about
``UP / DOWN`` lies above. Bounded: each answered call earns ``SHARE`` of a second call, and ``SAVED`` are kept at most.

After J. Dean and L. A. Barroso, "The Tail at Scale", CACM 56(2), 2013.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHARE = 0.02
SAVED = 4.0
UP, DOWN = 0.1, 0.001
FIRST = 2.0  # times the first call of a size, to begin with
ENOUGH = 32  # calls of a size from which on its quantile is believed
LEAST_S = 0.03  # nothing sooner is late
STUCK = 8.0  # times the lateness: the replica is at fault ...
STUCK_S = 3.0  # ... but not before


@dataclass(slots=True)
class _Quantile:
    seconds: float
    calls: int = 1


class Hedges:
    """See the module."""

    def __init__(self) -> None:
        self.sent = 0
        self.won = 0  # by the second replica
        self._saved = SAVED
        self._by_size: dict[tuple[int, int], _Quantile] = {}

    def answered(self, drawn: int, read: int, seconds: float) -> None:
        """A call was answered in full."""
        if self._saved < SAVED:
            self._saved += SHARE
        size = drawn.bit_length(), (read >> 5).bit_length()
        quantile = self._by_size.get(size)
        if quantile is None:
            self._by_size[size] = _Quantile(FIRST * seconds)
            return
        quantile.calls += 1
        quantile.seconds *= 1 + UP if seconds > quantile.seconds else 1 - DOWN

    def late(self, drawn: int, read: int) -> float:
        """Seconds after which a call is late. Of a size that is not known, from the nearest: in proportion."""
        own = drawn.bit_length(), (read >> 5).bit_length()
        late = math.inf
        for (a, b), quantile in self._by_size.items():
            if quantile.calls >= ENOUGH:
                larger = max(own[0] - a, 0) + max(own[1] - b, 0)
                if (a, b) == own:
                    late = quantile.seconds
                    break
                late = min(late, quantile.seconds * 2 ** (larger + 1))
        return max(late, LEAST_S)

    def stuck(self, late: float) -> float:
        """Seconds after which a call is given up where another replica could take it."""
        return max(STUCK * late, STUCK_S)

    def spend(self) -> bool:
        """Whether one more call may be sent twice."""
        if self._saved < 1:
            return False
        self._saved -= 1
        self.sent += 1
        return True
