"""The OTLP receiver over real gRPC: what OpenTelemetry's SDK sends, what a level sends, and what nobody should."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from exports import CUMULATIVE, MID, counter, exponential, gauge, histogram, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.sdk.metrics import Histogram as SdkHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from authority import Authority, Party
from processes import until
from specrouter_family.tls import Tls
from specrouter_operator import metric_names as m
from specrouter_operator.allowance import Allowances
from specrouter_operator.pods import token_environment
from specrouter_operator.receiver import SERVICE, Receiver
from specrouter_operator.store import Store
from stub_mesh import Level

TOKEN = "a1B2" * 8


class Served:
    """A receiver that runs."""

    def __init__(self, token: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.store = Store()
        self.receiver = Receiver(self.store, clock, token)
        self.port = self.receiver.start("127.0.0.1:0")
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub = MetricsServiceStub(self.channel)

    def refusal(self, sent: object) -> str:
        with pytest.raises(grpc.RpcError) as caught:
            self.stub.Export(sent, timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        return caught.value.details() or ""

    def close(self) -> None:
        self.channel.close()
        self.receiver.stop()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    made = Served(TOKEN)
    yield made
    made.close()


@pytest.mark.parametrize("kind", [AggregationTemporality.CUMULATIVE, AggregationTemporality.DELTA])
@pytest.mark.parametrize("fine", [False, True])
def test_what_opentelemetrys_sdk_sends(served: Served, kind: AggregationTemporality, fine: bool) -> None:
    """Either temporality, explicit and exponential histograms."""
    family = f"sdk-{kind.name.lower()}-{fine}"
    who = Resource({**MID, "specrouter.family": family, "service.instance.id": "sdk"})
    exporter = OTLPMetricExporter(
        endpoint=f"http://127.0.0.1:{served.port}", insecure=True, preferred_temporality={SdkHistogram: kind}
    )
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=math.inf)
    views = [View(instrument_name="*step*", aggregation=ExponentialBucketHistogramAggregation())] if fine else []
    provider = MeterProvider([reader], who, views=views)
    bounds = [0.001, 0.005, 0.008, 0.01, 0.02, 0.05]
    step = provider.get_meter("test").create_histogram(m.STEP, "s", explicit_bucket_boundaries_advisory=bounds)
    for _ in range(3):
        for _ in range(10):
            step.record(0.009)
        reader.collect()
    seen = served.store.level(family, "mid", time.monotonic(), 60)
    provider.shutdown()
    assert seen.steps == 30 and list(seen.replicas) == ["sdk"]
    assert seen.step is not None and 0.0075 < seen.step.p50 < 0.0105


@pytest.mark.parametrize("token", ["", TOKEN])
def test_what_a_level_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """A real process, its standard environment, its calibration; with the token, as the operator sets it."""
    served = Served(token)
    if token:
        (_, header) = token_environment("any")
        value = str(header["value"]).replace("$(SPECROUTER_OTLP_TOKEN)", token)
        monkeypatch.setitem(os.environ, str(header["name"]), value)
    monkeypatch.setitem(os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{served.port}")
    monkeypatch.setitem(os.environ, "OTEL_RESOURCE_ATTRIBUTES", "specrouter.family=demo,k8s.namespace.name=ns")
    monkeypatch.setitem(os.environ, "OTEL_METRIC_EXPORT_INTERVAL", "300")
    level = Level("mid", 0.8, "1:9,8:10")
    level.start(tmp_path)
    try:
        found = until(lambda: bool(served.store.level("ns/demo", "mid", time.monotonic(), 30).costs), 60)
        assert found, (tmp_path / "mid.log").read_text()
        seen = served.store.level("ns/demo", "mid", time.monotonic(), 30)
        assert seen.costs == {1: 0.009, 8: 0.010} and len(seen.replicas) == 1 and seen.step is None
    finally:
        level.kill()
        served.close()


def test_only_senders_with_a_certificate_reach_a_receiver_that_asks_for_one(tmp_path: Path) -> None:
    ours, others = Authority(tmp_path, "trusted"), Authority(tmp_path, "stranger")
    server, ca = ours.issue("operator", ip="127.0.0.1"), ours.own.cert
    receiver = Receiver(Store(), tls=Tls(server.cert, server.key, ca))
    address = f"127.0.0.1:{receiver.start('127.0.0.1:0')}"

    def send(client: Party | None) -> grpc.StatusCode:
        pair = (client.key.read_bytes(), client.cert.read_bytes()) if client is not None else (None, None)
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes(), *pair)) as channel:
            try:
                MetricsServiceStub(channel).Export(request(counter(m.CALLS, 1, 5)), timeout=10)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    assert [send(None), send(others.issue("level"))] == [grpc.StatusCode.UNAVAILABLE] * 2
    assert receiver.requests == 0
    assert send(ours.issue("level")) is grpc.StatusCode.OK and receiver.points == 1
    receiver.stop()


@pytest.mark.parametrize("shown", ["", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, f"Basic {TOKEN}"])
def test_who_has_not_the_token_is_refused_and_not_counted(guarded: Served, shown: str) -> None:
    before = guarded.receiver.denied
    metadata = [("authorization", shown)] if shown else []
    with pytest.raises(grpc.RpcError) as caught:
        guarded.stub.Export(request(counter(m.CALLS, 1, 5)), timeout=5, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert TOKEN not in (caught.value.details() or "")
    assert guarded.receiver.denied == before + 1
    assert guarded.store.streams == 0 and guarded.receiver.points == guarded.receiver.requests == 0


def test_who_sends_more_than_its_share_waits() -> None:
    """One address's flood takes nothing of another's; it may send again when time has passed."""
    now = [100.0]
    served = Served(clock=lambda: now[0])
    big = request(gauge("x" * (2 << 20), 1, 5))

    def send() -> grpc.StatusCode:
        try:
            served.stub.Export(big, timeout=10)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    codes = [send() for _ in range(6)]
    assert codes == [grpc.StatusCode.OK] * 3 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
    assert served.receiver.throttled == 3
    now[0] += 2.0
    assert send() is grpc.StatusCode.OK
    served.close()
    allowances = Allowances(rate=10, burst=20)
    assert allowances.take("a", 20, 0.0) and not allowances.take("a", 1, 0.0) and allowances.take("b", 20, 0.0)
    assert allowances.take("a", 10, 1.0) and not allowances.take("a", 10, 1.5)


@pytest.mark.parametrize("how", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_messages_that_are_too_long_are_refused(served: Served, how: grpc.Compression) -> None:
    """Also those that grow too long when they are unpacked."""
    seen = served.receiver.requests
    with pytest.raises(grpc.RpcError) as caught:
        served.stub.Export(request(gauge("x" * (5 << 20), 1, 5)), timeout=10, compression=how)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert served.receiver.requests == seen


def broken() -> list[tuple[str, pb.Metric, str]]:
    """What must be refused, and the field that the answer names."""
    good = [0.01, 0.1]
    many: dict[str, Any] = {f"l{i}": "x" for i in range(40)}
    nan = counter(m.CALLS, 1, 5)
    nan.sum.data_points[0].as_double = math.nan
    endless = gauge(m.HELD, math.inf, 5)
    untold = counter(m.CALLS, 1, 5, kind=pb.AGGREGATION_TEMPORALITY_UNSPECIFIED)
    miscounted = histogram(m.STEP, [1, 2, 3], good, 5)
    miscounted.histogram.data_points[0].count = 9
    lost = histogram(m.STEP, [1, 2, 3], good, 5)
    lost.histogram.data_points[0].sum = math.nan
    steep = exponential(m.STEP, [1], 5, scale=21, offset=0)
    uneven = exponential(m.STEP, [1], 5, scale=3, offset=0)
    uneven.exponential_histogram.data_points[0].count = 7
    return [
        ("value that is no number", nan, "value"),
        ("value without end", endless, "value"),
        ("negative counter", counter(m.CALLS, -1, 5), "value"),
        ("no temporality", untold, "aggregation_temporality"),
        ("too few buckets", histogram(m.STEP, [1, 2], good, 5), "bucket_counts"),
        ("bounds that fall", histogram(m.STEP, [1, 2, 3], [0.1, 0.01], 5), "explicit_bounds"),
        ("bounds that are no numbers", histogram(m.STEP, [1, 2, 3], [0.1, math.nan], 5), "explicit_bounds"),
        ("too many buckets", histogram(m.STEP, [0] * 1001, [float(i) for i in range(1000)], 5), "explicit_bounds"),
        ("counts that don't add up", miscounted, "count"),
        ("sum that is no number", lost, "sum"),
        ("scale", steep, "scale"),
        ("exponential counts", uneven, "count"),
        ("too many exponential buckets", exponential(m.STEP, [1] * 1000, 5, scale=3, offset=0), "bucket_counts"),
        ("began after it ended", counter(m.CALLS, 1, 5, start=9), "start_time_unix_nano"),
        ("long label", counter(m.CALLS, 1, 5, outcome="x" * 600), "attributes"),
        ("many labels", counter(m.CALLS, 1, 5, **many), "attributes"),
    ]


@pytest.mark.parametrize(("metric", "field"), [case[1:] for case in broken()], ids=[case[0] for case in broken()])
def test_what_cannot_be_used_is_refused_whole_and_the_field_is_named(
    served: Served, metric: pb.Metric, field: str
) -> None:
    taken = served.receiver.points
    why = served.refusal(request(gauge(m.HELD, 1, 5), metric))
    assert field in why and served.receiver.points == taken


def test_too_many_points_are_refused(served: Served) -> None:
    many = counter(m.CALLS, 1, 5)
    many.sum.data_points.extend([many.sum.data_points[0]] * 20_001)
    assert "data_points" in served.refusal(request(many))


def test_strangers_are_skipped_and_told(served: Served) -> None:
    whose = [{"service.name": "nginx"}, {**MID, "specrouter.family": ""}, {**MID, "specrouter.level": ""}]
    for who in whose:
        answer = served.stub.Export(request(gauge(m.HELD, 1, 5), who=who), timeout=5)
        assert answer.partial_success.rejected_data_points == 1 and answer.partial_success.error_message
    known = served.store.streams
    served.stub.Export(request(gauge("something.else", 1, 5)), timeout=5)
    assert served.store.streams == known


@given(st.binary(min_size=1, max_size=400))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered_with_ok_or_invalid_argument(served: Served, data: bytes) -> None:
    raw: grpc.UnaryUnaryMultiCallable[bytes, ExportMetricsServiceResponse] = served.channel.unary_unary(
        f"/{SERVICE}/Export", response_deserializer=ExportMetricsServiceResponse.FromString
    )
    try:
        raw(data, timeout=5)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_port_in_use_is_an_error_and_a_stopped_receiver_can_start_again(served: Served) -> None:
    with pytest.raises(OSError, match="cannot listen"):
        Receiver(Store()).start(f"127.0.0.1:{served.port}")
    other = Receiver(Store())
    for _ in range(2):
        port = other.start("127.0.0.1:0")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            MetricsServiceStub(channel).Export(
                request(counter(m.CALLS, 1, 5, kind=CUMULATIVE)), timeout=10, wait_for_ready=True
            )
        other.stop()
    assert other.requests == 2 and not other.running
