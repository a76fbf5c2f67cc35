"""How much each sender may push: a token bucket of bytes per network address. Safe to use from several threads."""

from __future__ import annotations

import threading
from collections import OrderedDict

RATE = 2 << 20  # bytes a second; a level pushes some 20 KiB, so a collector may speak for 200 of them
BURST = 8 << 20
MAX_ADDRESSES = 4096  # beyond that, the one that was silent longest is forgotten


class Allowances:
    """One bucket an address, full at first."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self._rate, self._burst = rate, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> bytes left, at this time
        self._lock = threading.Lock()

    def take(self, address: str, size: int, now: float) -> bool:
        """Whether ``address`` may send ``size`` bytes at ``now`` (seconds); if so, they are taken."""
        with self._lock:
            left, at = self._left.pop(address, (self._burst, now))
            left = min(left + (now - at) * self._rate, self._burst)
            allowed = size <= left
            self._left[address] = (left - size if allowed else left, now)
            if len(self._left) > MAX_ADDRESSES:
                self._left.popitem(last=False)
        return allowed
