"""When an edited family is Ready again: not before its Deployments are what it asks for, every replica of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from families import level
from kube import Place, until

from specrouter_operator.pods import POD_HASH
from specrouter_operator.resource import DEPLOYMENT, EVENT, FAMILY, Object
from specrouter_operator.situation import Seen

DONE = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
COUNTS = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}


def deployment(**status: Any) -> Object:
    """One whose third version was rolled out, but for ``status``."""
    template = {"metadata": {"annotations": {POD_HASH: "new"}}}
    made = {"observedGeneration": 3, **COUNTS, "conditions": [DONE], **status}
    return {"metadata": {"generation": 3}, "spec": {"replicas": 2, "template": template}, "status": made}


@pytest.mark.parametrize(
    ("status", "rolled_out"),
    [
        ({}, True),
        ({"readyReplicas": 1, "replicas": 3, "updatedReplicas": 3}, True),  # replicas are added
        ({"observedGeneration": 2}, False),  # Kubernetes has not looked at it yet
        ({"replicas": 3}, False),  # one of an older version is still there
        ({"conditions": [DONE | {"reason": "ReplicaSetUpdated"}]}, False),  # the last new one is starting
        ({"conditions": []}, False),
    ],
)
def test_a_rollout_is_complete_when_kubernetes_says_so(status: Object, rolled_out: bool) -> None:
    assert Seen.of(deployment(**status)).rolled_out == ("new" if rolled_out else "")


def test_another_number_of_replicas_is_no_rollout() -> None:
    scaled = deployment(observedGeneration=2)
    assert Seen.of(scaled, known="new").rolled_out == "new"
    assert Seen.of(scaled, known="old").rolled_out == ""
    assert Seen.of(deployment(observedGeneration=2, replicas=3), known="new").rolled_out == ""


@pytest.mark.parametrize(("wish", "rolled_out"), [("new", True), ("newer", False)])
def test_kserve_must_have_taken_the_newest_wish_over(wish: str, rolled_out: bool) -> None:
    service = {"spec": {"predictor": {"annotations": {POD_HASH: wish}}}}
    assert Seen.of(deployment(), service, "new").rolled_out == ("new" if rolled_out else "")


@contextmanager
def deployments_stay_as_they_are(place: Place) -> Iterator[None]:
    """Nobody may change the specs of this namespace's Deployments, KServe among them."""
    name = f"stay-{place.name}"
    rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"], "operations": ["UPDATE"]}
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "object.spec.template == oldObject.spec.template"}],
    }
    chosen = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": place.name}}}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": chosen}
    kinds = {"ValidatingAdmissionPolicy": spec, "ValidatingAdmissionPolicyBinding": binding}
    for kind, given in kinds.items():
        item = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}}
        path = place.kubeconfig.with_name(f"{name}-{kind}.json")
        path.write_text(json.dumps(item | {"spec": given}))
        place.kubectl("apply", "-f", str(path), namespace=False)
        path.unlink()
    try:
        until("the rule is in force", lambda: _is_refused(place))
        yield
    finally:
        for kind in kinds:
            place.kubectl("delete", kind, name, namespace=False)


def _is_refused(place: Place) -> bool:
    tried = json.dumps({"spec": {"template": {"metadata": {"annotations": {"tried": str(time.monotonic())}}}}})
    answer = place.kubectl("patch", "deployment/demo-target-predictor", "-p", tried, "--dry-run=server", check=False)
    return "denied request" in answer


def answer(place: Place, condition: str) -> Object:
    """What the operator says after it has looked at the newest spec."""

    def said() -> Object | None:
        item = place.get(FAMILY, "demo")
        assert item is not None
        status = item["status"]
        newest = status["observedGeneration"] == item["metadata"]["generation"]
        return next(one for one in status["conditions"] if one["type"] == condition) if newest else None

    found: Object = until(f"the condition {condition}", said)
    return found


def arguments(place: Place) -> list[str]:
    """Of the target's Deployment."""
    item = place.get(DEPLOYMENT, "demo-target-predictor")
    assert item is not None
    return list(item["spec"]["template"]["spec"]["containers"][0]["args"])


def test_not_ready_before_kserve_has_taken_an_edit_over(place: Place) -> None:
    place.operator()
    place.create("ModelFamily", "demo", {"backend": "KServe", "levels": [level("target")]})
    place.ready(FAMILY, "demo")
    with deployments_stay_as_they_are(place):
        place.edit(FAMILY, "demo", {"levels": [level("target", slots=8)]})
        ready = answer(place, "Ready")
        assert ready["status"] == "False", "KServe could not have made it yet"
        assert "target: not every replica is of the newest version yet" in ready["message"]
        assert "--slots=8" not in arguments(place)
    place.ready(FAMILY, "demo")
    assert "--slots=8" in arguments(place)


@pytest.mark.parametrize("backend", ["KServe", "Deployment"])
def test_not_ready_before_the_rollout_is_complete(place: Place, backend: str) -> None:
    """A quota keeps the new version's replica from being made; the old one answers meanwhile."""
    place.operator()
    place.create("ModelFamily", "demo", {"backend": backend, "levels": [level("target")]})
    place.ready(FAMILY, "demo")
    place.kubectl("create", "quota", "full", "--hard=pods=1")
    until(
        "the quota counts", lambda: '"pods":"1"' in place.kubectl("get", "quota/full", "-o", "jsonpath={.status.used}")
    )
    place.edit(FAMILY, "demo", {"levels": [level("target", slots=8)]})
    assert answer(place, "Ready")["status"] == "False"
    until("the new version is tried", lambda: "--slots=8" in arguments(place))
    assert answer(place, "LevelsReady")["status"] == "False"
    place.kubectl("delete", "quota/full")
    place.ready(FAMILY, "demo", 60)


def test_ready_while_replicas_are_added(place: Place) -> None:
    """They would be, as here, for load; the level answers as before."""
    place.operator()
    place.create("ModelFamily", "demo", {"backend": "Deployment", "levels": [level("target", replicas={"max": 3})]})
    place.ready(FAMILY, "demo")

    def turned() -> list[str]:
        """Events about Ready."""
        return [one["reason"] for one in place.all(EVENT) if one["involvedObject"]["kind"] == "ModelFamily"]

    until("it is said", lambda: "AllReady" in turned())
    before = turned()
    place.kubectl("scale", "deployment/demo-target-predictor", "--replicas=3")
    until("3 are there", lambda: place.ready(FAMILY, "demo")["status"]["levels"][0]["ready"] == 3)
    assert sorted(turned()) == sorted(before), "it was not ready in between"
