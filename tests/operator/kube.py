"""What the tests do on the API server as its administrator, and how they look at the outcome."""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from control_plane import ROOT, kubectl

from specrouter_operator.api import Api, ApiError, connect
from specrouter_operator.operator import Operator, Pace
from specrouter_operator.pods import POD_HASH
from specrouter_operator.resource import (
    BUDGET,
    CONFIG_MAP,
    DEPLOYMENT,
    FAMILY,
    INFERENCE_SERVICE,
    POLICY,
    SERVICE,
    Object,
    Resource,
)
from specrouter_operator.settings import Settings

SOON = 45.0  # seconds; a bound for what takes one or two
NOWHERE = {"specrouter.dev/nowhere": "true"}  # no node has it, so that no real kubelet touches the pods
PACE = Pace(relist=20.0, watch=20, lease=6.0, retry=0.3)
SETTINGS = Settings(otlp_endpoint="http://collector:4317")
POD = Resource("v1", "Pod", "pods")
SHOWN = (FAMILY, POLICY, INFERENCE_SERVICE, DEPLOYMENT, SERVICE, BUDGET, CONFIG_MAP)
RIGHTS = ROOT / "operator" / "manifests" / "rbac.yaml"
_numbers = itertools.count()


def until(what: str, holds: Callable[[], Any], seconds: float = SOON, every: float = 0.05) -> Any:
    """The first true answer of ``holds``. Fails with ``what`` when it takes too long."""
    end = time.monotonic() + seconds
    while True:
        answer = holds()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)


class Place:
    """A namespace of a test's own, with an operator's service account in it."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self.name = f"t-{next(_numbers)}-{uuid.uuid4().hex[:6]}"
        self.kubeconfig, self._folder = kubeconfig, folder
        self.api = connect(str(kubeconfig), self.name, timeout=10.0)
        self.kubectl("create", "namespace", self.name, namespace=False)
        self.kubectl("apply", "-f", str(RIGHTS))
        self.token = self.kubectl("create", "token", "specrouter-operator", "--duration=2h").strip()
        self._operators: list[Operator] = []

    def kubectl(self, *arguments: str, namespace: bool = True, check: bool = True) -> str:
        """kubectl in this namespace."""
        where = [f"--namespace={self.name}"] if namespace else []
        return kubectl(self.kubeconfig, *where, *arguments, check=check)

    def operator_kubeconfig(self, server: str | None = None) -> Path:
        """A kubeconfig with exactly the operator's rights, for the API server or a proxy before it."""
        data = yaml.safe_load(self.kubeconfig.read_text())
        cluster = dict(data["clusters"][0]["cluster"])
        if server is not None:
            cluster = {"server": server}
        elif "certificate-authority" in cluster:
            authority = Path(cluster.pop("certificate-authority")).read_bytes()
            cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
        made = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        path = self._folder / f"{uuid.uuid4().hex[:8]}.kubeconfig"
        path.write_text(yaml.safe_dump(made))
        return path

    def operator(
        self,
        server: str | None = None,
        *,
        pace: Pace = PACE,
        settings: Settings = SETTINGS,
        leads: bool = False,
        **more: Any,
    ) -> Operator:
        """An operator of this namespace, started, with its own rights. ``leads``: whoever has the lease."""
        path = str(self.operator_kubeconfig(server))
        identity = f"test-{uuid.uuid4().hex[:6]}"
        made = Operator(connect(path, self.name), connect(path, self.name), identity, settings, pace=pace, **more)
        if leads:
            made.lease.held = lambda: True  # type: ignore[method-assign]
            made._world.api.may_write = lambda: True
        made.start()
        self._operators.append(made)
        return made

    def close(self) -> None:
        """Stop the operators and let everything go."""
        for one in self._operators:
            one.stop()
        for item in self.all(FAMILY):
            self.api.merge(FAMILY, item["metadata"]["name"], {"metadata": {"finalizers": None}})
        self.kubectl("delete", "namespace", self.name, "--wait=false", namespace=False)

    def create(self, kind: str, name: str, spec: Object) -> Object:
        """A family or a policy."""
        resource = FAMILY if kind == "ModelFamily" else POLICY
        return self.api.create(resource, thing(kind, name, spec))

    def edit(self, resource: Resource, name: str, spec: Object) -> Object:
        """A merge patch of the spec."""
        return self.api.merge(resource, name, {"spec": spec})

    def put_back(self, resource: Resource, name: str, spec: Object) -> None:
        """The whole spec, whatever the operator writes meanwhile."""

        def done() -> bool:
            now = self.get(resource, name)
            assert now is not None
            try:
                self.api.replace(resource, {**now, "spec": spec})
            except ApiError as error:
                assert error.status == 409, error
                return False
            return True

        until(f"{name} put back", done)

    def get(self, resource: Resource, name: str) -> Object | None:
        """An object as it is."""
        return self.api.get(resource, name)

    def all(self, resource: Resource) -> list[Object]:
        """All objects as they are."""
        items = self.api.list(resource)[0]
        return [{**item, "apiVersion": resource.api_version, "kind": resource.kind} for item in items]

    def ready(self, resource: Resource, name: str, seconds: float = SOON) -> Object:
        """Wait until the operator has seen the newest spec, and it is Ready."""

        def answer() -> Object | None:
            item = self.get(resource, name)
            return item if item is not None and is_ready(item) else None

        found: Object = until(f"{resource.kind} {name} ready: {self._status(resource, name)}", answer, seconds)
        return found

    def _status(self, resource: Resource, name: str) -> str:
        return json.dumps((self.get(resource, name) or {}).get("status"))

    def dump(self) -> dict[str, Object]:
        """Everything that matters in this namespace, without what differs from run to run."""
        out = {}
        for resource in SHOWN:
            for item in self.all(resource):
                name = item["metadata"]["name"]
                if name not in ("kube-root-ca.crt", "openshift-service-ca.crt"):
                    out[f"{resource.kind}/{name}"] = normal(item, resource, self.name)
        return out

    def becomes(self, dump: dict[str, Object], seconds: float = SOON) -> None:
        """Wait until everything is as in ``dump``; fails with what differs."""
        end = time.monotonic() + seconds
        while differing := differences(dump, self.dump()):
            assert time.monotonic() < end, f"not within {seconds:.0f} s, still other: {differing}"
            time.sleep(0.1)

    def settled(self, seconds: float = SOON) -> dict[str, Object]:
        """The dump, once it stays the same for a while and all is ready."""
        last: list[Any] = [None, 0.0]
        waiting: list[Object] = []

        def stable() -> dict[str, Object] | None:
            ours = [item for resource in (FAMILY, POLICY) for item in self.all(resource)]
            waiting[:] = [item for item in ours if not is_ready(item)]
            waiting.extend(item for item in [*ours, *self.all(DEPLOYMENT)] if not is_complete(item))
            if waiting:
                last[0] = None
                return None
            now, dump = time.monotonic(), self.dump()
            if dump != last[0]:
                last[:] = [dump, now]
            return dump if now - last[1] > 0.6 else None

        try:
            found: dict[str, Object] = until("the namespace settled", stable, seconds, every=0.3)
        except AssertionError as error:
            names = [f"{one['kind']} {one['metadata']['name']}: {one.get('status')}" for one in waiting]
            raise AssertionError(f"{error}; waiting for {names}") from None
        return found


def differences(wanted: Any, found: Any, where: str = "") -> list[str]:
    """Where two dumps differ, and how."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = sorted({**wanted, **found})
        pairs = [(f"{where}.{key}", wanted.get(key, "(none)"), found.get(key, "(none)")) for key in keys]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(wanted, found, strict=True))]
    else:
        return [] if wanted == found else [f"{where}: {str(found)[:200]} in place of {str(wanted)[:200]}"]
    return [text for path, a, b in pairs for text in differences(a, b, path)]


def thing(kind: str, name: str, spec: Object) -> Object:
    """A family or a policy as an object."""
    resource = FAMILY if kind == "ModelFamily" else POLICY
    return {"apiVersion": resource.api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def is_ready(item: Object) -> bool:
    """Whether the condition Ready holds, for the newest spec."""
    status = item.get("status", {})
    if status.get("observedGeneration") != item["metadata"]["generation"]:
        return False
    return any(one["type"] == "Ready" and one["status"] == "True" for one in status["conditions"])


def is_complete(item: Object) -> bool:
    """Whether every replica that is wanted is there and ready, and no other."""
    if item["kind"] == DEPLOYMENT.kind:
        status, want = item.get("status", {}), item["spec"]["replicas"]
        counts = [status.get(name, 0) for name in ("replicas", "readyReplicas", "updatedReplicas")]
        return counts == [want] * 3 and status.get("observedGeneration") == item["metadata"]["generation"]
    levels = item.get("status", {}).get("levels", [])
    return all(one["desired"] == one["replicas"] == one["ready"] for one in levels)


def normal(item: Object, resource: Resource, namespace: str) -> Object:
    """An object without identities, times and counters."""
    meta = item["metadata"]
    kept = {key: meta[key] for key in ("name", "labels", "finalizers") if key in meta}
    notes = {k: v for k, v in meta.get("annotations", {}).items() if k != "deployment.kubernetes.io/revision"}
    owners = [f"{one['kind']}/{one['name']}" for one in meta.get("ownerReferences", [])]
    parts = {key: value for key, value in item.items() if key in ("spec", "data")}
    if resource in (FAMILY, POLICY):
        parts["status"] = item.get("status")
    plain = json.loads(json.dumps({"metadata": {**kept, "annotations": notes, "owners": owners}, **parts}))
    text = json.dumps(_without(plain)).replace(namespace, "NAMESPACE")
    made: Object = json.loads(text)
    return made


CHANGING = frozenset({"lastTransitionTime", "observedGeneration", "clusterIP", "clusterIPs", "reasons", "message"})
CHANGING |= {POD_HASH}  # the namespace is in it


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if k not in CHANGING or v == "None"}
    return [_without(one) for one in value] if isinstance(value, list) else value


class Kubelet:
    """Marks the pods of all families ready, as a kubelet would: there are no nodes."""

    def __init__(self, kubeconfig: Path) -> None:
        self._api = connect(str(kubeconfig), "default", timeout=10.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            try:
                for pod in self._waiting():
                    self._ready(pod)
            except ApiError:
                continue  # a pod that went meanwhile; the next round shows

    def _waiting(self) -> Iterator[Object]:
        path = "/api/v1/pods"
        query = {"labelSelector": "specrouter.dev/family", "fieldSelector": "status.phase=Pending"}
        for pod in self._api._ask("GET", path, query)["items"]:
            if not pod["metadata"].get("deletionTimestamp"):
                yield pod

    def _ready(self, pod: Object) -> None:
        meta = pod["metadata"]
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
        status = {"status": {"phase": "Running", "conditions": [ready]}}
        api = Api(self._api._wire, meta["namespace"], timeout=10.0)
        api.merge(POD, meta["name"], status, "status")
