"""Routers scaled by their own metric: HorizontalPodAutoscaler, Prometheus and prometheus-adapter, all real."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster_gateways import Request, Streamed, Way, rest
from cluster_mesh import CACHE, SCRIPTS, Cluster, Release, until

PER_ROUTER, STREAMS = 4, 12
STEP_S = 0.25
TOKENS = 240  # a minute by the target alone


@pytest.fixture(scope="module")
def release(real_cluster: Cluster) -> Iterator[Release]:
    if not real_cluster.ours or not (CACHE / "bin/prometheus-adapter").is_file():
        pytest.skip("nothing here serves metrics to an autoscaler: tests/cluster/build.sh metrics")
    subprocess.run(["bash", SCRIPTS / "up.sh", "metrics"], check=True, capture_output=True, timeout=180)
    hosts = {"rest_host": "rest.auto.test", "grpc_host": "grpc.auto.test"}
    made = Release(real_cluster, SCRIPTS / "stub-values.yaml", namespace="net-auto", **hosts)
    made.prepare()
    scaling = {
        "enabled": True,
        "minReplicas": 1,
        "maxReplicas": 3,
        "cpuUtilization": 0,
        "sequencesPerRouter": PER_ROUTER,
    }
    settings = [f"gateway.rest.hostname={made.rest_host}", f"gateway.grpc.hostname={made.grpc_host}"]
    settings += [f"family.spec.levels[2].stepMs=1:{STEP_S * 1000:g}", "operator.replicas=1"]
    sets = [part for setting in settings for part in ("--set", setting)]
    made.install("--set-json", f"router.autoscaling={json.dumps(scaling)}", *sets)
    try:
        until(lambda: made.ask("Name three rivers.", 1), 240)
        yield made
    finally:
        made.uninstall()
        real_cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


def test_running_sequences_bring_more_routers(release: Release) -> None:
    """As many as their number over what one is to have, no stream broken meanwhile."""
    through = Way("traefik", release.cluster.gateway, release.rest_host, release.grpc_host)

    def scaler() -> dict[str, object]:
        status: dict[str, object] = release.get("hpa", "mesh-specrouter-router")["status"]
        return status

    until(lambda: scaler().get("currentMetrics") and scaler()["desiredReplicas"] == 1, 90)

    def stream(seed: int) -> Streamed:
        return rest(through, Request("Name three rivers.", TOKENS, seed, chain=("target",)))

    with ThreadPoolExecutor(STREAMS) as pool:
        running = [pool.submit(stream, seed) for seed in range(STREAMS)]
        until(lambda: scaler()["desiredReplicas"] == STREAMS // PER_ROUTER, 55)
        done = [one.result() for one in running]
    assert not [one.error for one in done if one.error]
    until(lambda: len(release.statuses()) == STREAMS // PER_ROUTER, 60)
