"""An engine without a model that speaks a synthetic language, with settable agreement and step time.

The language has 32 symbols (bytes: lower-case letters, space and a few marks). The target's draw is a pure
function of the last three ids and, at a temperature above 0, of the seed and the position; at temperature 0
neither matters. Every (text, position) has a difficulty, uniform in 0 to 1 and the same for all levels: a level
of agreement ``a`` draws the target's symbol where it is below ``a``, and another one else. So what is easy for
a level is easy for every better one. Agreement 1 is the target. Of the sampling parameters only the seed and
whether the temperature is 0 play a part. The stop id 0 is never drawn.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from itertools import pairwise

from specrouter_core.noise import GOLDEN, MASK, key, mix
from specrouter_level.engine import Drawn, Info, Memory, Span, StepCost

VOCAB_SIZE = 256
VOCAB_DIGEST = hashlib.sha256(bytes(range(VOCAB_SIZE))).hexdigest()  # ids are bytes; the same for every stub level
STOP_ID = 0
ALPHABET = b" abcdefghijklmnopqrstuvwxyz.,'-\n"


def target(a: int, b: int, c: int, noise: int) -> tuple[int, int]:
    """The language: the symbol's place in the alphabet after the ids a, b, c, and the hash it came from.

    ``noise`` is 0 at temperature 0 and ``specrouter_core.noise.key(seed, position)`` else.
    """
    value = mix(((a << 42) ^ (b << 21) ^ c) * GOLDEN ^ noise)
    return value >> 59, value


def curve(text: str) -> tuple[StepCost, ...]:
    """Read "rows:milliseconds,...", for example "1:2.5,8:3"; rows must ascend. "" and "0" are no cost."""
    points: list[StepCost] = []
    if text in ("", "0"):
        return ()
    for part in text.split(","):
        rows, colon, cost = part.partition(":")
        try:
            point = StepCost(rows=int(rows), seconds=float(cost) / 1000)
        except ValueError as error:
            raise ValueError(f'step-ms: want "rows:milliseconds,...", got {part!r}') from error
        if not colon or point.rows < 1 or not 0 <= point.seconds <= 60:
            raise ValueError(f"step-ms: want rows of 1 or more and 0 to 60000 milliseconds, got {part!r}")
        if points and point.rows <= points[-1].rows:
            raise ValueError(f"step-ms: rows must ascend, got {part!r} after {points[-1].rows}")
        points.append(point)
    return tuple(points)


def step_seconds(costs: Sequence[StepCost], rows: int) -> float:
    """The curve at ``rows``: linear between its points, level before the first, its last slope after the last."""
    if not costs:
        return 0.0
    if rows <= costs[0].rows or len(costs) == 1:
        return costs[0].seconds
    low, high = next((pair for pair in pairwise(costs) if rows <= pair[1].rows), costs[-2:])
    slope = (high.seconds - low.seconds) / (high.rows - low.rows)
    return max(low.seconds + slope * (rows - low.rows), 0.0)


class StubEngine:
    """The synthetic language behind the engine's interface.

    Raises ValueError when the agreement is not 0 to 1.
    """

    def __init__(
        self,
        *,
        name: str,
        agreement: float,
        costs: Sequence[StepCost],
        max_length: int,
        slots: int,
        max_rows: int,
    ) -> None:
        if not 0 <= agreement <= 1:
            raise ValueError(f"agreement: must be 0 to 1, got {agreement}")
        self.inline = not any(cost.seconds for cost in costs)
        self.memory: Memory | None = None  # it reads the text itself: there is no KV to keep
        self.info = Info(
            engine="stub",
            model_digest=hashlib.sha256(f"stub:{name}:{agreement}".encode()).hexdigest(),
            vocab_digest=VOCAB_DIGEST,
            vocab_size=VOCAB_SIZE,
            max_length=max_length,
            slots=slots,
            max_rows=max_rows,
            dtype="none",
            device="none",
            exactness="bitwise",
            stop_ids=(STOP_ID,),
            costs=tuple(costs),
        )
        self._salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        self._threshold = int(agreement * 2**64)

    def step(self, spans: Sequence[Span]) -> list[Drawn]:
        """See ``Engine``. Sleeps as long as the curve says."""
        drawn = [self._draw(span) for span in spans]
        if not self.inline:
            time.sleep(step_seconds(self.info.costs, sum(len(span.text) - span.start for span in spans)))
        return drawn

    def _draw(self, span: Span) -> Drawn:
        text, sampling = span.text, span.params.sampling
        drawn = Drawn(tokens=[], confidence=[])
        for position in range(len(text) - span.draws + 1, len(text) + 1):
            a, b, c = (text[i] if i >= 0 else 0 for i in (position - 3, position - 2, position - 1))
            noise = key(sampling.seed, position) if sampling.temperature > 0 else 0
            symbol, value = target(a, b, c, noise)
            difficulty = mix(value ^ (position * GOLDEN & MASK))
            if difficulty >= self._threshold:
                symbol = (symbol + 1 + mix(difficulty ^ self._salt) % 31) % 32
            confidence = 0.5 + 0.5 * (value & 0xFFFF) / 0x10000
            drawn.tokens.append(ALPHABET[symbol])
            drawn.confidence.append(confidence)
            if span.probe:
                drawn.probes.append(_probe(symbol, confidence, span.probe))
        return drawn


def _probe(symbol: int, confidence: float, size: int) -> list[tuple[int, float]]:
    """A distribution whose likeliest symbol is the drawn one; the others share the rest evenly."""
    rest = (1 - confidence) / 31
    others = [(ALPHABET[(symbol + i) % 32], rest) for i in range(1, min(size, 32))]
    return [(ALPHABET[symbol], confidence), *others]
