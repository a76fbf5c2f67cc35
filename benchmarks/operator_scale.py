"""The operator with 50 families of 5 levels and 2,000 metric streams: latency, memory, CPU.

    .venv/bin/python benchmarks/operator_scale.py [--families 50] [--levels 5]

The API server is the one of $KUBECONFIG, or a throwaway one (see tests/operator/control_plane.py). Levels are
Deployments whose pods are marked ready, since there are no nodes; the operator is the real command, with its service
account's rights.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as stub
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

import results
from processes import Process

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "operator"))
from control_plane import control_plane
from families import level, policy
from kube import Kubelet, Place, is_ready, until

from specrouter_operator import metric_names as m
from specrouter_operator.resource import DEPLOYMENT, FAMILY

PUSH_S = 5.0
HISTOGRAMS, COUNTERS, GAUGES = (m.STEP, m.ROWS, m.SEQUENCES, m.QUEUE), (m.BUSY, m.CALLS, m.FED), (m.HELD,)
CUMULATIVE = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
OTLP_PORT = 24317


class Running:
    """The operator's process, as /proc and its own metrics have it."""

    def __init__(self, place: Place, log: Path) -> None:
        options = {"namespace": place.name, "kubeconfig": place.operator_kubeconfig(), "port": 0}
        options |= {"otlp-port": OTLP_PORT, "lease-seconds": 6}
        command = [sys.executable, "-c", "from specrouter_operator.scripts import main; main()", "run"]
        command += [f"--{name}={value}" for name, value in options.items()]
        self.child = Process(command, log)
        found = until("the port", lambda: re.search(r"health on port (\d+)", log.read_text()), 60)
        self.url = f"http://127.0.0.1:{found[1]}/metrics"

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB resident."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.child.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def metrics(self) -> dict[str, float]:
        """Name with labels -> value."""
        text = httpx.get(self.url, timeout=30).text
        return {name: float(value) for name, value in re.findall(r"^(\S+) ([0-9.e+-]+|\+Inf)$", text, re.MULTILINE)}


def quantile(before: dict[str, float], after: dict[str, float], share: float) -> float:
    """Of reconcile times between two readings, in milliseconds: the bound of the bucket."""
    pattern = re.compile(r'specrouter_operator_reconcile_seconds_bucket\{le="([^"]+)",outcome="ok"\}')
    buckets = {float(found[1]): after[k] - before.get(k, 0) for k in after if (found := pattern.fullmatch(k))}
    total = buckets.get(float("inf"), 0.0)
    return next((bound * 1e3 for bound, count in sorted(buckets.items()) if count >= share * total), 0.0)


def between(before: dict[str, float], after: dict[str, float], prefix: str) -> float:
    """Growth of all counters of this name."""
    return sum(value - before.get(key, 0.0) for key, value in after.items() if key.startswith(prefix))


def pushes(place: Place, families: list[str], levels: list[str], stop: threading.Event, count: list[int]) -> None:
    """What one replica of every level would push: 8 streams each."""
    call = stub.MetricsServiceStub(grpc.insecure_channel(f"127.0.0.1:{OTLP_PORT}")).Export
    begun, chance = time.time_ns(), random.Random(1)
    rounds = 0
    while not stop.is_set():
        rounds += 1
        began = time.monotonic()
        for family in families:
            for name in levels:
                try:
                    call(report(place.name, family, name, begun, rounds, chance), timeout=5)
                    count[0] += 1
                except grpc.RpcError:
                    stop.wait(0.2)
        stop.wait(max(0.0, PUSH_S - (time.monotonic() - began)))


def report(namespace: str, family: str, name: str, begun: int, rounds: int, chance: random.Random) -> Any:
    """One export."""

    def text(key: str, value: str) -> common_pb2.KeyValue:
        return common_pb2.KeyValue(key=key, value=common_pb2.AnyValue(string_value=value))

    request = service.ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    whose = {"service.name": "specrouter-level", "specrouter.family": family, "specrouter.level": name}
    whose |= {"service.instance.id": f"{family}-{name}-0", "k8s.namespace.name": namespace}
    resource.resource.attributes.extend(text(key, value) for key, value in whose.items())
    scope = resource.scope_metrics.add()
    times: dict[str, Any] = {"start_time_unix_nano": begun, "time_unix_nano": time.time_ns()}
    for metric in HISTOGRAMS:
        calls = rounds * 100
        point = pb.HistogramDataPoint(
            **times,
            count=calls,
            sum=calls * 0.01 * chance.uniform(0.9, 1.1),
            explicit_bounds=[0.001, 0.005, 0.01, 0.05, 0.1],
            bucket_counts=[0, calls // 4, calls // 2, calls - calls // 4 - calls // 2, 0, 0],
        )
        histogram = pb.Histogram(data_points=[point], aggregation_temporality=CUMULATIVE)
        scope.metrics.append(pb.Metric(name=metric, histogram=histogram))
    for metric in COUNTERS:
        number = pb.NumberDataPoint(**times, as_double=rounds * 2.0)
        total = pb.Sum(data_points=[number], aggregation_temporality=CUMULATIVE, is_monotonic=True)
        scope.metrics.append(pb.Metric(name=metric, sum=total))
    for metric in GAUGES:
        gauge = pb.Gauge(data_points=[pb.NumberDataPoint(**times, as_double=3.0)])
        scope.metrics.append(pb.Metric(name=metric, gauge=gauge))
    return request


class Bench:
    """The phases, each a row."""

    def __init__(self, place: Place, families: int, levels: int, folder: Path) -> None:
        self.place, self.folder = place, folder
        self.families = [f"f{i:02d}" for i in range(families)]
        self.levels = [f"l{i}" for i in range(levels - 1)] + ["target"]
        self.rows: list[dict[str, Any]] = []
        self.process = Running(place, folder / "operator.log")

    def row(self, phase: str, seconds: float, before: dict[str, float], cpu: float, **more: Any) -> None:
        """Note a phase that began with these readings."""
        after = self.process.metrics()
        count = between(before, after, 'specrouter_operator_reconcile_seconds_count{outcome="ok"')
        made: dict[str, Any] = {
            "phase": phase,
            "seconds": round(seconds, 1),
            "reconciles": int(count),
            "p50_ms_at_most": quantile(before, after, 0.5),
            "p95_ms_at_most": quantile(before, after, 0.95),
            "writes_per_minute": round(between(before, after, "specrouter_operator_writes_total") / seconds * 60, 1),
            "cpu_percent": round((self.process.cpu() - cpu) / seconds * 100, 1),
            "memory_mib": round(self.process.memory(), 1),
            **more,
        }
        self.rows.append(made)
        print(made, flush=True)
        results.write("operator_scale", self.rows, self.summary())

    def summary(self) -> dict[str, float]:
        """The figures that the documentation uses."""
        steady = [row for row in self.rows if row["phase"].startswith("steady")]
        last = steady[-1] if steady else {}
        wanted = ("p95_ms_at_most", "writes_per_minute", "cpu_percent", "memory_mib")
        return {"families": len(self.families), "levels": len(self.levels), **{k: last[k] for k in wanted if k in last}}

    def ready(self) -> bool:
        """Whether all families are."""
        items = self.place.all(FAMILY)
        return len(items) == len(self.families) and all(map(is_ready, items))

    def create(self) -> None:
        """All families and their policies at once."""
        before, cpu, begun = self.process.metrics(), self.process.cpu(), time.monotonic()
        spec = {"backend": "Deployment", "levels": [level(name) for name in self.levels]}
        for name in self.families:
            self.place.create("ModelFamily", name, spec)
            self.place.create("RoutingPolicy", name, policy(name))
        until("all are ready", self.ready, 500)
        self.row("create all, until Ready", time.monotonic() - begun, before, cpu)

    def steady(self, phase: str, seconds: float) -> None:
        """Nothing happens."""
        before, cpu = self.process.metrics(), self.process.cpu()
        time.sleep(seconds)
        self.row(phase, seconds, before, cpu)

    def edits(self, count: int) -> None:
        """From a change of a family to the change of its Deployment."""
        before, cpu, begun = self.process.metrics(), self.process.cpu(), time.monotonic()
        taken = []
        for i in range(count):
            name = self.families[i * 7 % len(self.families)]
            self.place.edit(FAMILY, name, {"drainSeconds": 100 + i})
            start = time.monotonic()

            def done(name: str = name, i: int = i) -> bool:
                found = self.place.get(DEPLOYMENT, f"{name}-target-predictor") or {}
                return bool(found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 110 + i)

            until("the change is there", done, 60)
            taken.append(time.monotonic() - start)
        p95 = statistics.quantiles(taken, n=20)[-1]
        more = {"edit_p50_ms": round(statistics.median(taken) * 1e3), "edit_p95_ms": round(p95 * 1e3)}
        self.row(f"{count} edits, one at a time", time.monotonic() - begun, before, cpu, **more)

    def restart(self) -> None:
        """A new process takes over a mesh that is as it should be."""
        self.process.child.end(30)
        begun = time.monotonic()
        self.process = Running(self.place, self.folder / "again.log")
        names = 'specrouter_operator_reconcile_seconds_count{outcome="ok"}'
        until("all are looked at", lambda: self.process.metrics().get(names, 0) >= len(self.families), 120)
        self.row("restart, until every family was looked at", time.monotonic() - begun, {}, 0.0)


def main() -> None:
    """Run all phases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", type=int, default=50)
    parser.add_argument("--levels", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with control_plane() as kubeconfig, tempfile.TemporaryDirectory() as folder:
        kubelet = Kubelet(kubeconfig)
        kubelet.start()
        place = Place(kubeconfig, Path(folder))
        bench = Bench(place, options.families, options.levels, Path(folder))
        stop, count = threading.Event(), [0]
        try:
            bench.create()
            bench.steady("steady, no metrics", options.seconds)
            arguments = (place, bench.families, bench.levels, stop, count)
            threading.Thread(target=pushes, args=arguments, daemon=True).start()
            streams = len(bench.families) * len(bench.levels) * len((*HISTOGRAMS, *COUNTERS, *GAUGES))
            until("all have pushed", lambda: count[0] >= len(bench.families) * len(bench.levels), 60)
            bench.steady(f"steady, {streams} metric streams", options.seconds)
            bench.edits(20)
            bench.restart()
        finally:
            stop.set()
            bench.process.child.kill()
            place.close()
            kubelet.stop()


if __name__ == "__main__":
    main()
