"""Levels that ask for GPUs (pretended ones) on a real cluster: an upgrade without one to spare, and replicas by the
policy and by what levels and routers report, set by the real operator; under streams, in this order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from cluster_load import Load, Seen
from cluster_mesh import SCRIPTS, Cluster, Release, until

NODE = "specrouter"  # of the throwaway cluster
GPU = "nvidia.com~1gpu"
TARGET, MID = "scaled-target-predictor", "scaled-mid-predictor"


def pretend(cluster: Cluster, gpus: int) -> None:
    """GPUs of the node, as a device plugin would report them."""
    patch = [{"op": "add", "path": f"/status/capacity/{GPU}", "value": str(gpus)}]
    cluster.kubectl("patch", "node", NODE, "--subresource=status", "--type=json", "-p", json.dumps(patch))
    allocatable = "jsonpath={.items[0].status.allocatable.nvidia\\.com/gpu}"
    until(lambda: cluster.kubectl("get", "nodes", "-o", allocatable) == str(gpus), 60)


@pytest.fixture(scope="module")
def release(real_cluster: Cluster) -> Iterator[Release]:
    if NODE not in real_cluster.kubectl("get", "nodes", "-o", "name"):
        pytest.skip("GPUs are pretended on the throwaway cluster only")
    pretend(real_cluster, 2)
    hosts = {"rest_host": "rest.scaled.test", "grpc_host": "grpc.scaled.test"}
    made = Release(real_cluster, SCRIPTS / "scaled-values.yaml", namespace="scaled", **hosts)
    made.install()
    until(lambda: made.ask("Name three rivers.", 1, family="scaled"), 240)
    until(made.settled, 120)
    yield made
    made.uninstall()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(release: Release) -> Load:
    made = Load(release, "scaled")
    await made.learn()
    return made


def edit(release: Release, kind: str, change: dict[str, Any] | list[dict[str, Any]], how: str = "merge") -> None:
    """As kubectl edit would."""
    release.kubectl("patch", kind, "scaled", f"--type={how}", "-p", json.dumps(change))


def replicas(release: Release, name: str = TARGET) -> tuple[int, int]:
    """Asked for, and ready."""
    found = release.get("deploy", name)
    return found["spec"]["replicas"], found["status"].get("readyReplicas", 0)


def in_a_thread(act: Callable[[], object]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await asyncio.to_thread(act)

    return run


@pytest.mark.parametrize("level", [1, 2], ids=["mid", "target"])
async def test_an_upgrade_without_a_gpu_to_spare_loses_no_text(release: Release, load: Load, level: int) -> None:
    """The old replica ends before its successor starts; the target's pause is waited out."""
    name = (MID, TARGET)[level - 1]
    before = release.get("deploy", name)
    assert before["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}

    def upgrade() -> None:
        edit(release, "mf", [{"op": "add", "path": f"/spec/levels/{level}/slots", "value": 24}], "json")
        until(lambda: release.get("deploy", name)["metadata"]["generation"] > before["metadata"]["generation"], 30)
        until(release.settled, 180)

    sound(await load.during(in_a_thread(upgrade)))


async def test_a_replica_without_a_gpu_waits_for_one(release: Release, load: Load) -> None:
    """More replicas than GPUs: the surplus is pending, and serves as soon as there is one more."""
    release.kubectl("scale", "deploy", TARGET, "--replicas=2")

    def pending() -> bool:
        pods = release.get("pods", "-l", "specrouter.dev/level=target")["items"]
        said = [
            condition.get("message", "")
            for pod in pods
            for condition in pod["status"].get("conditions", ())
            if condition["type"] == "PodScheduled" and condition["status"] == "False"
        ]
        return len(said) == 1 and "Insufficient nvidia.com/gpu" in said[0]

    until(pending, 60)
    pretend(release.cluster, 4)
    until(lambda: replicas(release) == (2, 2), 90)
    release.kubectl("scale", "deploy", TARGET, "--replicas=1")
    until(lambda: replicas(release) == (1, 1), 90)


async def test_replicas_follow_the_policy_and_the_load(release: Release, load: Load) -> None:
    """More by what is measured under load, fewer at once by an edit of the budget, the least again without load."""
    quick = {"upSeconds": 2, "downSeconds": 15}
    edit(release, "rpol", {"spec": {"scaling": {"mode": "Auto", "stabilization": quick}}})
    release.kubectl("wait", "--for=condition=SignalsFresh", "--timeout=60s", "rpol/scaled")

    def grow_then_cut() -> None:
        until(lambda: replicas(release)[1] >= 2, 120)
        until(lambda: replicas(release)[0] == 3, 120)
        edit(release, "rpol", {"spec": {"scaling": {"gpuBudget": 3}}})
        until(lambda: replicas(release)[0] == 2, 30)

    sound(await load.during(in_a_thread(grow_then_cut), streams=24))
    edit(release, "rpol", {"spec": {"scaling": {"gpuBudget": None}}})
    until(lambda: replicas(release) == (1, 1), 150)
    reasons = release.get("rpol", "scaled")["status"]["reasons"]
    assert any("target" in reason for reason in reasons), reasons


def sound(seen: Seen) -> None:
    """Every text came, whole, and was the target's own."""
    assert seen.texts >= 4 and not seen.changed and not seen.failed, str(seen)
