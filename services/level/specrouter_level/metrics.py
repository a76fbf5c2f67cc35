"""The level's numbers for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specrouter.v1 import level_pb2 as pb
from specrouter_level.scheduler import Scheduler

SECONDS = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics(Collector):
    """Totals are read from the scheduler when asked for; only steps are observed as they happen."""

    def __init__(self, level: str, scheduler: Scheduler, registry: CollectorRegistry = REGISTRY) -> None:
        self._level = level
        self._scheduler = scheduler

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"specrouter_level_step_{name}", what, ["level"], buckets=buckets, registry=registry)

        self._seconds = histogram("seconds", "Time of one engine step.", SECONDS).labels(level)
        self._rows = histogram("rows", "Tokens fed in one step.", ROWS).labels(level)
        self._sequences = histogram("sequences", "Sequences in one step.", SEQUENCES).labels(level)
        registry.register(self)

    def observe(self, seconds: float, rows: int, sequences: int) -> None:
        """One step ended."""
        self._seconds.observe(seconds)
        self._rows.observe(rows)
        self._sequences.observe(sequences)

    def describe(self) -> list[Metric]:
        """Nothing is known before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The totals now."""
        counts = self._scheduler.counts
        calls = CounterMetricFamily("specrouter_level_calls", "Calls ended.", labels=["level", "outcome"])
        for outcome, count in list(counts.calls.items()):
            calls.add_metric([self._level, pb.Outcome.Name(outcome).removeprefix("OUTCOME_").lower()], count)
        yield calls
        totals = {
            "tokens_fed": ("Tokens fed to the engine.", counts.fed),
            "tokens_drawn": ("Draws answered, accepted proposals among them.", counts.drawn),
            "proposals": ("Proposals received.", counts.proposed),
            "proposals_accepted": ("Proposals equal to the level's draw.", counts.accepted),
            "evictions": ("Idle sequences that made room for others.", self._scheduler.slots.evictions),
        }
        for name, (what, value) in totals.items():
            counter = CounterMetricFamily(f"specrouter_level_{name}", what, labels=["level"])
            counter.add_metric([self._level], value)
            yield counter
        now = {
            "sequences_held": ("Sequences in the engine's slots.", len(self._scheduler.slots)),
            "calls_running": ("Calls not yet answered.", self._scheduler.busy),
        }
        for name, (what, value) in now.items():
            gauge = GaugeMetricFamily(f"specrouter_level_{name}", what, labels=["level"])
            gauge.add_metric([self._level], value)
            yield gauge
