"""One stream of one metric of one sender: what it grew by, push by push, over the last seconds.

Growth is kept, not totals: so a sender that starts again, or one that sends deltas, need no special care when a window
is summed. A cumulative stream's first point is only a beginning, unless it says that it began lately, or its sender
was known before: then it began after the sender's last push.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from specrouter_operator.otlp import Histogram, Update

MAX_GROWTHS = 256


@dataclass(frozen=True, slots=True)
class Growth:
    """What came between two points. ``seconds`` of the sender's clock; arrived by ours."""

    arrived: float
    seconds: float
    value: float | Histogram


@dataclass(slots=True)
class Stream:
    """See the module."""

    growths: deque[Growth] = field(default_factory=lambda: deque(maxlen=MAX_GROWTHS))
    last: float | Histogram | None = None  # the newest total, or gauge
    start: float = 0.0
    time: float = 0.0

    def take(self, update: Update, now: float, keep: float, since: float = 0.0) -> None:
        """One more point, arrived at ``now``; growth older than ``keep`` seconds is dropped.

        ``since``: time of the sender's last push on its clock, before which a new stream did not exist; 0 = unknown.
        """
        while self.growths and self.growths[0].arrived < now - keep:
            self.growths.popleft()
        if self.last is not None and update.time <= self.time:
            return  # said before, or overtaken
        before, self.time = self.time, update.time
        if not update.counts:
            self.last = update.value
        elif update.delta:
            seconds = update.time - (update.start or before or update.time)
            self.growths.append(Growth(now, max(seconds, 0.0), update.value))
            self.last, self.start = update.value, update.start
        else:
            self._cumulative(update, before or since, now, keep)

    def _cumulative(self, update: Update, before: float, now: float, keep: float) -> None:
        anew = self.last is None or update.start > self.start + 0.001 or _fell(update.value, self.last)
        lately = update.start > 0 and update.time - update.start < keep
        if not anew and self.last is not None:
            self.growths.append(Growth(now, update.time - before, _less(update.value, self.last)))
        elif before > 0 or lately:  # all of it came since it began, or since the push before
            began = max(update.start, before) or update.time
            self.growths.append(Growth(now, max(update.time - began, 0.0), update.value))
        self.last, self.start = update.value, update.start


def _fell(new: float | Histogram, old: float | Histogram) -> bool:
    """Whether a total is lower than it was: the sender began anew."""
    if isinstance(new, Histogram) and isinstance(old, Histogram):
        if new.bounds != old.bounds:
            return True
        return sum(count for _, count in new.buckets) < sum(count for _, count in old.buckets)
    if isinstance(new, Histogram) or isinstance(old, Histogram):
        return True
    return new < old


def _less(new: float | Histogram, old: float | Histogram) -> float | Histogram:
    if isinstance(new, Histogram) and isinstance(old, Histogram):
        before = dict(old.buckets)
        grown = ((place, count - before.get(place, 0.0)) for place, count in new.buckets)
        return Histogram(new.bounds, tuple((i, n) for i, n in grown if n > 0), new.total - old.total)
    if isinstance(new, Histogram) or isinstance(old, Histogram):
        return new
    return new - old
