"""What is known of each replica, for people and for Prometheus; read when it is asked for, so calls cost no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specrouter_router.link import SILENT, Link
from specrouter_router.replicas import Replicas


def replica_body(link: Link) -> dict[str, Any]:
    """One replica in /v1/status. Times in milliseconds."""
    return {
        "address": link.address,
        "state": _state(link),
        "circuit": link.circuit.state,
        "sequences": len(link.seats),
        "inflight": len(link.inflight),
        "calls": link.calls,
        "losses": link.circuit.losses,
        "step_ms": round(1000 * link.tempo.step, 3),
        "queue_ms": round(1000 * link.tempo.queue, 3),
        "slow": link.odd,
        "why": link.trouble,
    }


def _state(link: Link) -> str:
    """In one word."""
    if not link.ready:
        return "down"
    if link.lifeless:
        return "silent" if link.lifeless == SILENT else "hanging"
    if link.draining:
        return "draining"
    if link.leaving:
        return "leaving"
    return "ready" if link.good else "resting"


class ReplicaCollector(Collector):
    """Gauges and counters by level and replica; those of a replica that is gone are gone too."""

    def __init__(self, levels: Mapping[str, Replicas]) -> None:
        self._levels = levels

    def describe(self) -> Iterable[Metric]:
        """No names in advance."""
        return []

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        by = ["level", "replica"]
        good = GaugeMetricFamily("specrouter_replica_ready", "Whether it may be given sequences", labels=by)
        seats = GaugeMetricFamily("specrouter_replica_sequences", "Sequences whose calls go to it", labels=by)
        inflight = GaugeMetricFamily("specrouter_replica_inflight", "Calls on their way", labels=by)
        step = GaugeMetricFamily("specrouter_replica_step_seconds", "Time of a step of 8 tokens", labels=by)
        queue = GaugeMetricFamily("specrouter_replica_queue_seconds", "From receipt to the first step", labels=by)
        calls = CounterMetricFamily("specrouter_replica_calls", "Calls answered in full", labels=by)
        losses = CounterMetricFamily(
            "specrouter_replica_losses", "Times that it was lost, silent or hanging", labels=by
        )
        moves = CounterMetricFamily("specrouter_replica_moves", "Sequences moved between replicas", labels=by[:1])
        hedges = CounterMetricFamily("specrouter_hedges", "Late calls sent to a second replica", labels=by[:1])
        won = CounterMetricFamily("specrouter_hedges_won", "Those that the second answered first", labels=by[:1])
        for name, replicas in self._levels.items():
            moves.add_metric([name], replicas.moves)
            hedges.add_metric([name], replicas.hedges.sent)
            won.add_metric([name], replicas.hedges.won)
            for address, link in replicas.fleet.links.items():
                labels = [name, address]
                good.add_metric(labels, link.good)
                seats.add_metric(labels, len(link.seats))
                inflight.add_metric(labels, len(link.inflight))
                step.add_metric(labels, link.tempo.step)
                queue.add_metric(labels, link.tempo.queue)
                calls.add_metric(labels, link.calls)
                losses.add_metric(labels, link.circuit.losses)
        return [good, seats, inflight, step, queue, calls, losses, moves, hedges, won]
