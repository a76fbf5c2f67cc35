"""The chart on a real cluster: installed, called through the Gateway, disturbed, upgraded, removed; in this order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import openai
import pytest
import pytest_asyncio

from cluster_load import Load, Seen
from cluster_mesh import CHART, SCRIPTS, Cluster, Release, until
from specrouter.v1 import level_pb2, router_pb2
from specrouter.v1.router_pb2_grpc import RouterServiceStub

PROMPT, TOKENS, SEED = "Name three rivers.", 60, 7
OURS = ("configmap/kube-root-ca.crt", "serviceaccount/default", "secret/level-tls", "secret/router-tls")
COMPONENT, LEVEL = "app.kubernetes.io/component=", "specrouter.dev/level="


@pytest.fixture(scope="module")
def release(real_cluster: Cluster) -> Release:
    made = Release(real_cluster, SCRIPTS / "stub-values.yaml")
    made.install()
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(release: Release) -> Load:
    made = Load(release, "stub")
    await made.learn()
    return made


def test_it_answers_through_the_gateway_with_the_targets_own_text(release: Release) -> None:
    def ask(**body: Any) -> str:
        return release.ask(PROMPT, TOKENS, seed=SEED, temperature=0.8, **body)

    until(ask, 240)
    alone = ask(specrouter={"chain": ["target"]})
    assert ask() == alone

    client = openai.OpenAI(
        base_url=f"http://{release.cluster.gateway}/v1", api_key="none", default_headers={"Host": release.rest_host}
    )
    stream = client.completions.create(
        model="stub", prompt=PROMPT, max_tokens=TOKENS, seed=SEED, temperature=0.8, stream=True
    )
    parts = [chunk.choices[0].text for chunk in stream if chunk.choices]
    assert "".join(parts) == alone and len(parts) > 5, "the Gateway held the stream back"

    options = [("grpc.default_authority", release.grpc_host)]
    with grpc.insecure_channel(release.cluster.gateway, options=options) as channel:
        request = router_pb2.GenerateRequest(
            model="stub",
            text=PROMPT,
            max_tokens=TOKENS,
            sampling=level_pb2.Sampling(seed=SEED, temperature=0.8),
        )
        events = list(RouterServiceStub(channel).Generate(request, timeout=60))
    assert "".join(event.text for event in events) == alone


def test_everything_says_that_it_is_ready(release: Release) -> None:
    release.kubectl("wait", "--for=condition=Ready", "--timeout=120s", "mf/stub", "rpol/stub")
    release.kubectl("rollout", "status", "deploy", "--timeout=120s")
    assert "Succeeded" in release.helm("test", release.name, "--timeout", "180s")


def test_metrics_and_health_are_not_on_the_gateway(release: Release) -> None:
    with release.client as client:
        assert client.get("/metrics").status_code == 404
        assert client.get("/healthz").status_code == 404
        assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("part", ["router", "operator", "level"])
def test_images_hold_what_they_need_and_say_what_that_is(release: Release, part: str) -> None:
    """Not as root, on files that nothing can be written to, without a compiler."""
    pod = release.pods(f"{COMPONENT}{part}" if part != "level" else f"{LEVEL}target")[0]
    script = f"""
import importlib.util, json, os, shutil
assert os.getuid() == 65532
try:
    open("/app/x", "w")
except OSError:
    pass
else:
    raise SystemExit("/app can be written to")
assert not any(shutil.which(name) for name in ("cc", "gcc", "g++", "clang", "ld", "make")), "a compiler"
assert importlib.util.find_spec("ziglang") is None
listed = json.load(open("/app/share/sbom/specrouter-{part}.cdx.json"))
assert listed["bomFormat"] == "CycloneDX"
names = {{component["name"] for component in listed["components"]}}
assert {{"specrouter", "grpcio"}} <= names, names
assert ("torch" in names) == ("{part}" == "level")
print("fine")
"""
    assert release.kubectl("exec", pod, "--", "python", "-c", script).strip() == "fine"


def test_levels_speak_with_nobody_who_has_no_certificate(release: Release) -> None:
    script = """
import grpc
from specrouter.v1 import level_pb2, level_pb2_grpc
stub = level_pb2_grpc.LevelServiceStub(grpc.insecure_channel("stub-target-replicas:9000"))
try:
    stub.Describe(level_pb2.DescribeRequest(), timeout=5)
except grpc.RpcError as error:
    print(error.code().name)
"""
    pod = release.pods(f"{COMPONENT}router")[0]
    assert release.kubectl("exec", pod, "--", "python", "-c", script).strip() == "UNAVAILABLE"


def test_levels_health_and_metrics_are_by_tls(release: Release) -> None:
    """That the kubelet's probes are, too, is seen by their pods being ready."""
    pod = release.pods("specrouter.dev/level=target")[0]
    where = f"/api/v1/namespaces/{release.namespace}/pods/%s{pod}:8080/proxy/metrics"
    assert "specrouter_level_calls_total" in release.cluster.kubectl("get", "--raw", where % "https:")
    assert "specrouter_level_calls_total" not in release.cluster.kubectl("get", "--raw", where % "", check=False)


def test_restricted_pod_security_is_enforced(release: Release) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root"},
        "spec": {"containers": [{"name": "a", "image": "specrouter.local/pause:1"}]},
    }
    said = release.kubectl("apply", "-f", "-", check=False, given=json.dumps(pod))
    assert 'violates PodSecurity "restricted' in said


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("get", "secrets"),
        ("list", "pods"),
        ("create", "pods"),
        ("delete", "modelfamilies.specrouter.dev"),
        ("update", "modelfamilies.specrouter.dev"),
        ("create", "roles.rbac.authorization.k8s.io"),
        ("get", "nodes"),
        ("deletecollection", "deployments.apps"),
    ],
)
def test_what_the_operator_need_not_do_it_may_not(release: Release, verb: str, what: str) -> None:
    account = f"system:serviceaccount:{release.namespace}:mesh-specrouter-operator"
    assert release.kubectl("auth", "can-i", verb, what, "--as", account, check=False).startswith("no")
    assert release.kubectl(
        "auth", "can-i", "list", "deployments.apps", "-n", "kube-system", "--as", account, check=False
    ).startswith("no")


def test_an_edited_policy_is_in_force_within_seconds(release: Release) -> None:
    assert set(release.weights("mid")) == {100}
    change = {"spec": {"weights": {"pins": {"mid": 40}}}}
    release.kubectl("patch", "rpol", "stub", "--type=merge", "-p", json.dumps(change))
    until(lambda: set(release.weights("mid")) == {40}, 20)
    assert release.get("rpol", "stub")["status"]["weights"]["mid"] == 40, "routers have it before the status says so"
    release.kubectl("patch", "rpol", "stub", "--type=merge", "-p", json.dumps({"spec": {"weights": None}}))


def test_levels_scale_by_the_family(release: Release) -> None:
    def replicas() -> set[int]:
        return {
            len([replica for replica in level["replicas"] if replica["state"] == "ready"])
            for status in release.statuses()
            for level in status["levels"]
            if level["name"] == "mid"
        }

    def scaled(count: int) -> bool:
        return replicas() == {count}

    for count in (2, 1):
        release.kubectl("scale", "deploy", "stub-mid-predictor", f"--replicas={count}")
        until(partial(scaled, count), 90)


@pytest.mark.parametrize(
    "of",
    [
        f"{LEVEL}target",
        f"{LEVEL}mid",
        f"{LEVEL}draft",
        f"{COMPONENT}router",
        f"{COMPONENT}redis",
        f"{COMPONENT}operator",
    ],
)
async def test_a_killed_pod_changes_no_text(release: Release, load: Load, of: str) -> None:
    until(release.settled, 120)

    async def kill() -> None:
        victim = release.pods(of)[0]
        await asyncio.to_thread(release.kubectl, "delete", "pod", victim, "--grace-period=0", "--force")
        await asyncio.sleep(5)

    sound(await load.during(kill))


async def test_an_upgrade_and_a_rollback_fail_no_request(release: Release, load: Load) -> None:
    until(release.settled, 120)

    def doing(*verb: str) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            await asyncio.to_thread(release.helm, *verb)
            await asyncio.to_thread(until, release.settled, 240, 1.0)

        return act

    changed = ["--set-string", "router.podAnnotations.try=2", "--set-string", "operator.podAnnotations.try=2"]
    changed += ["--set", "family.spec.levels[1].slots=24", "--set", "family.spec.levels[2].slots=24"]
    upgrade = ["upgrade", release.name, str(CHART), "--values", str(release.values), *changed]
    sound(await load.during(doing(*upgrade)))
    slots = release.get("mf", "stub")["spec"]["levels"][2]["slots"]
    assert slots == 24
    sound(await load.during(doing("rollback", release.name, "1")))
    assert "slots" not in release.get("mf", "stub")["spec"]["levels"][2]


def test_an_uninstall_leaves_nothing(release: Release) -> None:
    release.uninstall()

    def left() -> list[str]:
        kinds = "all,configmaps,secrets,pvc,sa,roles,rolebindings,networkpolicies,pdb,mf,rpol,isvc"
        kinds += ",httproutes,grpcroutes,gateways"
        names = release.kubectl("get", kinds, "-o", "name", "--ignore-not-found").split()
        return [name for name in names if name not in OURS]

    until(lambda: not left(), 60)
    assert "modelfamilies.specrouter.dev" in release.cluster.kubectl("get", "crd", "-o", "name")


def sound(seen: Seen) -> None:
    """Every text came, whole, and was the target's own."""
    assert seen.texts >= 8 and not seen.changed and not seen.failed, str(seen)
