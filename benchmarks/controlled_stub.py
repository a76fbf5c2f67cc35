"""A stub level whose agreement and speed can be changed while it runs: the world of the adaptive benchmarks and tests.

The options are those of ``specrouter-level``. Each line on its standard input is "AGREEMENT SLOWDOWN", for
example "0.2 5": from the next step on it draws as the target at this share of places and its steps take so many
times as long. What changes is what it proposes; the target (agreement 1) must be left as it is.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from specrouter_level import scripts, stub
from specrouter_level.engine import Drawn, Span


class ControlledStub(stub.StubEngine):
    """Obeys the lines on standard input."""

    slowdown = 1.0

    def step(self, spans: Sequence[Span]) -> list[Drawn]:
        """See ``Engine``."""
        begin = time.perf_counter()
        drawn = super().step(spans)
        time.sleep((self.slowdown - 1) * (time.perf_counter() - begin))
        return drawn

    def obey(self) -> None:
        """Until the input ends."""
        for line in sys.stdin:
            agreement, slowdown = map(float, line.split())
            self._threshold, self.slowdown = int(agreement * 2**64), slowdown


def made(**options: object) -> ControlledStub:
    """As ``StubEngine``, with somebody listening."""
    engine = ControlledStub(**options)
    threading.Thread(target=engine.obey, daemon=True).start()
    return engine


if __name__ == "__main__":
    stub.StubEngine = made
    scripts.main()
