"""What a level costs: time of a step as a curve over the tokens it feeds, its queue, and the hop to it.

All of it from replies' own times. A step's cost depends on the rows (tokens over all sequences) it feeds,
and not as a line: checking 2 or 3 tokens can be free and 4 can jump. So the curve is kept as
points at powers-of-two-like row counts with straight lines between them, in logarithms: errors of timing
are ratios. Each observation does two things:

- it moves the whole curve's scale (fast: a level that becomes 5 times slower is known after a few steps),
- it bends the curve at the nearest points (slow).

Both moves are clipped, so that one stalled step counts little and only repetition convinces. A new step always weighs
as much, so that old ones are forgotten; queue, hop and batch are forgotten with time.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

POINTS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512)
CLIP = 0.7  # a single observation counts as at most twice, or half, what was expected
FAST = 0.2  # weight of an observation on the scale
SURELY, RETURN = 0.4, 0.5  # log of how much faster a step must be than expected to weigh this much
SLOW = 0.05  # weight of an observation on the shape
HALF_LIFE = 60.0  # seconds after which what was learnt of queue and hop weighs half
BATCH_LIFE = 0.3  # the same of how many share a step
ALIKE, SINGLE = 3, 16  # rows per sequence, and besides, up to which the steps of one call count as alike


def _clip(x: float) -> float:
    return max(-CLIP, min(CLIP, x))


@dataclass(slots=True)
class Curve:
    """Seconds of a step over its rows."""

    logs: list[float] = field(default_factory=list)  # log seconds at POINTS, without the scale
    scale: float = 0.0  # log of how much slower than ``logs`` the level is now
    seen: int = 0  # observations

    @classmethod
    def of(cls, costs: Mapping[int, float]) -> Curve:
        """From measured points, rows -> seconds (a level's calibration). Straight lines between, the last slope beyond.

        Raises ValueError when there is no point or one is not positive.
        """
        if not costs or min(costs.values()) <= 0 or min(costs) < 1:
            raise ValueError(f"costs: needs points of 1 row or more with more than 0 seconds, got {dict(costs)}")
        rows = sorted(costs)
        return cls([math.log(_line(rows, [costs[r] for r in rows], n)) for n in POINTS])

    def seconds(self, rows: float) -> float:
        """Expected time of a step that feeds ``rows`` tokens."""
        return math.exp(self._log(rows) + self.scale)

    def observe(self, rows: float, seconds: float, share: float = 1.0) -> None:
        """A step of ``rows`` tokens took ``seconds``. ``share``: what this is of all that is said of the step."""
        if rows < 1 or seconds <= 0:
            return
        if not self.logs:
            # nothing known: flat in the rows is the least wrong guess for a memory-bound step
            self.logs = [math.log(seconds)] * len(POINTS)
        self.seen += 1
        off = math.log(seconds) - self._log(rows) - self.scale
        error = _clip(off) * share
        if off < -SURELY:  # a step may take longer by accident, but not so much less
            self.scale += RETURN * max(off, -CLIP / FAST) * share
        else:
            self.scale += max(FAST, 1 / self.seen) * error
        i = min(bisect_left(POINTS, rows), len(POINTS) - 1)
        for j in {max(i - 1, 0), i}:
            distance = abs(math.log2(POINTS[j] / rows))
            self.logs[j] += SLOW * error * max(0.0, 1 - distance)

    def _log(self, rows: float) -> float:
        if not self.logs:
            return math.log(1e-3)
        i = bisect_left(POINTS, rows)
        if i == 0:
            return self.logs[0]
        if i == len(POINTS):
            return self.logs[-1] + math.log(rows / POINTS[-1])
        low, high = POINTS[i - 1], POINTS[i]
        share = (rows - low) / (high - low)
        return self.logs[i - 1] * (1 - share) + self.logs[i] * share


def _line(rows: list[int], seconds: list[float], n: int) -> float:
    """The polygon through the points at ``n``; flat before the first, the last slope after the last."""
    if n <= rows[0]:
        return seconds[0]
    i = min(bisect_left(rows, n), len(rows) - 1)
    if i == 0:
        return seconds[0]
    slope = (seconds[i] - seconds[i - 1]) / (rows[i] - rows[i - 1])
    return max(seconds[i - 1] + slope * (n - rows[i - 1]), seconds[0] * 0.5)


@dataclass(slots=True)
class Mean:
    """A mean that forgets: weights halve every ``half_life`` seconds, and one outlier moves it little."""

    value: float = 0.0
    weight: float = 0.0
    at: float = 0.0
    most: float = 32.0  # values that the mean is taken over, about
    half_life: float = HALF_LIFE

    def observe(self, x: float, now: float) -> None:
        """Take one value at time ``now`` (seconds, any origin)."""
        if self.weight > 0:
            self.weight *= 0.5 ** (max(0.0, now - self.at) / self.half_life)
            x = min(x, 4 * self.value + 1e-3)
        self.at = now
        self.weight = min(self.weight + 1, self.most)
        self.value += (x - self.value) / self.weight


@dataclass(frozen=True, slots=True)
class Answered:
    """What a level says of a call, and how long it took; seconds."""

    steps: int
    rows: int  # tokens over all sequences: most in one step
    fed: int  # the same of all steps together; 0 = not said
    batch: int  # most sequences in one step
    compute: float  # of the steps
    queue: float  # from receipt to the first step
    total: float  # from sending to the last reply


@dataclass(slots=True)
class Profile:
    """One replica of one level, as its replies show it."""

    curve: Curve = field(default_factory=Curve)
    queue: Mean = field(default_factory=Mean)  # seconds from receipt to the first step
    hop: Mean = field(default_factory=Mean)  # seconds of a round trip that are neither queue nor a step of its own
    batch: Mean = field(default_factory=lambda: Mean(most=8.0, half_life=BATCH_LIFE))  # sequences in a step

    def observe(self, call: Answered, now: float) -> None:
        """One answered call."""
        steps, compute = call.steps, call.compute
        beyond = call.total - call.queue - compute
        if steps > 1:  # what it took beyond one hop lies between its steps
            compute += max(0.0, beyond - (self.hop.value if self.hop.weight else beyond / steps))
        if steps == 1 or (call.fed > 0 and call.rows <= ALIKE * call.batch + SINGLE):
            rows = call.fed / steps if call.fed > 0 else call.rows
            self.curve.observe(rows, compute / steps, 1 / max(call.batch, 1.0))  # each of a step's calls tells of it
        if steps > 0:
            self.batch.observe(call.batch, now)
        self.queue.observe(call.queue, now)
        self.hop.observe(max(0.0, call.total - call.queue - compute), now)
