"""What measuring costs: recording in a router, pushing by OTLP, and receiving 2,000 streams in the operator.

- record_*_us: one value into a histogram: ours (collected.Spreads), prometheus-client's with the same buckets, and
  OpenTelemetry's SDK with one reader and with two (for Prometheus and OTLP), microseconds.
- round_us: all that a router records in one round and its calls; round_share: of a round's cost to the router (225 us,
  see router.json).
- push_ms: turning a router's registry into OTLP and encoding it, once in each interval.
- receive: ``--streams`` metric streams of levels, pushed every 2 s over gRPC by one client: CPU seconds a second of
  the receiving process, its memory's growth, and the time to read one level's signals.

    .venv/bin/python benchmarks/signals.py [--streams 2000] [--seconds 20]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import grpc
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE as CUMULATIVE
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, Counter, Histogram

import results
from specrouter_core.spread import SECONDS
from specrouter_operator import metric_names as m
from specrouter_operator.receiver import Receiver
from specrouter_operator.store import Store
from specrouter_router.metrics import OTEL_NAMES, Metrics
from specrouter_telemetry.collected import Spreads
from specrouter_telemetry.push import SCOPE, converted

ROUND_US = 1e6 / 4440
HISTOGRAMS = (m.STEP, m.QUEUE)
NUMBERS = (m.BUSY, m.FED, m.PROPOSALS)
PER_REPLICA = len(HISTOGRAMS) + len(NUMBERS) + 5  # and calls by four outcomes, and one gauge


def microseconds(work: Callable[[], object], count: int) -> float:
    """Of one call; the best of five."""
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(count // 5):
            work()
        best = min(best, (time.perf_counter() - begin) / (count // 5))
    return 1e6 * best


def otel(readers: int) -> float:
    """Microseconds of one observation by OpenTelemetry, with so many readers."""
    meter = MeterProvider([InMemoryMetricReader() for _ in range(readers)]).get_meter("x")
    histogram = meter.create_histogram("x", explicit_bucket_boundaries_advisory=SECONDS)
    labels = {"level": "mid"}
    return microseconds(lambda: histogram.record(0.035, labels), 50_000)


def recording() -> dict[str, float]:
    registry = CollectorRegistry()
    ours = Spreads("ours", "x", registry)[""]
    theirs = Histogram("theirs", "x", registry=registry, buckets=SECONDS)
    counter = Counter("counter", "x", ["level"], registry=registry).labels("mid")
    out = {
        "record_ours_us": microseconds(lambda: ours.observe(0.035), 200_000),
        "record_prometheus_us": microseconds(lambda: theirs.observe(0.035), 200_000),
        "count_prometheus_us": microseconds(counter.inc, 200_000),
    }
    for readers in (1, 2):
        out[f"record_otel_{readers}_us"] = otel(readers)
    metrics = Metrics()

    def one_round() -> None:
        metrics.round_seconds.observe(0.035)
        metrics.rounds.inc()
        for level in ("draft", "mid", "target"):
            metrics.call_ended(level, "done")
        metrics.committed("draft", 3)
        metrics.committed("target", 1)

    out["round_us"] = microseconds(one_round, 50_000)
    out["round_share"] = out["round_us"] / ROUND_US
    for name in ("", "chat", "code"):
        metrics.per_token[name].observe(0.02)
        metrics.first_token[name].observe(0.2)

    def push() -> bytes:
        families = converted(metrics.registry.collect(), OTEL_NAMES, 1, 2)
        scope = ScopeMetrics(SCOPE, families, "")
        data = MetricsData([ResourceMetrics(Resource({}), [scope], "")])
        return encode_metrics(data).SerializeToString()

    out["push_ms"] = microseconds(push, 200) / 1000
    out["push_bytes"] = len(push())
    return out


def replica(number: int, pushes: int) -> ExportMetricsServiceRequest:
    """What one replica of a level pushes."""
    made = ExportMetricsServiceRequest()
    part = made.resource_metrics.add()
    said = {
        "service.name": "specrouter-level",
        "specrouter.family": f"family-{number // 20}",
        "specrouter.level": f"level-{number // 4 % 5}",
        "service.instance.id": f"pod-{number}",
    }
    for key, value in said.items():
        part.resource.attributes.add(key=key).value.string_value = value
    scope = part.scope_metrics.add()
    now = time.time_ns()
    for name in HISTOGRAMS:
        metric = scope.metrics.add(name=name)
        metric.histogram.aggregation_temporality = CUMULATIVE
        point = metric.histogram.data_points.add(time_unix_nano=now, start_time_unix_nano=1, count=100 * pushes)
        counts = [0] * (len(SECONDS) + 1)
        for place in range(20, 30):
            counts[place] = 10 * pushes
        point.bucket_counts.extend(counts)
        point.explicit_bounds.extend(SECONDS)
    outcomes = [(m.CALLS, outcome) for outcome in ("done", "superseded", "prefix_unknown", "overloaded")]
    for name, outcome in [*((name, "") for name in NUMBERS), *outcomes]:
        metric = scope.metrics.add(name=name)
        metric.sum.aggregation_temporality, metric.sum.is_monotonic = CUMULATIVE, True
        total = metric.sum.data_points.add(time_unix_nano=now, start_time_unix_nano=1, as_double=10.0 * pushes)
        if outcome:
            total.attributes.add(key="outcome").value.string_value = outcome
    scope.metrics.add(name=m.HELD).gauge.data_points.add(time_unix_nano=now, as_double=3)
    return made


def receive(pipe: Connection) -> None:
    """The receiving process: sends its port; at each message, what it has used until then."""
    store = Store()
    receiver = Receiver(store)
    pipe.send(receiver.start("127.0.0.1:0"))
    while pipe.recv():
        usage = resource.getrusage(resource.RUSAGE_SELF)
        begin = time.perf_counter()
        for _ in range(20):
            store.level("family-0", "level-0", time.monotonic(), 20)
        pipe.send(
            {
                "cpu": usage.ru_utime + usage.ru_stime,
                "rss": usage.ru_maxrss / 1024,
                "read_ms": 50 * (time.perf_counter() - begin),
                "streams": store.streams,
                "points": receiver.points,
            }
        )
    receiver.stop()


def receiving(streams: int, seconds: float) -> dict[str, float]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=receive, args=(there,))
    process.start()
    port = here.recv()
    replicas = max(streams // PER_REPLICA, 1)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = MetricsServiceStub(channel)
        here.send(True)
        before: dict[str, Any] = here.recv()
        begin, pushes = time.monotonic(), 0
        while time.monotonic() - begin < seconds:
            pushes += 1
            for number in range(replicas):
                stub.Export(replica(number, pushes), timeout=10)
            time.sleep(max(0.0, begin + 2 * pushes - time.monotonic()))
        spent = time.monotonic() - begin
        here.send(True)
        after = here.recv()
    here.send(False)
    process.join(10)
    return {
        "streams": after["streams"],
        "points_per_second": after["points"] / spent,
        "receive_cpu_share": (after["cpu"] - before["cpu"]) / spent,
        "receive_us_per_point": 1e6 * (after["cpu"] - before["cpu"]) / after["points"],
        "receive_mib": after["rss"] - before["rss"],
        "read_level_ms": after["read_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of receiving; the store keeps 60")
    args = parser.parse_args()
    results.write("signals", [], {**recording(), **receiving(args.streams, args.seconds)})


if __name__ == "__main__":
    main()
