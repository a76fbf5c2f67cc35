"""A level whose speed and agreement can be changed while it runs: the world of the adaptive benchmarks.

The options are those of ``specrouter-level``. Each line on its standard input is "AGREEMENT SLOWDOWN", for
example "0.2 5": from the next step on its steps take so many times as long, a stub draws as the target at this share
of places, and a lookup makes its guess at this share of places and another one at the others. What changes is what a
level proposes; the target (agreement 1) must be left as it is.
"""

from __future__ import annotations

import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from specrouter_level import engines, scripts
from specrouter_level.engine import Drawn, Engine, Span
from specrouter_level.ngram import Index, NgramEngine
from specrouter_level.stub import StubEngine

P = ParamSpec("P")
E = TypeVar("E", bound=Engine)


class Control:
    """Obeys the lines on standard input."""

    agreement = 1.0
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
            if isinstance(engine, NgramEngine):
                engine._slots = [Spoiled(self) for _ in engine._slots]
            threading.Thread(target=self.obey, args=(engine,), daemon=True).start()
            return engine

        return made

    def obey(self, engine: Engine) -> None:
        """Until the input ends."""
        for line in sys.stdin:
            self.agreement, self.slowdown = map(float, line.split())
            if isinstance(engine, StubEngine):
                engine._threshold = int(self.agreement * 2**64)


class Spoiled(Index):
    """A lookup's text that it looks up wrongly at some places."""

    def __init__(self, control: Control) -> None:
        super().__init__()
        self._control = control

    def guess(self) -> int | None:
        """The guess, or at a place that is not to agree some other token of the text."""
        guess = super().guess()
        place = zlib.crc32(b"%d %d" % (len(self.tokens), self.tokens[-1])) if self.tokens else 0
        if guess is None or place < self._control.agreement * 2**32:
            return guess
        return next((token for token in self.tokens[place % len(self.tokens) :] if token != guess), None)


if __name__ == "__main__":
    control = Control()
    engines.stub = control.over(engines.stub)
    engines.torch = control.over(engines.torch)
    engines.ngram = control.over(engines.ngram)
    scripts.main()
