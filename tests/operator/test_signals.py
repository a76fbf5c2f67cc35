"""The windowed store: growth, resets, windows, freshness, and its bounds."""

from __future__ import annotations

from typing import Any

import pytest
from exports import DELTA, MID, ROUTER, counter, exponential, gauge, histogram, request
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from specrouter_core.spread import SECONDS, Spread, quantile
from specrouter_operator import metric_names as m
from specrouter_operator import otlp
from specrouter_operator.signals import NEVER
from specrouter_operator.store import Store

BOUNDS = [0.001, 0.01, 0.1]


def take(store: Store, sent: ExportMetricsServiceRequest, now: float) -> None:
    store.take(otlp.read(sent, m.READ).updates, now)


def test_rates_are_of_the_window_and_replicas_add_up() -> None:
    store = Store()
    for i in range(20):  # two replicas, a push each two seconds: 10 and 30 calls a second, one in ten fails
        at = 1000.0 + 2 * i
        for name, each in (("a", 20), ("b", 60)):
            done = counter(m.CALLS, 0.9 * each * i, at, start=900, outcome="done")
            failed = counter(m.CALLS, 0.1 * each * i, at, start=900, outcome="internal")
            busy = counter(m.BUSY, 1.5 * i, at, start=900)
            take(store, request(done, failed, busy, gauge(m.HELD, each, at), instance=name), 2.0 * i)
    seen = store.level("demo", "mid", 38.5, 10)
    assert seen.calls == pytest.approx(40) and seen.errors == pytest.approx(0.1)
    assert seen.busy == pytest.approx(0.75)
    assert seen.replicas == {"a": 20.0, "b": 60.0} and seen.age == pytest.approx(0.5)


def test_a_restart_and_deltas_count_alike() -> None:
    totals, resets, deltas = Store(), Store(), Store()
    total, since = 0.0, 0.0
    for i in range(1, 13):
        at, grown = 1000.0 + i, float(i % 4 + 1)
        total += grown
        since += grown
        if i == 6:
            since = grown  # it began anew just before
        start = 1000.0 if i < 6 else 1005.0
        take(totals, request(counter(m.FED, total, at, start=1000)), float(i))
        take(resets, request(counter(m.FED, since, at, start=start)), float(i))
        take(deltas, request(counter(m.FED, grown, at, start=at - 1, kind=DELTA)), float(i))
    rates = [store.level("demo", "mid", 12.0, 30).fed for store in (totals, resets, deltas)]
    assert rates[0] == pytest.approx(rates[1]) == pytest.approx(rates[2])


def test_a_total_that_falls_without_a_new_start_is_a_restart() -> None:
    store = Store()
    for i, total in enumerate((100.0, 150.0, 30.0, 60.0)):
        take(store, request(counter(m.FED, total, 1000.0 + i)), float(i))
    assert store.level("demo", "mid", 3.0, 30).fed == pytest.approx((50 + 30 + 30) / 3)


def test_what_was_before_the_operator_does_not_count_but_new_labels_do() -> None:
    store = Store()
    take(store, request(counter(m.CALLS, 10_000, 1000, start=1, outcome="done")), 0.0)
    assert store.level("demo", "mid", 0.0, 30).calls == 0
    done = counter(m.CALLS, 10_010, 1002, start=1, outcome="done")
    failed = counter(m.CALLS, 10, 1002, start=1, outcome="internal")  # the first ones: all of them are new
    take(store, request(done, failed), 2.0)
    seen = store.level("demo", "mid", 2.0, 30)
    assert seen.errors == pytest.approx(0.5) and seen.calls == pytest.approx(10)


def test_the_same_push_twice_and_late_pushes_change_nothing() -> None:
    store = Store()
    for at, now in ((1000, 0.0), (1002, 2.0), (1002, 2.1), (1001, 2.2), (1004, 4.0)):
        take(store, request(counter(m.FED, (at - 1000) * 10, at, start=1)), now)
    assert store.level("demo", "mid", 4.0, 30).fed == pytest.approx(10)


def test_quantiles_of_explicit_and_exponential_histograms_agree() -> None:
    for width in (0, 3, 6):
        values = [0.004 * 1.01**i for i in range(200)]
        plain = Spread(SECONDS)
        for value in values:
            plain.observe(value)
        import math  # noqa: PLC0415

        low = math.floor(math.log2(values[0]) * 2**width) - 1
        counts = [0] * 900
        for value in values:
            counts[math.ceil(math.log2(value) * 2**width) - 1 - low] += 1
        counts = counts[: max(i for i, n in enumerate(counts) if n) + 1]
        store = Store()
        take(store, request(exponential(m.STEP, counts, 1001, scale=width, offset=low, start=1000)), 0.0)
        take(store, request(histogram(m.QUEUE, plain.counts, SECONDS, 1001, 1000)), 0.0)
        seen = store.level("demo", "mid", 0.0, 30)
        assert seen.step is not None and seen.queue is not None and seen.steps == 200
        assert seen.step.p50 == pytest.approx(values[100], rel=0.25 if width == 0 else 0.1)
        assert seen.step.p95 == pytest.approx(values[190], rel=0.35 if width == 0 else 0.1)
        assert seen.queue.p50 == pytest.approx(values[100], rel=0.1)


@given(
    st.lists(st.floats(1e-5, 20), min_size=1, max_size=200),
    st.lists(st.floats(1e-5, 20), min_size=1, max_size=200),
    st.floats(0.01, 0.99),
)
def test_quantiles_over_different_bounds_lie_between_those_of_the_parts(
    a: list[float], b: list[float], share: float
) -> None:
    fine, rough = Spread(SECONDS), Spread((0.001, 0.1, 10.0))
    for value in a:
        fine.observe(value)
    for value in b:
        rough.observe(value)
    parts = [(spread.bounds, spread.counts) for spread in (fine, rough)]
    one, two = (quantile([part], share) for part in parts)
    both = quantile(parts, share)
    assert one is not None and two is not None and both is not None
    assert min(one, two) * 0.999 <= both <= max(one, two) * 1.001


def test_a_silent_replica_is_not_there_and_all_silent_are_stale() -> None:
    store = Store()
    for i in range(10):
        if i < 5:
            take(store, request(gauge(m.HELD, 1, 1000 + i), instance="a"), 2.0 * i)
        take(store, request(gauge(m.HELD, 1, 1000 + i), instance="b"), 2.0 * i)
    assert set(store.level("demo", "mid", 12.0, 10).replicas) == {"a", "b"}
    assert set(store.level("demo", "mid", 19.5, 10).replicas) == {"b"}
    late = store.level("demo", "mid", 60.0, 10)
    assert not late.replicas and late.age == pytest.approx(42.0)
    assert store.level("demo", "other", 60.0, 10).age == NEVER
    assert store.level("elsewhere", "mid", 60.0, 10).age == NEVER


def test_families_of_two_namespaces_are_apart() -> None:
    store = Store()
    for space in ("one", "two"):
        take(store, request(gauge(m.HELD, len(space), 1000), who={**MID, "k8s.namespace.name": space}), 0.0)
    assert store.level("one/demo", "mid", 0.0, 10).replicas == {"mid-0": 3.0}
    assert store.level("demo", "mid", 0.0, 10).age == NEVER


def test_routers() -> None:
    store = Store()
    for i in range(5):
        at = 1000.0 + 2 * i
        chat: dict[str, Any] = {"class": "chat"}
        metrics = [
            counter(m.REQUESTS, 6 * i, at),
            counter(m.TOKENS, 80.0 * i, at, level="draft"),
            counter(m.TOKENS, 20.0 * i, at, level="target"),
            histogram(m.ROUND, [0, 0, 30 * i, 0], BOUNDS, at, total=2.0 * i),
            histogram("specrouter_generated_tokens", [6 * i], [], at, total=300.0 * i),
            histogram("gen_ai.server.time_per_output_token", [0, 0, 6 * i, 0], BOUNDS, at, **chat),
            gauge(m.RUNNING, 7, at),
            gauge(m.AGREEMENT, 0.8, at, level="draft"),
        ]
        metrics[-3].unit = "s"
        take(store, request(*metrics, who=ROUTER), 2.0 * i)
    seen = store.routers("demo", 8.0, 20)
    assert seen.arrivals == pytest.approx(3) and seen.tokens == pytest.approx(50)
    assert seen.per_token == pytest.approx(0.02) and seen.length == pytest.approx(50)
    assert seen.running == 7 and seen.agreement == {"draft": 0.8} and seen.routers == 1
    assert 0.01 < seen.tpot["chat"].p50 < seen.tpot["chat"].p95 <= 0.1


def test_memory_is_bounded_and_the_longest_silent_go_first() -> None:
    store = Store(max_streams=100)
    for i in range(300):
        sent = request(*(counter(m.CALLS, i, 1000 + i, outcome=str(n)) for n in range(5)), instance=f"pod-{i}")
        take(store, sent, i / 100)
    assert store.streams <= 100 and store.evicted == 280
    assert set(store.level("demo", "mid", 3.0, 10).replicas) == {f"pod-{i}" for i in range(280, 300)}
    take(store, request(gauge(m.HELD, 1, 2000), instance="new"), 1000.0)
    assert store.streams == 1  # those of ten minutes ago are forgotten
