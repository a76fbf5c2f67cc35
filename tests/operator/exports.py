"""OTLP requests as the tests need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

CUMULATIVE, DELTA = pb.AGGREGATION_TEMPORALITY_CUMULATIVE, pb.AGGREGATION_TEMPORALITY_DELTA
MID = {"service.name": "specrouter-level", "specrouter.family": "demo", "specrouter.level": "mid"}
ROUTER = {"service.name": "specrouter-router", "specrouter.family": "demo", "service.instance.id": "r-0"}


def pairs(said: Mapping[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in said.items()]


def request(*metrics: pb.Metric, who: Mapping[str, str] = MID, instance: str = "mid-0") -> ExportMetricsServiceRequest:
    made = ExportMetricsServiceRequest()
    part = made.resource_metrics.add()
    part.resource.attributes.extend(pairs({"service.instance.id": instance, **who}))
    part.scope_metrics.add().metrics.extend(metrics)
    return made


def counter(
    name: str,
    value: float,
    at: float,
    *,
    start: float = 0.0,
    kind: pb.AggregationTemporality.ValueType = CUMULATIVE,
    **labels: str,
) -> pb.Metric:
    point = pb.NumberDataPoint(
        as_double=value, time_unix_nano=int(at * 1e9), start_time_unix_nano=int(start * 1e9), attributes=pairs(labels)
    )
    return pb.Metric(name=name, sum=pb.Sum(data_points=[point], aggregation_temporality=kind, is_monotonic=True))


def gauge(name: str, value: float, at: float, **labels: str) -> pb.Metric:
    point = pb.NumberDataPoint(as_double=value, time_unix_nano=int(at * 1e9), attributes=pairs(labels))
    return pb.Metric(name=name, gauge=pb.Gauge(data_points=[point]))


def histogram(
    name: str,
    counts: Sequence[int],
    bounds: Sequence[float],
    at: float,
    start: float = 0.0,
    kind: pb.AggregationTemporality.ValueType = CUMULATIVE,
    *,
    total: float | None = None,
    **labels: str,
) -> pb.Metric:
    point = pb.HistogramDataPoint(
        count=sum(counts),
        sum=sum(counts) if total is None else total,
        bucket_counts=counts,
        explicit_bounds=bounds,
        time_unix_nano=int(at * 1e9),
        start_time_unix_nano=int(start * 1e9),
        attributes=pairs(labels),
    )
    return pb.Metric(name=name, histogram=pb.Histogram(data_points=[point], aggregation_temporality=kind))


def exponential(
    name: str, counts: Sequence[int], at: float, *, scale: int, offset: int, zeros: int = 0, start: float = 0.0
) -> pb.Metric:
    point = pb.ExponentialHistogramDataPoint(
        count=sum(counts) + zeros,
        sum=1.0,
        scale=scale,
        zero_count=zeros,
        positive=pb.ExponentialHistogramDataPoint.Buckets(offset=offset, bucket_counts=counts),
        time_unix_nano=int(at * 1e9),
        start_time_unix_nano=int(start * 1e9),
    )
    spread = pb.ExponentialHistogram(data_points=[point], aggregation_temporality=CUMULATIVE)
    return pb.Metric(name=name, exponential_histogram=spread)
