"""A release of the chart on a real cluster, and clients of it through its Gateway.

The cluster is the one that $KUBECONFIG names (then $MESH_GATEWAY is the host:port of its Gateway, and the images are
where it finds them), else the throwaway one of tests/cluster, built and started here.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import cluster_certificates

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests/cluster"
CHART = ROOT / "charts/specrouter"
CACHE = Path(os.environ.get("CACHE", Path.home() / ".cache/specrouter-cluster"))
THROWAWAY = CACHE / "run0/admin.kubeconfig"
PARTS = {"envoy": "envoy.tar", "certificates": "cert-manager-cainjector.tar"}  # of up.sh, where build.sh has made them
MODELS = Path.home() / ".cache/specrouter/models"
VERSION = "0.1.0"
IMAGES = ("operator", "router", "level")
SCRIPT_S = 3600
GATEWAY_PORT = 16000
Object = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """A cluster with KServe and the class of a Gateway. ``gateway``: host:port. ``ours``: the throwaway one."""

    kubeconfig: Path
    gateway: str
    ours: bool

    def run(
        self, program: str, *arguments: str | Path, check: bool = True, seconds: float = 300, given: str = ""
    ) -> str:
        """What kubectl or helm prints. Raises RuntimeError with its errors when it fails."""
        own = CACHE / "bin" / program
        command = [str(own) if own.is_file() else program, *map(str, arguments)]
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig)}
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, env=environment, input=given
        )
        if check and ran.returncode:
            raise RuntimeError(f"{program} {' '.join(map(str, arguments))}: {ran.stderr.strip()}")
        return ran.stdout if check else ran.stdout + ran.stderr

    def kubectl(self, *arguments: str | Path, check: bool = True, given: str = "") -> str:
        """See ``run``."""
        return self.run("kubectl", *arguments, check=check, given=given)


@contextmanager
def cluster(say: Callable[[str], None] = lambda text: None) -> Iterator[Cluster]:
    """A whole cluster for the time being."""
    given = os.environ.get("KUBECONFIG")
    if given:
        yield Cluster(Path(given), os.environ["MESH_GATEWAY"], ours=Path(given) == THROWAWAY)
        return
    say("building the cluster's programs, where they are not there")
    _script("build.sh")
    say("building the images, where they are not there")
    for image in IMAGES:
        _script("dockerfile.sh", f"docker.io/specrouter/{image}:{VERSION}", str(ROOT), "--target", image)
    _script("down.sh")
    say("starting the cluster")
    try:
        _script("up.sh")
        _script("up.sh", *(part for part, image in PARTS.items() if (CACHE / "images" / image).is_file()))
        yield Cluster(THROWAWAY, f"10.199.0.1:{GATEWAY_PORT}", ours=True)
    finally:
        _script("down.sh")


@contextmanager
def control_plane(number: int) -> Iterator[Cluster]:
    """An API server and its controllers, with the Gateway API's definitions: nothing runs on it. ``number``: 1 to 9, so
    that it can stand beside others."""
    given = os.environ.get("KUBECONFIG")
    if given:
        yield Cluster(Path(given), "", ours=False)
        return
    _script("build.sh", "deps", "k8s", "etcd", "gateway", number=number)
    _script("down.sh", number=number)
    try:
        _script("up.sh", "control", "gateway", number=number)
        yield Cluster(CACHE / f"run{number}/admin.kubeconfig", "", ours=True)
    finally:
        _script("down.sh", number=number)


def _script(name: str, *arguments: str, number: int = 0) -> None:
    command = ["bash", str(SCRIPTS / name), *arguments]
    environment = os.environ | {"CLUSTER": str(number)}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SCRIPT_S, env=environment)
    if ran.returncode and name != "down.sh":
        raise RuntimeError(f"{name}: {ran.stdout[-2000:]}{ran.stderr[-4000:]}")


@dataclass
class Release:
    """A release of the chart in a namespace where restricted pod security is enforced."""

    cluster: Cluster
    values: Path
    namespace: str = "mesh"
    name: str = "mesh"
    rest_host: str = "rest.mesh.test"
    grpc_host: str = "grpc.mesh.test"

    def install(self, *settings: str) -> None:
        """Without waiting for anything."""
        self.prepare()
        self.helm("install", self.name, CHART, "--values", self.values, *settings)

    def prepare(self) -> None:
        """The namespace, and certificates of the levels and routers of a family ``stub``."""
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}}
        self.cluster.kubectl("apply", "-f", "-", given=json.dumps(namespace))
        names = {"level-tls": f"stub-levels.{self.namespace}.svc", "router-tls": "router"}
        for secret in cluster_certificates.secrets(names):
            self.kubectl("apply", "-f", "-", given=secret)

    def uninstall(self) -> str:
        """What Helm says."""
        return self.helm("uninstall", self.name, "--wait", "--timeout", "240s")

    def helm(self, verb: str, *arguments: str | Path) -> str:
        """See Cluster.run."""
        return self.cluster.run("helm", "--namespace", self.namespace, verb, *arguments)

    def kubectl(self, *arguments: str | Path, check: bool = True, given: str = "") -> str:
        """See Cluster.run."""
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, check=check, given=given)

    def get(self, *what: str) -> Object:
        """An object, or a list."""
        found: Object = json.loads(self.kubectl("get", *what, "-o", "json"))
        return found

    def pods(self, selector: str) -> list[str]:
        """Names of pods that are not ending."""
        items = self.get("pods", "-l", selector)["items"]
        return [item["metadata"]["name"] for item in items if "deletionTimestamp" not in item["metadata"]]

    @property
    def client(self) -> httpx.Client:
        """REST through the Gateway."""
        base = f"http://{self.cluster.gateway}"
        return httpx.Client(base_url=base, headers={"Host": self.rest_host}, timeout=120, trust_env=False)

    def ask(self, prompt: str | Sequence[int], tokens: int, *, family: str = "stub", **body: Any) -> str:
        """A text by REST. Raises httpx.HTTPError."""
        full = {"model": family, "prompt": prompt, "max_tokens": tokens} | body
        with self.client as client:
            answer = client.post("/v1/completions", json=full)
            answer.raise_for_status()
            text: str = answer.json()["choices"][0]["text"]
            return text

    def routers(self, path: str) -> list[str]:
        """What each router answers to this path, asked through the API server."""
        found = []
        for pod in self.pods("app.kubernetes.io/component=router"):
            where = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:8000/proxy{path}"
            found.append(self.cluster.kubectl("get", "--raw", where))
        return found

    def statuses(self) -> list[Object]:
        """/v1/status of each router."""
        return [json.loads(text) for text in self.routers("/v1/status")]

    def weights(self, level: str) -> list[float]:
        """The weight of a level that each router has in force."""
        begin = f'specrouter_weight{{level="{level}"}} '
        lines = [line for text in self.routers("/metrics") for line in text.splitlines()]
        return [float(line.removeprefix(begin)) for line in lines if line.startswith(begin)]

    def settled(self) -> bool:
        """Whether all pods are the wanted ones, and ready."""
        for found in self.get("deployments,statefulsets")["items"]:
            status, spec = found["status"], found["spec"]
            current = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
            counts = {status.get(key, 0) for key in ("replicas", "readyReplicas", "updatedReplicas")}
            if not current or counts != {spec["replicas"]}:
                return False
        return True


def until(what: Callable[[], object], seconds: float, pause: float = 0.25) -> float:
    """Seconds until ``what`` is true; errors count as not yet. Raises TimeoutError with the last of them."""
    begin = time.monotonic()
    said = ""
    while time.monotonic() - begin < seconds:
        try:
            if what():
                return time.monotonic() - begin
            said = ""
        except (httpx.HTTPError, RuntimeError, KeyError) as error:
            said = str(error)
        time.sleep(pause)
    raise TimeoutError(f"not within {seconds:g} s {said}")


def models_volume(release: Release) -> None:
    """The demo models, from where `specrouter models pull demo` puts them, as the claim ``demo-models``; one node."""
    for file in MODELS.rglob("*"):
        file.chmod(file.stat().st_mode | 0o044)  # pods are not root
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "demo-models"},
        "spec": {
            "capacity": {"storage": "2Gi"},
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "by-hand",
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(MODELS), "type": "Directory"},
            "claimRef": {"name": "demo-models", "namespace": release.namespace},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "demo-models"},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "by-hand",
            "resources": {"requests": {"storage": "2Gi"}},
        },
    }
    release.cluster.kubectl("apply", "-f", "-", given=json.dumps(volume))
    release.kubectl("apply", "-f", "-", given=json.dumps(claim))
