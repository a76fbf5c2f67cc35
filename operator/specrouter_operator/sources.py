"""Where each policy's signals come from: the operator's own OTLP receiver, or a Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specrouter_family.tls import Tls
from specrouter_operator.policy_types import RoutingPolicySpec
from specrouter_operator.prometheus_source import PrometheusSource
from specrouter_operator.receiver import Receiver
from specrouter_operator.signals import Signals
from specrouter_operator.store import Store

MAX_SERVERS = 64  # Prometheus servers that are remembered


class Sources(Collector):
    """One receiver for all policies, one client per Prometheus. Also tells what the receiver has seen. ``token`` and
    ``tls``: see there."""

    def __init__(self, token: str = "", tls: Tls | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._store = Store()
        self._receiver = Receiver(self._store, clock, token, tls)
        self._servers: dict[str, PrometheusSource] = {}

    def listen(self, address: str, leads: bool) -> int:
        """Receive on ``host:port`` while this replica leads; returns the port when that begins, else 0. OSError when it
        is taken.

        Who pushes stays with the replica that it reached first, so one that doesn't lead must not be reached at all.
        """
        if leads and not self._receiver.running:
            return self._receiver.start(address)
        if not leads and self._receiver.running:
            self._receiver.stop()
        return 0

    def of(self, policy: RoutingPolicySpec) -> Signals:
        """The source that the policy names."""
        if policy.signals.source == "OTLP" or policy.signals.prometheus is None:
            return self._store
        url = policy.signals.prometheus.url
        server = self._servers.get(url)
        if server is None:
            while len(self._servers) >= MAX_SERVERS:
                self._servers.pop(next(iter(self._servers)))
            server = self._servers[url] = PrometheusSource(url, self._clock)
        return server

    def collect(self) -> list[Metric]:
        """For the operator's own metrics."""
        receiver, prefix = self._receiver, "specrouter_operator_otlp"
        counts = {
            "requests": ("Exports received.", receiver.requests),
            "refused": ("Exports that could not be used.", receiver.refused),
            "denied": ("Exports without the token.", receiver.denied),
            "throttled": ("Exports beyond their sender's allowance.", receiver.throttled),
            "points": ("Data points taken.", receiver.points),
            "skipped": ("Data points of resources that are no level or router.", receiver.skipped),
            "evicted": ("Senders forgotten.", self._store.evicted),
        }
        out: list[Metric] = [CounterMetricFamily(f"{prefix}_{name}", what, n) for name, (what, n) in counts.items()]
        out.append(GaugeMetricFamily(f"{prefix}_streams", "Streams kept.", self._store.streams))
        return out
