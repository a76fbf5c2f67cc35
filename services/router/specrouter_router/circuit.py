"""Whether a replica is trusted with sequences.

Each failure opens the circuit for a while that doubles with every further one, shortened by chance so that many
routers don't come back at once. When the while is over the replica is asked what it is (half-open); an answer closes
the circuit. Failures are forgotten when none was for ``FORGET_S``: so a replica that comes and goes is used ever less.

After M. Nygard, "Release It!" (2007), chapter 5.
"""

from __future__ import annotations

import random
from typing import Literal

FIRST_S, LAST_S = 0.5, 30.0  # open after the first failure, and at most
FORGET_S = 60.0
ERRORS = 3  # calls that a reachable replica fails in a row, and which count as a failure


class Circuit:
    """See the module. Times are seconds of one clock."""

    def __init__(self) -> None:
        self.state: Literal["closed", "half-open", "open"] = "closed"
        self.failures = 0  # not yet forgotten
        self.losses = 0  # all there were
        self.errors = 0  # in a row; whoever hears an answer sets it to 0
        self._until = 0.0
        self._failed = 0.0  # when it last did

    def failed(self, now: float) -> None:
        """The replica was lost: trust it less."""
        if now - self._failed > FORGET_S:
            self.failures = 0
        if self.state != "open":  # else it is still the same failure
            self.failures += 1
            self.losses += 1
        self._failed = now
        self.errors = 0
        pause = min(FIRST_S * 2 ** max(min(self.failures - 1, 16), 0), LAST_S)
        self._until = now + pause * random.uniform(0.5, 1)
        self.state = "open"

    def erred(self, now: float) -> bool:
        """It failed a call. Returns whether that opened the circuit."""
        self.errors += 1
        if self.errors < ERRORS or self.state != "closed":
            return False
        self.failed(now)
        return True

    def due(self, now: float) -> bool:
        """Whether it should be asked now; it is half-open then."""
        if self.state != "open" or now < self._until:
            return False
        self.state = "half-open"
        return True

    def tried(self, well: bool, now: float) -> None:
        """It was asked, and said what it is, or nothing."""
        if self.state == "half-open":
            if well:
                self.state = "closed"
            else:
                self.failed(now)
