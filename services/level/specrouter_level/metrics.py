"""What the level counts and measures, for Prometheus and OpenTelemetry. All its instruments are here."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specrouter.v1 import level_pb2 as pb
from specrouter_core.spread import COUNTS
from specrouter_level.scheduler import Scheduler
from specrouter_telemetry.collected import Spreads

KV_TEXT = (
    "Blocks written, known already, void (overwritten meanwhile), failed, delayed (full queue), evicted; lookups,"
    " restores, declined ones (dearer than prefill), stopped ones (so from then on); bytes and tokens."
)
KV_EVENTS = (
    "written", "known", "void", "failed", "delayed", "evicted", "lookups", "restores", "declined", "stopped",
    "written_bytes", "restored_bytes", "restored_tokens",
)  # fmt: skip


class Metrics(Collector):
    """Totals are read from the scheduler when asked for; only steps and waits are observed as they happen."""

    def __init__(self, level: str, scheduler: Scheduler, registry: CollectorRegistry = REGISTRY) -> None:
        self._level = level
        self._scheduler = scheduler
        self._busy = 0.0  # seconds in steps
        labels = {"level": level}
        step = "specrouter_level_step"
        self._seconds = Spreads(f"{step}_seconds", "Time of one engine step.", registry, labels=labels)[""]
        self._rows = Spreads(f"{step}_rows", "Tokens fed in one step.", registry, labels=labels, bounds=COUNTS)[""]
        self._sequences = Spreads(
            f"{step}_sequences", "Sequences in one step.", registry, labels=labels, bounds=COUNTS
        )[""]
        self._queue = Spreads(
            "specrouter_level_queue_seconds", "From a call's receipt to its first step.", registry, labels=labels
        )[""]
        registry.register(self)

    def observe(self, seconds: float, rows: int, sequences: int) -> None:
        """One step ended."""
        self._busy += seconds
        self._seconds.observe(seconds)
        self._rows.observe(rows)
        self._sequences.observe(sequences)
        waits = self._scheduler.waits
        for wait in waits:
            self._queue.observe(wait)
        waits.clear()

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
            "busy_seconds": ("Time spent in steps.", self._busy),
            "steps_failed": ("Steps in which the engine failed.", counts.failed),
            "expirations": ("Sequences let go of as no call came for a minute.", self._scheduler.slots.expirations),
            "evictions": ("Idle sequences that made room for others.", self._scheduler.slots.evictions),
        }
        for name, (what, value) in totals.items():
            counter = CounterMetricFamily(f"specrouter_level_{name}", what, labels=["level"])
            counter.add_metric([self._level], value)
            yield counter
        yield from self._checkpoints()
        slots = self._scheduler.slots
        now = {
            "sequences_held": ("Sequences in the engine's slots.", len(slots)),
            "sequences_attached": ("Sequences whose router's stream is open.", slots.attached),
            "positions_held": ("Positions of all sequences held.", slots.positions),
            "rows_running": ("Tokens fed in the step that runs now.", self._scheduler.rows),
            "slots": ("Sequences that can be held at once.", self._scheduler.info.slots),
            "calls_running": ("Calls not yet answered.", self._scheduler.busy),
        }
        for name, (what, value) in now.items():
            gauge = GaugeMetricFamily(f"specrouter_level_{name}", what, labels=["level"])
            gauge.add_metric([self._level], value)
            yield gauge
        yield self._costs()

    def _costs(self) -> Metric:
        costs = GaugeMetricFamily(
            "specrouter_level_step_cost_seconds", "Time of a step by its rows, as calibrated.", labels=["level", "rows"]
        )
        for cost in self._scheduler.info.costs:
            costs.add_metric([self._level, str(cost.rows)], cost.seconds)
        return costs

    def _checkpoints(self) -> Iterator[Metric]:
        """What became of blocks of KV on their way to Redis and back."""
        checkpoints = self._scheduler.checkpoints
        if checkpoints is None:
            return
        blocks = CounterMetricFamily("specrouter_level_kv", KV_TEXT, labels=["level", "event"])
        for event in KV_EVENTS:
            blocks.add_metric([self._level, event], checkpoints.counts[event])
        yield blocks
        ignored = CounterMetricFamily(
            "specrouter_level_kv_ignored", "Restores cut short, by why.", labels=["level", "why"]
        )
        for why, count in list(checkpoints.ignored.items()):
            ignored.add_metric([self._level, why], count)
        yield ignored
        now = {
            "kv_queued": ("Blocks and restores that wait.", checkpoints.queued),
            "kv_bytes_held": (
                "Bytes of the positions of all sequences held.",
                self._scheduler.slots.positions * checkpoints.position_bytes,
            ),
        }
        for name, (what, value) in now.items():
            gauge = GaugeMetricFamily(f"specrouter_level_{name}", what, labels=["level"])
            gauge.add_metric([self._level], value)
            yield gauge
