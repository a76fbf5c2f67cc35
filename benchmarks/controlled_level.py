"""A level whose speed, and a stub's agreement, can be changed while it runs: the world of the adaptive benchmarks.

The options are those of ``specrouter-level``. Each line on its standard input is "AGREEMENT SLOWDOWN", for
example "0.2 5": from the next step on its steps take so many times as long, and a stub draws as the target at this
share of places. What changes is what a level proposes; the target (agreement 1) must be left as it is.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from specrouter_level import engines, scripts
from specrouter_level.engine import Drawn, Engine, Span
from specrouter_level.stub import StubEngine

P = ParamSpec("P")
E = TypeVar("E", bound=Engine)


class Control:
    """Obeys the lines on standard input."""

    slowdown = 1.0

    def over(self, make: Callable[P, E]) -> Callable[P, E]:
        """The same maker, whose engine is under this control."""

        def made(*args: P.args, **options: P.kwargs) -> E:
            engine = make(*args, **options)
            step = engine.step

            def slowed(spans: Sequence[Span]) -> list[Drawn]:
                begin = time.perf_counter()
                drawn = step(spans)
                time.sleep((self.slowdown - 1) * (time.perf_counter() - begin))
                return drawn

            engine.step = slowed  # type: ignore[method-assign] # the one method that takes a model's time
            threading.Thread(target=self.obey, args=(engine,), daemon=True).start()
            return engine

        return made

    def obey(self, engine: Engine) -> None:
        """Until the input ends."""
        for line in sys.stdin:
            agreement, self.slowdown = map(float, line.split())
            if isinstance(engine, StubEngine):
                engine._threshold = int(agreement * 2**64)


if __name__ == "__main__":
    control = Control()
    engines.stub = control.over(engines.stub)
    engines.torch = control.over(engines.torch)
    scripts.main()
