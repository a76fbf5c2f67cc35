"""OTLP metrics as updates of streams: checked, bounded, of one form whatever the sender chose.

Of a request (opentelemetry-proto, metrics.proto) come: sums and gauges as numbers (a sum that may fall is a gauge),
histograms as sparse buckets.
Exponential histograms are brought to the fixed buckets of ``GRID``. Names become Prometheus': dots are underscores, the
unit "s" is a suffix. What nobody here reads, and resources that are no level or router of a family, are skipped.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from specrouter_core.spread import SECONDS

LEVEL, ROUTER = "specrouter-level", "specrouter-router"
MAX_POINTS = 20_000  # of one request
MAX_BUCKETS = 640
MAX_ATTRIBUTES = 32
MAX_TEXT = 512  # characters of a name or a value
GRID = (*SECONDS, *(float(x) for x in (12, 15, 18, 22, 27, 33, 39, 47, 56, 68, 82, 100, 150, 220, 330, 470, 680, 1000)))
FINE = 1.2  # ratio of neighbours in GRID, about

MAX_KNOWN = 1024
_known: dict[tuple[float, ...], tuple[float, ...]] = {}  # bounds that were checked

Attributes = tuple[tuple[str, str], ...]
Buckets = tuple[tuple[int, float], ...]  # (place, count), where the count is not 0


@dataclass(frozen=True, slots=True)
class Source:
    """Who measures: one replica of a level, or one router."""

    family: str  # name, or namespace/name
    level: str  # "" = a router
    instance: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Values by bucket; ``buckets`` count per bucket, the last place is above the last bound."""

    bounds: tuple[float, ...]
    buckets: Buckets
    total: float  # of the values


@dataclass(frozen=True, slots=True)
class Update:
    """One data point. ``delta``: counts since ``start``, and the next ones begin anew; else ever since ``start``."""

    source: Source
    name: str
    attributes: Attributes
    value: float | Histogram
    counts: bool  # it only grows; else it is a gauge
    delta: bool
    start: float  # seconds of the sender's clock; 0 = unknown
    time: float


@dataclass(slots=True)
class Read:
    """What a request holds."""

    updates: list[Update]
    skipped: int = 0  # points of resources that are not ours
    why: str = ""


def read(request: ExportMetricsServiceRequest, names: frozenset[str]) -> Read:
    """All of a request, of the metrics in ``names``. Raises ValueError that begins with the field."""
    points = sum(
        _size(metric) for part in request.resource_metrics for scope in part.scope_metrics for metric in scope.metrics
    )
    if points > MAX_POINTS:
        raise ValueError(f"data_points: at most {MAX_POINTS} in one request, got {points}")
    out = Read([])
    for part in request.resource_metrics:
        source = _source(part.resource)
        for scope in part.scope_metrics:
            for metric in scope.metrics:
                if isinstance(source, str):
                    out.skipped += _size(metric)
                    out.why = source
                    continue
                name = named(metric.name, metric.unit)
                if name in names:
                    out.updates += _points(metric, name, source)
    return out


def named(name: str, unit: str) -> str:
    """The name as Prometheus has it, without ``_total``."""
    name = name.replace(".", "_")
    return f"{name}_seconds" if unit == "s" and not name.endswith("_seconds") else name


def _size(metric: pb.Metric) -> int:
    kind = metric.WhichOneof("data")
    return len(getattr(metric, kind).data_points) if kind else 0


def _source(resource: Resource) -> Source | str:
    """The sender, or why it is none of ours."""
    said = dict(_attributes(resource.attributes, "resource.attributes"))
    service, family = said.get("service.name", ""), said.get("specrouter.family", "")
    if service not in (LEVEL, ROUTER):
        return f"resource.attributes: service.name {service!r} is neither {LEVEL} nor {ROUTER}"
    if not family:
        return "resource.attributes: specrouter.family is missing"
    level = said.get("specrouter.level", "") if service == LEVEL else ""
    if service == LEVEL and not level:
        return "resource.attributes: specrouter.level is missing"
    namespace = said.get("k8s.namespace.name", "")
    return Source(f"{namespace}/{family}" if namespace else family, level, said.get("service.instance.id", ""))


def _attributes(pairs: Iterable[KeyValue], field: str) -> Attributes:
    out = []
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        if kind not in ("string_value", "int_value", "bool_value", "double_value"):
            continue
        value = str(getattr(pair.value, kind))
        if len(pair.key) > MAX_TEXT or len(value) > MAX_TEXT:
            raise ValueError(f"{field}: keys and values may have {MAX_TEXT} characters, {pair.key[:40]!r} has more")
        out.append((pair.key, value))
    if len(out) > MAX_ATTRIBUTES:
        raise ValueError(f"{field}: at most {MAX_ATTRIBUTES}, got {len(out)}")
    return tuple(sorted(out))


def _points(metric: pb.Metric, name: str, source: Source) -> Iterable[Update]:
    kind = metric.WhichOneof("data")
    if kind == "gauge":
        return [_number(point, name, source, counts=False, delta=False) for point in metric.gauge.data_points]
    if kind == "sum":
        total = metric.sum
        delta = _delta(total.aggregation_temporality, name)
        return [_number(p, name, source, counts=total.is_monotonic, delta=delta) for p in total.data_points]
    if kind == "histogram":
        delta = _delta(metric.histogram.aggregation_temporality, name)
        return [_update(p, name, source, _explicit(p, name), delta=delta) for p in metric.histogram.data_points]
    if kind == "exponential_histogram":
        spread = metric.exponential_histogram
        delta = _delta(spread.aggregation_temporality, name)
        return [_update(p, name, source, _exponential(p, name), delta=delta) for p in spread.data_points]
    return []


def _delta(temporality: int, name: str) -> bool:
    if temporality == pb.AGGREGATION_TEMPORALITY_DELTA:
        return True
    if temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE:
        return False
    raise ValueError(f"{name}: aggregation_temporality must be delta or cumulative")


def _number(point: pb.NumberDataPoint, name: str, source: Source, *, counts: bool, delta: bool) -> Update:
    value = float(point.as_int if point.WhichOneof("value") == "as_int" else point.as_double)
    if not math.isfinite(value) or (counts and value < 0):
        raise ValueError(f"{name}: value must be finite{' and not below 0' if counts else ''}, got {value}")
    return _update(point, name, source, value, counts=counts, delta=delta)


def _update(
    point: pb.NumberDataPoint | pb.HistogramDataPoint | pb.ExponentialHistogramDataPoint,
    name: str,
    source: Source,
    value: float | Histogram,
    *,
    counts: bool = True,
    delta: bool,
) -> Update:
    attributes = _attributes(point.attributes, f"{name}: attributes")
    start, at = point.start_time_unix_nano / 1e9, point.time_unix_nano / 1e9
    if start > at > 0:
        raise ValueError(f"{name}: start_time_unix_nano lies after time_unix_nano")
    return Update(source, name, attributes, value, counts, delta, start, at)


def _explicit(point: pb.HistogramDataPoint, name: str) -> Histogram:
    bounds, counts = tuple(point.explicit_bounds), tuple(point.bucket_counts)
    if not bounds and not counts:  # the standard allows it: only count and sum are known
        return Histogram((), ((0, float(point.count)),) if point.count else (), _total(point.sum, name))
    if len(counts) != len(bounds) + 1:
        raise ValueError(
            f"{name}: bucket_counts must be one more than explicit_bounds, {len(counts)} for {len(bounds)}"
        )
    bounds = _checked(bounds, name)
    if sum(counts) != point.count:
        raise ValueError(f"{name}: bucket_counts add up to {sum(counts)}, count is {point.count}")
    return Histogram(bounds, tuple((i, float(n)) for i, n in enumerate(counts) if n), _total(point.sum, name))


def _checked(bounds: tuple[float, ...], name: str) -> tuple[float, ...]:
    """The bounds, as the one tuple that all histograms with the same ones share. Raises ValueError."""
    known = _known.get(bounds)
    if known is not None:
        return known
    if len(bounds) > MAX_BUCKETS:
        raise ValueError(f"{name}: explicit_bounds: at most {MAX_BUCKETS}, got {len(bounds)}")
    if not all(map(math.isfinite, bounds)) or any(b <= a for a, b in pairwise(bounds)):
        raise ValueError(f"{name}: explicit_bounds must be finite and grow")
    if len(_known) >= MAX_KNOWN:
        _known.clear()
    return _known.setdefault(bounds, bounds)


def _exponential(point: pb.ExponentialHistogramDataPoint, name: str) -> Histogram:
    """Bucket i of scale s holds what is above 2^(i / 2^s), up to 2^((i + 1) / 2^s)."""
    positive, negative = point.positive, point.negative
    if len(positive.bucket_counts) > MAX_BUCKETS or len(negative.bucket_counts) > MAX_BUCKETS:
        raise ValueError(f"{name}: bucket_counts: at most {MAX_BUCKETS}")
    if not -10 <= point.scale <= 20:
        raise ValueError(f"{name}: scale must be -10 to 20, got {point.scale}")
    below = point.zero_count + sum(negative.bucket_counts)
    if below + sum(positive.bucket_counts) != point.count:
        raise ValueError(f"{name}: bucket_counts and zero_count don't add up to count {point.count}")
    grown: dict[int, float] = {0: float(below)} if below else {}
    width = math.log(2) * 2.0**-point.scale  # of a bucket, as a logarithm
    parts = min(max(1, math.ceil(width / math.log(FINE))), 64)
    for i, count in enumerate(positive.bucket_counts):
        for part in range(parts if count else 0):
            middle = (positive.offset + i + (part + 0.5) / parts) * width
            place = bisect_left(GRID, math.exp(min(max(middle, -700.0), 700.0)))
            grown[place] = grown.get(place, 0.0) + count / parts
    return Histogram(GRID, tuple(sorted(grown.items())), _total(point.sum, name))


def _total(total: float, name: str) -> float:
    if not math.isfinite(total):
        raise ValueError(f"{name}: sum must be finite, got {total}")
    return total


def buckets_of(bounds: Sequence[float], pairs: Buckets) -> list[float]:
    """Sparse buckets in full."""
    out = [0.0] * (len(bounds) + 1)
    for place, count in pairs:
        out[place] += count
    return out
