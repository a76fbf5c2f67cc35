"""Families on the real API server with the real KServe: made, edited, scaled, deleted."""

from __future__ import annotations

import os
import re
import subprocess
import time
from functools import partial

import pytest
import yaml
from control_plane import CACHE, ROOT
from families import family, level, policy
from kube import Place, is_ready, until

from specrouter_family.family import parse
from specrouter_operator.resource import (
    BUDGET,
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    FAMILY,
    INFERENCE_SERVICE,
    POLICY,
    SERVICE,
    Resource,
)


def replicas(place: Place, name: str) -> int | None:
    """The Deployment's scale."""
    found = place.get(DEPLOYMENT, name)
    return None if found is None else int(found["spec"]["replicas"])


def names(place: Place, resource: Resource) -> set[str]:
    """Names of all objects of a resource, ours and KServe's."""
    return {item["metadata"]["name"] for item in place.all(resource)} - {"kube-root-ca.crt"}


@pytest.mark.parametrize("backend", ["KServe", "Deployment"])
def test_a_family_becomes_levels_and_goes_with_all_it_had(place: Place, backend: str) -> None:
    place.operator()
    place.create("ModelFamily", "demo", family("draft", "mid", "target", backend=backend))
    place.create("RoutingPolicy", "demo", policy("demo"))
    item = place.ready(FAMILY, "demo")
    place.ready(POLICY, "demo")
    levels = ("draft", "mid", "target")
    assert names(place, DEPLOYMENT) == {f"demo-{name}-predictor" for name in levels}
    services = {f"demo-{name}-{kind}" for name in levels for kind in ("replicas", "predictor")}
    # KServe also makes a Service of the bare name when it makes ingresses
    assert services <= names(place, SERVICE) <= services | {f"demo-{name}" for name in levels}
    assert names(place, BUDGET) == {f"demo-{name}" for name in levels}
    assert names(place, INFERENCE_SERVICE) == ({f"demo-{name}" for name in levels} if backend == "KServe" else set())
    assert item["status"]["readyLevels"] == "3/3"
    assert item["status"]["chain"] == "draft < mid < target"
    made = place.get(CONFIG_MAP, "demo-family")
    assert made is not None
    file = parse(made["data"]["family.yaml"], "family.yaml")
    assert [one.address for one in file.levels] == [f"demo-{n}-replicas.{place.name}.svc:9000" for n in levels]
    headless = place.get(SERVICE, "demo-mid-replicas")
    assert headless is not None and headless["spec"]["clusterIP"] == "None"
    chosen = "specrouter.dev/family=demo,specrouter.dev/level=mid"
    pods = place.kubectl("get", "pods", "-o", "name", "-l", chosen).split()
    assert len(pods) == 1

    def gone(resource: Resource) -> bool:
        return not names(place, resource)

    place.kubectl("delete", "mf", "demo", "--wait=true", "--timeout=40s")
    for resource in (INFERENCE_SERVICE, DEPLOYMENT, SERVICE, BUDGET, CONFIG_MAP):
        until(f"no {resource.plural} left", partial(gone, resource))

    def orphaned() -> bool:
        item = place.get(POLICY, "demo")
        assert item is not None
        return not is_ready(item)

    until("the policy says that its family is gone", orphaned)


def test_nothing_is_written_when_nothing_changed(place: Place) -> None:
    place.operator()
    place.create("ModelFamily", "demo", family("draft", "target", backend="KServe"))
    place.create("RoutingPolicy", "demo", policy("demo"))
    place.ready(FAMILY, "demo")
    place.settled()

    def versions() -> dict[str, str]:
        resources = (FAMILY, POLICY, INFERENCE_SERVICE, SERVICE, BUDGET, CONFIG_MAP)
        items = [item for resource in resources for item in place.all(resource)]
        return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in items}

    def told() -> list[str]:
        events = [one for one in place.all(EVENT) if one["source"].get("component") == "specrouter-operator"]
        return [f"{one['reason']}: {one['message']}" for one in events]

    before, events = versions(), told()
    time.sleep(4)  # four ticks
    assert versions() == before
    # a new operator applies nothing that changes anything
    place._operators[0].stop()
    place.operator()
    time.sleep(3)
    assert versions() == before
    assert told() == events and len(events) <= 8


def test_scale_by_hand_is_respected_within_bounds(place: Place) -> None:
    place.operator()
    levels = [level("draft", replicas={"min": 0, "max": 3}), level("target", replicas={"min": 1, "max": 5})]
    place.create("ModelFamily", "demo", {"backend": "Deployment", "levels": levels})
    place.create("RoutingPolicy", "demo", policy("demo", scaling={"mode": "Manual"}))
    place.ready(FAMILY, "demo")
    assert replicas(place, "demo-draft-predictor") == 0
    place.kubectl("scale", "deployment/demo-target-predictor", "--replicas=3")
    until("3 in the status", lambda: place.ready(FAMILY, "demo")["status"]["levels"][1]["ready"] == 3)
    time.sleep(2.5)  # some ticks: it stays
    assert replicas(place, "demo-target-predictor") == 3
    place.kubectl("scale", "deployment/demo-target-predictor", "--replicas=9")
    until("the bound holds", lambda: replicas(place, "demo-target-predictor") == 5)
    # the family's own scale: so many times each level's minimum
    place.kubectl("scale", "mf/demo", "--replicas=2")
    until("two copies", lambda: replicas(place, "demo-target-predictor") == 2)
    assert "specrouter.dev/family=demo" in place.kubectl("get", "--raw", scale_path(place))
    place.kubectl("scale", "mf/demo", "--replicas=0")
    until("stopped", lambda: replicas(place, "demo-target-predictor") == 0)
    place.kubectl("scale", "mf/demo", "--replicas=1")
    until("started", lambda: replicas(place, "demo-target-predictor") == 1)


def scale_path(place: Place) -> str:
    """Of the family's scale subresource."""
    return FAMILY.path(place.name, "demo", "scale")


def test_automatic_scaling_takes_a_scale_by_hand_back_into_its_bounds(place: Place) -> None:
    place.operator()
    levels = [level("target", replicas={"min": 2, "max": 4})]
    place.create("ModelFamily", "demo", {"backend": "Deployment", "levels": levels})
    place.create("RoutingPolicy", "demo", policy("demo"))
    place.ready(FAMILY, "demo")
    until("the minimum", lambda: replicas(place, "demo-target-predictor") == 2)
    place.kubectl("scale", "deployment/demo-target-predictor", "--replicas=0")
    until("the minimum again", lambda: replicas(place, "demo-target-predictor") == 2)


def test_a_level_that_goes_is_forgotten_by_routers_first_and_drains(place: Place) -> None:
    place.operator()
    place.create("ModelFamily", "demo", family("draft", "mid", "target"))
    place.ready(FAMILY, "demo")
    place.edit(FAMILY, "demo", family("draft", "target"))
    seen = []

    def gone() -> bool:
        made = place.get(CONFIG_MAP, "demo-family")
        assert made is not None
        seen.append(("mid" in made["data"]["family.yaml"], replicas(place, "demo-mid-predictor")))
        return seen[-1][1] is None

    until("mid is gone", gone)
    # its replicas never went while routers still knew it
    assert not any(known and count in (0, None) for known, count in seen), seen
    until("its Services are gone", lambda: not any("mid" in name for name in names(place, SERVICE)))
    assert not any("mid" in name for name in names(place, BUDGET))
    place.ready(FAMILY, "demo")


def test_without_an_operator_a_family_waits_and_the_docs_command_lets_it_go(place: Place) -> None:
    operator = place.operator()
    place.create("ModelFamily", "demo", family("draft", "target"))
    place.ready(FAMILY, "demo")
    operator.stop()
    place.kubectl("delete", "mf", "--all", "--wait=false")
    item = place.get(FAMILY, "demo")
    assert item is not None and item["metadata"]["finalizers"] == ["specrouter.dev/drain"]
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    (command,) = [block for block in blocks if "finalizers" in block]
    environment = {**os.environ, "KUBECONFIG": str(place.kubeconfig), "PATH": f"{CACHE / 'bin'}:{os.environ['PATH']}"}
    command = command.replace(" NS ", f" {place.name} ")
    subprocess.run(["bash", "-euc", command], env=environment, check=True, capture_output=True, timeout=60)
    until("it is gone, with all it had", lambda: place.get(FAMILY, "demo") is None and not names(place, DEPLOYMENT))


def test_what_others_change_is_put_right(place: Place) -> None:
    place.operator()
    place.create("ModelFamily", "demo", family(backend="KServe"))
    place.ready(FAMILY, "demo")
    before = place.settled()
    place.api.merge(SERVICE, "demo-draft-replicas", {"spec": {"selector": {"app": "other"}}})
    place.api.merge(CONFIG_MAP, "demo-family", {"data": {"family.yaml": "nonsense"}})
    place.api.merge(BUDGET, "demo-target", {"spec": {"maxUnavailable": 3}})
    place.kubectl("delete", "svc/demo-target-replicas", "isvc/demo-draft")
    place.becomes(before)


def test_an_object_of_somebody_else_is_left_alone(place: Place) -> None:
    place.kubectl("create", "configmap", "demo-family", "--from-literal=mine=yes")
    place.operator()
    place.create("ModelFamily", "demo", family())
    status = until("a word about it", lambda: (place.get(FAMILY, "demo") or {}).get("status"))
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    assert ready["status"] == "False" and "demo-family exists and belongs to somebody else" in ready["message"]
    made = place.get(CONFIG_MAP, "demo-family")
    assert made is not None and made["data"] == {"mine": "yes"}
    place.kubectl("delete", "configmap", "demo-family")
    until("made then", lambda: is_ready(place.get(FAMILY, "demo") or {"metadata": {"generation": 1}}), 60)


def test_a_policy_that_does_not_fit_says_so_and_the_older_of_two_wins(place: Place) -> None:
    place.operator()
    place.create("ModelFamily", "demo", family("draft", "mid", "target"))
    place.create("RoutingPolicy", "odd", policy("demo", weights={"pins": {"mid": 10}}))
    place.ready(POLICY, "odd")
    place.edit(FAMILY, "demo", family("draft", "target"))  # it no longer fits; the API server can't know

    def message(name: str, type_: str) -> str:
        item = place.get(POLICY, name) or {}
        found = [one for one in item.get("status", {}).get("conditions", []) if one["type"] == type_]
        return str(found[0]["message"]) if found and found[0]["status"] == "False" else ""

    until("weights.pins named", lambda: "spec.weights.pins.mid: no level has this name" in message("odd", "Ready"))
    time.sleep(1.1)  # creation times have whole seconds
    place.create("RoutingPolicy", "late", policy("demo"))
    until("the older wins", lambda: "'odd' is older" in message("late", "Valid"))
    place.kubectl("delete", "rpol", "odd")
    place.ready(POLICY, "late")
    place.create("RoutingPolicy", "lost", policy("nobody"))
    until("familyRef named", lambda: "no ModelFamily 'nobody'" in message("lost", "Ready"))


def test_kubectl_explains_and_waits_and_lists(place: Place) -> None:
    place.operator()
    place.create("ModelFamily", "demo", family("draft", "target"))
    place.create("RoutingPolicy", "demo", policy("demo"))
    place.kubectl("wait", "--for=condition=Ready", "mf/demo", "rpol/demo", "--timeout=40s")
    table = place.kubectl("get", "mf")
    assert table.split()[:5] == ["NAME", "LEVELS", "READY", "CHAIN", "GPUS"] and "draft < target" in table
    assert "FRESH" in place.kubectl("get", "rpol")
    assert "modelfamily.specrouter.dev/demo" in place.kubectl("get", "specrouter")  # by category
    text = place.kubectl("explain", "mf.spec.levels.replicas")
    assert "Replicas at least" in text
    place.kubectl("get", "mf,rpol", "-o", "yaml")
    yaml.safe_load(place.kubectl("get", "mf", "demo", "-o", "yaml"))
