"""The parts that need no API server: the queue, the diff, conditions, the rights."""

from __future__ import annotations

import datetime
import threading
import time
from itertools import pairwise
from typing import Any

import pytest
import yaml
from control_plane import ROOT
from hypothesis import given
from hypothesis import strategies as st

from specrouter_operator.apply import holds, quantity, surplus
from specrouter_operator.conditions import Finding, stated, turned
from specrouter_operator.crd import TARGET, definitions, render
from specrouter_operator.family_types import ModelFamilySpec
from specrouter_operator.pods import pod_spec
from specrouter_operator.queue import FIRST_RETRY, LAST_RETRY, WorkQueue
from specrouter_operator.settings import Settings

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


class Clock:
    """Time that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_worked_on_once_and_by_one() -> None:
    queue = WorkQueue(clock=Clock())
    for _ in range(5):
        queue.add("a")
    assert queue.take(0) == "a"
    queue.add("a")
    assert queue.take(0) is None  # it is being worked on
    queue.done("a")
    assert queue.take(0) == "a"
    queue.done("a")
    assert queue.take(0) is None


def test_failures_come_later_and_later_and_a_success_forgets_them() -> None:
    clock = Clock()
    queue = WorkQueue(clock=clock)
    queue.add("a")
    waits = []
    for _ in range(12):
        assert queue.take(0) == "a"
        queue.done("a", failed=True)
        start = clock.now
        while queue.take(0) is None:
            clock.now += 0.01
        waits.append(clock.now - start)
        queue.done("a", failed=False)
        queue._failures["a"] = len(waits)  # as if it had failed in a row
        queue.add("a")
    assert waits[0] < FIRST_RETRY * 1.4
    assert LAST_RETRY * 0.7 < waits[-1] < LAST_RETRY * 1.4
    assert all(later > sooner for sooner, later in pairwise(waits[:8]))
    assert queue.take(0) == "a"
    queue.done("a")
    assert "a" not in queue._failures


def test_the_server_may_ask_for_more_time() -> None:
    clock = Clock()
    queue = WorkQueue(clock=clock)
    queue.add("a")
    assert queue.take(0) == "a"
    queue.done("a", failed=True, after=7.0)
    queue.add("a", after=60)  # later than what is due already
    clock.now += 6.9
    assert queue.take(0) is None
    clock.now += 0.2
    assert queue.take(0) == "a"


def test_an_earlier_time_wins_and_a_worker_wakes_at_once() -> None:
    queue = WorkQueue()
    queue.add("a", after=60)
    got: list[Any] = []
    worker = threading.Thread(target=lambda: got.append(queue.take(20)))
    worker.start()
    begun = time.monotonic()
    queue.add("a")
    worker.join(10)
    assert got == ["a"] and time.monotonic() - begun < 5
    queue.close()
    assert queue.take(5) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [("1000m", 1), ("1", "1000m"), ("1Gi", "1024Mi"), ("1k", 1000), ("0.5", "500m"), ("2e3", "2k"), (4, "4")],
)
def test_quantities_that_mean_the_same_hold(one: object, other: object) -> None:
    assert holds({"cpu": one}, {"cpu": other})


@pytest.mark.parametrize(("one", "other"), [("1Gi", "1G"), ("a", "b"), ("1", "2"), ("", "0"), (True, "true")])
def test_others_do_not(one: object, other: object) -> None:
    assert not holds({"cpu": one}, {"cpu": other})


tree = st.recursive(
    st.text(alphabet="abc", min_size=1, max_size=3) | st.integers(0, 5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=12,
)


@given(tree, st.dictionaries(st.sampled_from("uvw"), st.integers(), max_size=2))
def test_what_others_add_does_not_count_and_what_they_change_does(wish: Any, more: dict[str, int]) -> None:
    assert holds(wish, wish)
    assert holds({"it": wish, **more}, {"it": wish})
    assert not holds({"it": "other than that", **more}, {"it": wish})


def test_a_selector_with_one_more_label_is_another_selector() -> None:
    wish = {"spec": {"selector": {"a": "b"}}}
    assert holds({"spec": {"selector": {"a": "b"}, "type": "x"}}, wish)
    assert not holds({"spec": {"selector": {"a": "b", "c": "d"}}}, wish)


def test_a_field_that_we_own_and_no_longer_want_is_seen() -> None:
    owned = {
        "f:spec": {
            "f:nodeSelector": {"f:gpu": {}},
            "f:ports": {'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}, "f:name": {}}},
            "f:finalizers": {'v:"x"': {}},
        }
    }
    port = {"port": 80, "protocol": "TCP", "name": "http"}
    wish = {"spec": {"nodeSelector": {"gpu": "a"}, "ports": [port], "finalizers": ["x"]}}
    assert not surplus(owned, wish)
    spec = wish["spec"]
    assert surplus(owned, {"spec": {**spec, "nodeSelector": {}}})
    assert surplus(owned, {"spec": {key: value for key, value in spec.items() if key != "nodeSelector"}})
    assert surplus(owned, {"spec": {**spec, "ports": [{**port, "port": 81}]}})
    assert surplus(owned, {"spec": {**spec, "ports": [{"port": 80, "protocol": "TCP"}]}})
    assert surplus(owned, {"spec": {**spec, "finalizers": []}})


def test_quantities() -> None:
    assert quantity("much") is None and quantity("100m") == quantity("0.1")


def test_a_condition_keeps_its_time_until_it_turns() -> None:
    owner: dict[str, Any] = {"metadata": {"generation": 3}}
    first = stated([Finding("Ready", False, "Waiting", "x")], owner, NOW)
    assert first[0]["lastTransitionTime"] == "2026-01-02T03:04:05Z" and first[0]["observedGeneration"] == 3
    owner = {"metadata": {"generation": 4}, "status": {"conditions": first}}
    later = NOW + datetime.timedelta(hours=1)
    same = stated([Finding("Ready", False, "Other", "y")], owner, later)
    assert same[0]["lastTransitionTime"] == first[0]["lastTransitionTime"] and same[0]["observedGeneration"] == 4
    assert turned(owner, same) == []
    new = stated([Finding("Ready", True, "Fine")], owner, later)
    assert new[0]["lastTransitionTime"] == "2026-01-02T04:04:05Z" and turned(owner, new) == new


def test_the_definitions_are_those_of_the_types() -> None:
    for name, definition in definitions().items():
        assert (ROOT / TARGET / name).read_text() == render(definition), "run `make crds`"


@pytest.mark.parametrize(("secret", "scheme"), [("", "HTTP"), ("level-tls", "HTTPS")])
def test_levels_with_a_certificate_show_it_on_both_ports_and_to_their_probes(secret: str, scheme: str) -> None:
    spec = ModelFamilySpec.model_validate({"levels": [{"name": "target", "engine": "stub"}]})
    pod = pod_spec("demo", "place", spec, spec.levels[0], Settings(level_tls_secret=secret), kserve=True)
    (container,) = pod["containers"]
    secured = {"--tls-cert=/etc/specrouter/tls/tls.crt", "--http-tls=server"}
    assert secured & set(container["args"]) == (secured if secret else set())
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == scheme
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert ("/etc/specrouter/tls" in mounts) is bool(secret)


def rights() -> list[dict[str, Any]]:
    documents = yaml.safe_load_all((ROOT / "operator" / "manifests" / "rbac.yaml").read_text())
    found = {one["kind"]: one for one in documents}
    assert set(found) == {"ServiceAccount", "Role", "RoleBinding"}  # nothing beyond the namespace
    return list(found["Role"]["rules"])


def test_rights_are_named_singly() -> None:
    everything = [value for rule in rights() for values in rule.values() for value in values]
    assert "*" not in everything
    known = {"get", "list", "watch", "create", "update", "patch", "delete"}
    assert all(set(rule["verbs"]) <= known for rule in rights())
    resources = {resource for rule in rights() for resource in rule["resources"]}
    assert not resources & {"secrets", "pods", "roles", "rolebindings", "serviceaccounts"}
    # a family is never created or deleted by the operator, a status never read apart, a scale only written
    by_resource = {resource: set(rule["verbs"]) for rule in rights() for resource in rule["resources"]}
    assert by_resource["modelfamilies"] == {"get", "list", "watch", "patch"}
    assert by_resource["routingpolicies"] == {"get", "list", "watch"}
    assert by_resource["deployments/scale"] == {"patch"}


def test_the_chart_gives_the_same_rights() -> None:
    text = (ROOT / "charts" / "specrouter" / "templates" / "rbac.yaml").read_text()
    part = text.split("kind: Role\n", 1)[1].split("---", 1)[0]
    assert yaml.safe_load(part.split("rules:", 1)[1]) == rights()
