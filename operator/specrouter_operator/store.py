"""The last minute of every level's and router's measurements, as they were pushed. Safe to use from several threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from specrouter_core.spread import quantile
from specrouter_operator import metric_names as m
from specrouter_operator.otlp import Attributes, Histogram, Source, Update, buckets_of
from specrouter_operator.signals import NEVER, LevelSignal, Pair, RouterSignal
from specrouter_operator.streams import Growth, Stream

KEEP_S = 60.0  # growth is kept so long
PRESENT_S = 10.0  # a sender that was silent for so long (or for 3 of its own intervals) is not counted as there
LOST_S = 600.0  # and after so long it is forgotten
MAX_STREAMS = 100_000


@dataclass(slots=True)
class Sender:
    """One source's streams."""

    streams: dict[tuple[str, Attributes], Stream] = field(default_factory=dict)
    seen: float = 0.0
    time: float = 0.0  # of its newest point but the push that is being read, on its own clock
    interval: float = 0.0  # between two pushes, smoothed

    def present(self, now: float) -> bool:
        """Whether it still pushes."""
        return now - self.seen <= max(PRESENT_S, 3 * self.interval)


@dataclass(slots=True)
class Sum:
    """Growth of some streams in a window."""

    value: float = 0.0  # of counters; of histograms, the total of the values
    count: float = 0.0  # values in histograms
    rate: float = 0.0  # per second, each stream over the time it covers
    parts: dict[tuple[float, ...], list[float]] = field(default_factory=dict)  # bounds -> counts

    def quantiles(self) -> Pair | None:
        """p50 and p95."""
        p50, p95 = quantile(self.parts.items(), 0.5), quantile(self.parts.items(), 0.95)
        return None if p50 is None or p95 is None else Pair(p50, p95)

    @property
    def mean(self) -> float | None:
        """Of the values in histograms."""
        return self.value / self.count if self.count else None


class Store:
    """See the module. Implements ``signals.Signals``; times are seconds of one clock, the caller's.

    At most ``max_streams`` are kept: when more come, the senders that were silent longest go.
    """

    def __init__(self, max_streams: int = MAX_STREAMS) -> None:
        self.streams = 0
        self.evicted = 0  # senders, since the start
        self._max = max_streams
        self._senders: OrderedDict[Source, Sender] = OrderedDict()  # the newest last
        self._families: dict[str, dict[Source, Sender]] = {}
        self._lock = threading.Lock()

    def take(self, updates: Iterable[Update], now: float) -> None:
        """Points that arrived at ``now``."""
        with self._lock:
            heard: dict[Source, float] = {}  # -> time of its newest point
            for update in updates:
                sender = self._sender(update.source, now, first=update.source not in heard)
                heard[update.source] = max(heard.get(update.source, 0.0), update.time)
                key = update.name, update.attributes
                stream = sender.streams.get(key)
                if stream is None:
                    stream = sender.streams[key] = Stream()
                    self.streams += 1
                stream.take(update, now, KEEP_S, sender.time)
            for source, newest in heard.items():
                self._senders[source].time = max(self._senders[source].time, newest)
            self._evict(now)

    def level(self, family: str, level: str, now: float, window: float) -> LevelSignal:
        """See ``signals.Signals``."""
        with self._lock:
            senders = self._of(family, level)
            here = {source: sender for source, sender in senders.items() if sender.present(now)}
            if not here:
                return LevelSignal(age=_age(senders, now))
            step = _sum(here.values(), m.STEP, now, window)
            rows = _sum(here.values(), m.ROWS, now, window)
            calls = _sum(here.values(), m.CALLS, now, window)
            failed = _sum(here.values(), m.CALLS, now, window, (("outcome", m.FAULTS),))
            proposals = _sum(here.values(), m.PROPOSALS, now, window)
            return LevelSignal(
                age=_age(here, now),
                replicas={source.instance: _gauge(sender, m.HELD) or 0.0 for source, sender in here.items()},
                steps=step.count,
                step=step.quantiles(),
                queue=_sum(here.values(), m.QUEUE, now, window).quantiles(),
                rows=rows.quantiles(),
                busy=min(_sum(here.values(), m.BUSY, now, window).rate / len(here), 1.0),
                fed=_sum(here.values(), m.FED, now, window).rate,
                calls=calls.rate,
                errors=failed.value / calls.value if calls.value else 0.0,
                batch=max(_sum(here.values(), m.SEQUENCES, now, window).mean or 1.0, 1.0),
                proposals=proposals.value / calls.value if calls.value else 0.0,
                costs=_costs(here.values()),
            )

    def routers(self, family: str, now: float, window: float) -> RouterSignal:
        """See ``signals.Signals``."""
        with self._lock:
            senders = self._of(family, "")
            here = {source: sender for source, sender in senders.items() if sender.present(now)}
            if not here:
                return RouterSignal(age=_age(senders, now))
            tokens = _sum(here.values(), m.TOKENS, now, window)
            rounds = _sum(here.values(), m.ROUND, now, window)
            return RouterSignal(
                age=_age(here, now),
                routers=len(here),
                arrivals=_sum(here.values(), m.REQUESTS, now, window).rate,
                tokens=tokens.rate,
                prompt=_sum(here.values(), m.PROMPT, now, window).mean,
                length=_sum(here.values(), m.LENGTH, now, window).mean,
                per_token=rounds.value / tokens.value if tokens.value else None,
                tpot=_by_class(here.values(), m.TPOT, now, window),
                ttft=_by_class(here.values(), m.TTFT, now, window),
                running=sum(_gauge(sender, m.RUNNING) or 0.0 for sender in here.values()),
                agreement=_agreement(here.values()),
            )

    def _of(self, family: str, level: str) -> dict[Source, Sender]:
        return {s: sender for s, sender in self._families.get(family, {}).items() if s.level == level}

    def _sender(self, source: Source, now: float, *, first: bool) -> Sender:
        sender = self._senders.get(source)
        if sender is None:
            sender = self._senders[source] = Sender(seen=now)
            self._families.setdefault(source.family, {})[source] = sender
        elif first:
            sender.interval += 0.2 * (now - sender.seen - sender.interval)
            sender.seen = now
            self._senders.move_to_end(source)
        return sender

    def _evict(self, now: float) -> None:
        while self._senders:
            source, sender = next(iter(self._senders.items()))
            if self.streams <= self._max and now - sender.seen <= LOST_S:
                break
            del self._senders[source]
            self.streams -= len(sender.streams)
            self.evicted += 1
            family = self._families[source.family]
            del family[source]
            if not family:
                del self._families[source.family]


def _age(senders: dict[Source, Sender], now: float) -> float:
    return min((max(now - sender.seen, 0.0) for sender in senders.values()), default=NEVER)


def _streams(
    senders: Iterable[Sender], name: str, labels: tuple[tuple[str, frozenset[str]], ...] = ()
) -> Iterable[tuple[dict[str, str], Stream]]:
    for sender in senders:
        for (metric, attributes), stream in sender.streams.items():
            if metric == name:
                said = dict(attributes)
                if all(said.get(label, "") in values for label, values in labels):
                    yield said, stream


def _sum(
    senders: Iterable[Sender],
    name: str,
    now: float,
    window: float,
    labels: tuple[tuple[str, frozenset[str]], ...] = (),
) -> Sum:
    """Growth of all streams of a metric in the window."""
    out = Sum()
    for _, stream in _streams(senders, name, labels):
        _add(out, [growth for growth in stream.growths if growth.arrived > now - window])
    return out


def _add(out: Sum, growths: list[Growth]) -> None:
    grown, seconds = 0.0, 0.0
    for growth in growths:
        seconds += growth.seconds
        value = growth.value
        if isinstance(value, Histogram):
            out.value += value.total
            counts = out.parts.setdefault(value.bounds, buckets_of(value.bounds, ()))
            for place, count in value.buckets:
                counts[place] += count
                out.count += count
        else:
            grown += value
    out.value += grown
    if seconds > 0:
        out.rate += grown / seconds


def _gauge(sender: Sender, name: str) -> float | None:
    found = [s.last for _, s in _streams([sender], name) if isinstance(s.last, float)]
    return sum(found) if found else None


def _costs(senders: Iterable[Sender]) -> dict[int, float]:
    """The calibration, of the replica that is quickest at each count of rows."""
    out: dict[int, float] = {}
    for said, stream in _streams(senders, m.COST):
        rows = said.get("rows", "")
        if isinstance(stream.last, float) and stream.last > 0 and rows.isdecimal() and 0 < int(rows) < 10**6:
            out[int(rows)] = min(stream.last, out.get(int(rows), NEVER))
    return out


def _by_class(senders: Iterable[Sender], name: str, now: float, window: float) -> dict[str, Pair]:
    sums: dict[str, Sum] = {}
    for said, stream in _streams(senders, name):
        growths = [growth for growth in stream.growths if growth.arrived > now - window]
        _add(sums.setdefault(said.get("class", ""), Sum()), growths)
    return {name: pair for name, found in sums.items() if (pair := found.quantiles()) is not None}


def _agreement(senders: Iterable[Sender]) -> dict[str, float]:
    """Level -> how often it agrees with the target, the mean over the routers that know."""
    found: dict[str, list[float]] = {}
    for said, stream in _streams(senders, m.AGREEMENT):
        if isinstance(stream.last, float):
            found.setdefault(said.get("level", ""), []).append(min(max(stream.last, 0.0), 1.0))
    return {name: sum(rates) / len(rates) for name, rates in found.items()}
