"""The chart's NetworkPolicies, enforced by kube-router: who reaches which port, and that the mesh works under them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster_mesh import CACHE, SCRIPTS, VERSION, Cluster, Object, Release, until

PROMPT = "Name three rivers."
COMPONENT, LEVEL = "app.kubernetes.io/component=", "specrouter.dev/level="
# what listens where
PORTS = {
    ("router", "REST"): (f"{COMPONENT}router", 8000),
    ("router", "gRPC"): (f"{COMPONENT}router", 8001),
    ("level", "gRPC"): (f"{LEVEL}target", 9000),
    ("level", "HTTP"): (f"{LEVEL}target", 8080),
    ("redis", "Redis"): (f"{COMPONENT}redis", 6379),
    ("operator", "OTLP"): (f"{COMPONENT}operator", 4317),
    ("operator", "HTTP"): (f"{COMPONENT}operator", 8081),
}
# who may reach what: three pods of another namespace, and pods of the mesh by their labels
ALLOWED = {
    "stranger": set(),
    "client": {("router", "REST"), ("router", "gRPC")},
    "monitor": {("router", "REST"), ("level", "HTTP"), ("operator", "HTTP")},
    f"{COMPONENT}router": {("level", "gRPC"), ("redis", "Redis"), ("operator", "OTLP")},
    f"{LEVEL}target": {("operator", "OTLP")},
    f"{COMPONENT}operator": {("redis", "Redis")},
}
OUTSIDERS = ("stranger", "client", "monitor")
REACHED = """
import json, socket, sys
def reached(host, port):
    try:
        socket.create_connection((host, port), 2).close()
    except OSError:
        return False
    return True
print(json.dumps([reached(host, port) for host, port in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def release(real_cluster: Cluster) -> Iterator[Release]:
    if not real_cluster.ours:
        pytest.skip("whether a given cluster enforces NetworkPolicies is not known")
    if not (CACHE / "bin/kube-router").is_file():
        pytest.skip("nothing here enforces NetworkPolicies: tests/cluster/build.sh policies")
    made = Release(
        real_cluster,
        SCRIPTS / "stub-values.yaml",
        namespace="net-policies",
        rest_host="rest.policies.test",
        grpc_host="grpc.policies.test",
    )
    made.prepare()
    made.install("--values", str(SCRIPTS / "policies-values.yaml"))
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "net-outside"}}
    real_cluster.kubectl("apply", "-f", "-", given=json.dumps(other))
    for name in OUTSIDERS:
        real_cluster.kubectl("apply", "-f", "-", given=json.dumps(outsider(name)))
    try:
        real_cluster.kubectl("-n", "net-outside", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s")
        until(lambda: made.ask(PROMPT, 1), 240)
        until(made.settled, 240)
        yield made
    finally:
        script("no_policies")
        real_cluster.kubectl("delete", "namespace", "net-outside", "--wait=false")
        made.uninstall()
        real_cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


def outsider(name: str) -> Object:
    """A pod of another namespace, that does nothing."""
    wait = "import signal; signal.sigwait([signal.SIGTERM])"
    container = {"name": "a", "image": f"docker.io/specrouter/router:{VERSION}", "command": ["python", "-c", wait]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "net-outside", "labels": {"role": name}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }


def script(what: str) -> None:
    command = ["bash", str(SCRIPTS / "up.sh"), what]
    subprocess.run(command, check=True, capture_output=True, timeout=180)


def reached(release: Release) -> dict[str, set[tuple[str, str]]]:
    """Who reaches what."""
    pods = {selector: release.get("pods", "-l", selector)["items"][0] for selector, _ in PORTS.values()}
    addresses = json.dumps([(pods[selector]["status"]["podIP"], port) for selector, port in PORTS.values()])

    def tried(who: str) -> set[tuple[str, str]]:
        place = ("net-outside", who) if who in OUTSIDERS else (release.namespace, pods[who]["metadata"]["name"])
        command = ("-n", place[0], "exec", place[1], "--", "python", "-c", REACHED, addresses)
        answers = json.loads(release.cluster.kubectl(*command))
        return {what for what, answer in zip(PORTS, answers, strict=True) if answer}

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(ALLOWED, pool.map(tried, ALLOWED), strict=True))


def test_without_enforcement_everybody_reaches_everything(release: Release) -> None:
    """That what is closed below is closed by the policies."""
    assert reached(release) == {who: set(PORTS) for who in ALLOWED}


def test_enforced_only_the_paths_that_exist_are_open(release: Release) -> None:
    script("policies")

    def itself(who: str) -> set[tuple[str, str]]:
        """A pod always reaches its own ports."""
        return {what for what, (selector, _) in PORTS.items() if selector == who}

    wanted = {who: allowed | itself(who) for who, allowed in ALLOWED.items()}
    until(lambda: reached(release) == wanted, 30)
    assert reached(release) == wanted


def test_the_mesh_works_under_its_policies(release: Release) -> None:
    """Through the Gateway; an edited policy gets from the API server to the routers; new pods find their peers."""
    assert "Succeeded" in release.helm("test", release.name, "--timeout", "180s")
    change = {"spec": {"weights": {"pins": {"mid": 40}}}}
    release.kubectl("patch", "rpol", "stub", "--type=merge", "-p", json.dumps(change))
    until(lambda: set(release.weights("mid")) == {40}, 30)
    for what in ("mid-predictor", "draft-predictor"):
        release.kubectl("rollout", "restart", f"deploy/stub-{what}")
    until(release.settled, 120)
    alone = release.ask(PROMPT, 40, seed=3, temperature=0.8, specrouter={"chain": ["target"]})
    assert release.ask(PROMPT, 40, seed=3, temperature=0.8, specrouter={"chain": ["draft", "mid", "target"]}) == alone
