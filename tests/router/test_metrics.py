"""What is measured is the same for Prometheus and for OpenTelemetry, and its size is bounded."""

from __future__ import annotations

import logging
import time

import pytest
from opentelemetry.sdk.metrics.export import Histogram, Sum
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from processes import until
from specrouter_core.spread import SECONDS
from specrouter_router.measure import Measure
from specrouter_router.metrics import OTEL_NAMES, Metrics
from specrouter_telemetry.collected import MOST, Spreads
from specrouter_telemetry.push import Push, converted, wanted


def test_both_ways_tell_the_same() -> None:
    metrics = Metrics()
    metrics.per_token["chat"].observe(0.02)
    metrics.per_token["chat"].observe(0.03)
    metrics.call_ended("mid", "done")
    metrics.checked("draft", "mid", 5, 3)
    scraped = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }
    pushed = {metric.name: metric for metric in converted(metrics.registry.collect(), OTEL_NAMES, 1, 2)}
    name = "gen_ai_server_time_per_output_token_seconds"
    spread = pushed[OTEL_NAMES[name]]
    assert spread.unit == "s" and isinstance(spread.data, Histogram)
    point = spread.data.data_points[0]
    assert point.count == scraped[f"{name}_count", (("class", "chat"),)] == 2
    assert point.sum == pytest.approx(0.05) and tuple(point.explicit_bounds) == SECONDS
    assert sum(point.bucket_counts) == 2 and len(point.bucket_counts) == len(SECONDS) + 1
    pairs = pushed["specrouter_accepted"].data
    assert isinstance(pairs, Sum) and pairs.is_monotonic
    assert (
        pairs.data_points[0].value == scraped["specrouter_accepted_total", (("lower", "draft"), ("upper", "mid"))] == 3
    )
    assert not any(name.endswith("_total") for name in pushed)


def test_clients_cannot_grow_the_metrics_by_inventing_classes() -> None:
    spreads = Spreads("test_seconds", "x", CollectorRegistry(), by="class")
    for i in range(1000):
        spreads[f"class-{i}"].observe(1)
    (family,) = spreads.collect()
    classes = {sample.labels["class"] for sample in family.samples}
    assert len(classes) == MOST + 1 and "other" in classes
    counts = [sample.value for sample in family.samples if sample.name.endswith("_count")]
    assert sum(counts) == 1000


def test_a_sequences_times() -> None:
    metrics = Metrics()
    measure = Measure(metrics, "chat", 12, 100.0, resumed=False)
    measure.round(0.5, 3, 100.5)  # reads the prompt
    for i in range(4):
        measure.round(0.1, 2, 100.6 + i / 10)
    measure.ended()
    assert metrics.first_token["chat"].total == pytest.approx(0.5)
    assert metrics.per_token["chat"].total == pytest.approx(0.05)
    assert metrics.prompts.total == 12 and metrics.generated.total == 11
    resumed = Measure(metrics, "chat", 12, 100.0, resumed=True)
    resumed.round(0.5, 3, 100.5)
    assert sum(metrics.first_token["chat"].counts) == 1


def test_a_lost_collector_is_told_once_and_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert not wanted()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    assert wanted()
    with caplog.at_level(logging.INFO):
        push = Push(Metrics().registry, {"service.name": "test"})
        push.start()
        assert until(lambda: bool(caplog.records))
        begin = time.monotonic()
        push.stop()
    assert time.monotonic() - begin < 5
    assert [record.message for record in caplog.records] == ["metrics can't be pushed"]
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "often")
    with pytest.raises(ValueError, match="OTEL_METRIC_EXPORT_INTERVAL"):
        Push(Metrics().registry, {})
