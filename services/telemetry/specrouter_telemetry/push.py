"""Pushes a process's metrics to an OpenTelemetry collector: what Prometheus would scrape, by OTLP over gRPC.

Instruments are Prometheus' (and ours, see collected.py), since OpenTelemetry's own take some 10 us a recording in
Python, and a router records several in each round. So one registry is read by two: the HTTP endpoint, and, where
OTEL_EXPORTER_OTLP_ENDPOINT (or ..._METRICS_ENDPOINT) is set, a thread that turns it into OTLP. Of OpenTelemetry's
environment, the exporter reads its own part (endpoint, headers, compression, certificates, timeout), and this module
OTEL_METRIC_EXPORT_INTERVAL (milliseconds), OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME.

Names are the same on both ways, as the rules for OpenTelemetry in Prometheus translate them: a counter has no
``_total``; a name in ``names`` has another there. Counters and histograms are cumulative, from the start of this push.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Family

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PREFIXES = ("specrouter_", "gen_ai_")  # what is ours in a registry that others use too
INTERVAL_MS = 2000
LEAST_MS = 100
TIMEOUT_S = 2.0  # of one export, tries again included, unless the environment says otherwise
SCOPE = InstrumentationScope("specrouter")
EXPORTER_LOG = "opentelemetry.exporter.otlp.proto.grpc.exporter"


def wanted() -> bool:
    """Whether the environment names somebody to push to."""
    return any(os.environ.get(name) for name in ENDPOINTS)


class Push:
    """The thread. ``attributes``: of this process, as its level; the environment's go before."""

    def __init__(
        self, registry: CollectorRegistry, attributes: Mapping[str, str], names: Mapping[str, str] | None = None
    ) -> None:
        """Raises ValueError when the interval is no number."""
        self._registry = registry
        self._names = dict(names or {})
        self._interval = _interval()
        given = {"service.instance.id": f"{socket.gethostname()}-{os.getpid()}", **attributes}
        self._resource = Resource(given).merge(OTELResourceDetector().detect())
        own = "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"
        timeout = None if any(os.environ.get(name) for name in own) else TIMEOUT_S
        self._exporter = OTLPMetricExporter(timeout=timeout)
        logging.getLogger(EXPORTER_LOG).setLevel(logging.CRITICAL)  # a line for each try; ours is one for each loss
        self._start = time.time_ns()
        self._lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)

    def start(self) -> None:
        """Push from now on."""
        self._thread.start()

    def stop(self) -> None:
        """The last values, then nothing more. Takes at most a few seconds."""
        self._end.set()
        self._thread.join(2 * TIMEOUT_S)
        self._exporter.shutdown(timeout_millis=500)

    def _run(self) -> None:
        while not self._end.wait(self._interval):
            self._push()
        self._push()

    def _push(self) -> None:
        families = [family for family in self._registry.collect() if family.name.startswith(PREFIXES)]
        metrics = converted(families, self._names, self._start, time.time_ns())
        scope = ScopeMetrics(SCOPE, metrics, "")
        data = MetricsData([ResourceMetrics(self._resource, [scope], "")])
        lost = self._exporter.export(data) is not MetricExportResult.SUCCESS
        if lost != self._lost:
            self._lost = lost
            log.log(
                logging.WARNING if lost else logging.INFO, "metrics %s", "can't be pushed" if lost else "are pushed"
            )


def converted(families: Iterable[Family], names: Mapping[str, str], start: int, now: int) -> list[Metric]:
    """Prometheus' families as OpenTelemetry's metrics; what is neither counter, gauge nor histogram is left out."""
    out = []
    for family in families:
        name = names.get(family.name, family.name)
        unit = "s" if family.name.endswith("_seconds") else "1"
        if family.type == "counter":
            points = [_number(s.labels, s.value, start, now) for s in family.samples if s.name.endswith("_total")]
            summed = Sum(points, AggregationTemporality.CUMULATIVE, True)
            out.append(Metric(name, family.documentation, unit, summed))
        elif family.type == "gauge":
            gauges = [_number(s.labels, s.value, start, now) for s in family.samples]
            out.append(Metric(name, family.documentation, unit, Gauge(gauges)))
        elif family.type == "histogram":
            spread = Histogram(_histograms(family, start, now), AggregationTemporality.CUMULATIVE)
            out.append(Metric(name, family.documentation, unit, spread))
    return out


def _number(labels: Mapping[str, str], value: float, start: int, now: int) -> NumberDataPoint:
    return NumberDataPoint(dict(labels), start, now, value)


def _histograms(family: Family, start: int, now: int) -> list[HistogramDataPoint]:
    """One point per set of labels, ``le`` apart."""
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, int]]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        key = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        if sample.name.endswith("_bucket"):
            buckets.setdefault(key, []).append((float(sample.labels["le"]), int(sample.value)))
        elif sample.name.endswith("_sum"):
            sums[key] = sample.value
    points = []
    for key, bounded in buckets.items():
        below = [0, *(count for _, count in bounded)]
        counts = [b - a for a, b in itertools.pairwise(below)]
        points.append(
            HistogramDataPoint(
                attributes=dict(key),
                start_time_unix_nano=start,
                time_unix_nano=now,
                count=below[-1],
                sum=sums.get(key, 0.0),
                bucket_counts=counts,
                explicit_bounds=[bound for bound, _ in bounded[:-1]],
                min=math.inf,  # as the SDK says that it was not recorded
                max=-math.inf,
            )
        )
    return points


def _interval() -> float:
    """Seconds between two exports."""
    text = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or str(INTERVAL_MS)
    try:
        return max(float(text), LEAST_MS) / 1000
    except ValueError as error:
        raise ValueError(f"OTEL_METRIC_EXPORT_INTERVAL: must be milliseconds, got {text!r}") from error
