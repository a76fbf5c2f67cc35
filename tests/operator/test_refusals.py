"""Objects that the API server must refuse, each with a message that names the field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from families import family, level, policy
from kube import Place, thing, until

from specrouter_operator.api import ApiError
from specrouter_operator.resource import FAMILY, POLICY, Object


def one(**more: Any) -> Object:
    """A family of one level, with something about it."""
    return {"backend": "Deployment", "levels": [level("target", **more)]}


def two(draft: Object, target: Object | None = None) -> Object:
    """A family of two levels."""
    return {"levels": [level("draft", **draft), level("target", **(target or {}))]}


TORCH = {"engine": "torch", "storageUri": "hf://org/model"}
BAD_FAMILIES: dict[str, tuple[Object, str]] = {
    "no levels": ({"levels": []}, "spec.levels"),
    "levels left out": ({"backend": "KServe"}, "spec.levels"),
    "nine levels": (family(*(f"l{i}" for i in range(9))), "spec.levels"),
    "a name twice": (family("draft", "draft"), "levels: names must be unique"),
    "a name in capitals": (family("Draft", "target"), "spec.levels[0].name"),
    "a name that ends in a dash": (family("draft-", "target"), "spec.levels: names must begin and end"),
    "a name that is too long": (family("d" * 41, "target"), "spec.levels[0].name"),
    "names too long together": (family("d" * 40, "target"), "metadata.name: the name and that of a level"),
    "no name": ({"levels": [{"engine": "stub"}]}, "spec.levels[0].name"),
    "an unknown engine": (one(engine="vllm"), "spec.levels[0].engine"),
    "ngram as the target": (one(engine="ngram"), "levels: the last level is the target; engine ngram"),
    "a target of weight 0": (one(weight=0), "levels: weight of the target"),
    "a weight above 100": (two({"weight": 101}), "spec.levels[0].weight"),
    "a weight below 0": (two({"weight": -1}), "spec.levels[0].weight"),
    "a target that disagrees": (one(agreement=0.5), "levels: agreement of the target"),
    "an agreement above 1": (two({"agreement": 1.5}), "spec.levels[0].agreement"),
    "a target scaled to zero": (one(replicas={"min": 0}), "levels: replicas.min of the target"),
    "min above max": (one(replicas={"min": 3, "max": 2}), "max: must be at least min"),
    "negative replicas": (one(replicas={"min": -1}), "spec.levels[0].replicas.min"),
    "too many replicas": (one(replicas={"max": 1001}), "spec.levels[0].replicas.max"),
    "torch without weights": (one(engine="torch"), "storageUri: engine torch needs either storageUri or pvc"),
    "weights twice": (one(**TORCH, pvc={"claimName": "x"}), "storageUri: engine torch needs either storageUri or pvc"),
    "weights of a stub": (one(storageUri="hf://a/b"), "storageUri: storageUri and pvc are for engine torch only"),
    "a storageUri without scheme": (one(engine="torch", storageUri="models/x"), "spec.levels[0].storageUri"),
    "a claim out of its volume": (one(engine="torch", pvc={"claimName": "x", "path": "/etc"}), "levels[0].pvc.path"),
    "a claim's name in capitals": (one(engine="torch", pvc={"claimName": "X"}), "spec.levels[0].pvc.claimName"),
    "dtype of a stub": (one(dtype="bfloat16"), "dtype: is for engine torch only"),
    "an unknown dtype": (one(**TORCH, dtype="int8"), "spec.levels[0].dtype"),
    "an unknown quantization": (one(**TORCH, quantization="fp4"), "spec.levels[0].quantization"),
    "step times of a model": (one(**TORCH, stepMs="1:2"), "stepMs: is for engine stub only"),
    "an inexact codec": (one(**TORCH, exactness="bitwise", kvCodec="int8"), "kvCodec: must be exact"),
    "a GPU device without GPUs": (one(**TORCH, device="cuda:0"), "gpus: device cuda needs at least one GPU"),
    "an unknown device": (one(**TORCH, device="tpu"), "spec.levels[0].device"),
    "too many GPUs": (one(**TORCH, gpus=65), "spec.levels[0].gpus"),
    "GPUs as a resource": (
        one(resources={"limits": {"nvidia.com/gpu": 1}}),
        "limits: GPUs are set by the level's gpus",
    ),
    "requests above limits": (
        one(resources={"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}),
        "requests: must be at most limits",
    ),
    "a quantity that is none": (one(resources={"requests": {"cpu": "much"}}), "spec.levels[0].resources.requests.cpu"),
    "stub and torch": (two({}, TORCH), "levels: engine stub and engine torch don't share a vocabulary"),
    "a toleration of nothing": (one(tolerations=[{"effect": "NoSchedule"}]), "key: required with operator Equal"),
    "a value with Exists": (
        one(tolerations=[{"key": "a", "operator": "Exists", "value": "b"}]),
        "value: must be left out with operator Exists",
    ),
    "seconds of another effect": (
        one(tolerations=[{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 3}]),
        "tolerationSeconds: only with effect NoExecute",
    ),
    "a spread without key": (one(topologySpreadConstraints=[{"maxSkew": 1}]), "topologyKey"),
    "a skew of 0": (one(topologySpreadConstraints=[{"topologyKey": "z", "maxSkew": 0}]), "maxSkew"),
    "an unknown backend": ({**one(), "backend": "Knative"}, "spec.backend"),
    "an image with a space": ({**one(), "image": "a b"}, "spec.image"),
    "a drain of no time": ({**one(), "drainSeconds": 0}, "spec.drainSeconds"),
    "copies below 0": ({**one(), "replicas": -1}, "spec.replicas"),
    "a length of one token": (one(maxLength=1), "spec.levels[0].maxLength"),
    "no slots": (one(slots=0), "spec.levels[0].slots"),
    "an unknown field": ({**one(), "replica": 1}, 'unknown field "spec.replica"'),
    "an unknown field of a level": (one(model="x"), 'unknown field "spec.levels[0].model"'),
}
BAD_POLICIES: dict[str, tuple[Object, str]] = {
    "no family": ({}, "spec.familyRef"),
    "a family without name": ({"familyRef": {}}, "spec.familyRef.name"),
    "a window of 0": (policy("f", routing={"windows": {"draft": 0}}), "spec.routing.windows.draft"),
    "a window above 64": (policy("f", routing={"windows": {"draft": 65}}), "spec.routing.windows.draft"),
    "no lookahead": (policy("f", routing={"lookahead": 0}), "spec.routing.lookahead"),
    "a lookahead above 256": (policy("f", routing={"lookahead": 257}), "spec.routing.lookahead"),
    "chains of two targets": (
        policy("f", routing={"chains": [["a", "b"], ["b", "a"]]}),
        "chains: every chain must end in the same level",
    ),
    "a chain that repeats": (
        policy("f", routing={"chains": [["a", "a", "b"]]}),
        "chains: a level can be in a chain once",
    ),
    "an empty chain": (policy("f", routing={"chains": [[]]}), "spec.routing.chains[0]"),
    "a promise of no time": (policy("f", routing={"classes": {"chat": {"tpotMs": 0}}}), "classes.chat.tpotMs"),
    "a priority above 100": (policy("f", routing={"classes": {"chat": {"priority": 101}}}), "classes.chat.priority"),
    "all wasted": (policy("f", routing={"waste": 1.5}), "spec.routing.waste"),
    "an unknown mode": (policy("f", routing={"mode": "fast"}), "spec.routing.mode"),
    "an unknown way to choose": (policy("f", routing={"policy": "random"}), "spec.routing.policy"),
    "a pin above 100": (policy("f", weights={"pins": {"draft": 101}}), "spec.weights.pins.draft"),
    "a pin below 0": (policy("f", weights={"pins": {"draft": -1}}), "spec.weights.pins.draft"),
    "a pin of no level's name": (policy("f", weights={"pins": {"Draft": 1}}), "pins: keys must match"),
    "half a pin": (policy("f", weights={"pins": {"draft": 0.5}}), "spec.weights.pins.draft"),
    "no interval": (policy("f", weights={"intervalSeconds": 0}), "spec.weights.intervalSeconds"),
    "more than all used": (policy("f", objective={"utilisation": 101}), "spec.objective.utilisation"),
    "an objective of no time": (policy("f", objective={"stepMs": {"draft": 0}}), "spec.objective.stepMs.draft"),
    "scaling by an unknown": (policy("f", scaling={"mode": "Sometimes"}), "spec.scaling.mode"),
    "a step of nothing": (policy("f", scaling={"maxStep": {"up": 0}}), "spec.scaling.maxStep.up"),
    "a budget below 0": (policy("f", scaling={"gpuBudget": -1}), "spec.scaling.gpuBudget"),
    "a window below 0": (policy("f", scaling={"stabilization": {"downSeconds": -1}}), "stabilization.downSeconds"),
    "an unknown source": (policy("f", signals={"source": "Logs"}), "spec.signals.source"),
    "Prometheus without server": (policy("f", signals={"source": "Prometheus"}), "prometheus: goes with source"),
    "a server without Prometheus": (policy("f", signals={"prometheus": {"url": "http://p"}}), "prometheus: goes with"),
    "a server that is no URL": (
        policy("f", signals={"source": "Prometheus", "prometheus": {"url": "p:9090"}}),
        "spec.signals.prometheus.url",
    ),
    "never stale": (policy("f", signals={"freshnessSeconds": 1}), "spec.signals.freshnessSeconds"),
    "an unknown field": (policy("f", weight={}), 'unknown field "spec.weight"'),
}
# Of policies of the family that stands: draft, mid, target.
MISFITS: dict[str, tuple[Object, str]] = {
    "a chain without target": (
        {"routing": {"chains": [["draft", "mid"]]}},
        "routing.chains: every chain must end in the",
    ),
    "a chain of others": (
        {"routing": {"chains": [["small", "target"]]}},
        "spec.routing.chains: the levels are draft, mid",
    ),
    "a window of another": ({"routing": {"windows": {"small": 3}}}, "spec.routing.windows: the levels are draft, mid"),
    "a pin of another": ({"weights": {"pins": {"small": 3}}}, "spec.weights.pins: the levels are draft, mid, target"),
    "the target pinned out": ({"weights": {"pins": {"target": 0}}}, "spec.weights.pins: the target, target, is always"),
}
# From a family that stands to one that it can't become.
BAD_EDITS: dict[str, tuple[Object, str]] = {
    "renamed": (family("first", "mid", "target"), "levels: a name can't be changed"),
    "another target": (
        family("draft", "target", "mid"),
        "levels: the target (the last level) is the family's identity",
    ),
    "target removed": (family("draft", "mid"), "levels: the target (the last level) is the family's identity"),
    "another backend": (family("draft", "mid", "target", backend="KServe"), "backend: can't be changed"),
}


MISFIT = policy("stands", weights={"pins": {"small": 3}})


@pytest.fixture(scope="module")
def shared(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One namespace for all: nothing comes to be in it."""
    made = Place(cluster, tmp_path_factory.mktemp("refusals"))
    made.create("ModelFamily", "stands", family("draft", "mid", "target"))
    made.create("RoutingPolicy", "stands", policy("stands"))
    # the API server's admission reads families from a cache of its own
    until("the family is known to it", lambda: _refused(made))
    yield made
    made.close()


def _refused(place: Place) -> bool:
    try:
        place.api._write("POST", POLICY.path(place.name), {"dryRun": "All"}, thing("RoutingPolicy", "p", MISFIT))
    except ApiError:
        return True
    return False


def refusal(place: Place, verb: str, item: Object) -> str:
    """What the API server says to it, in a dry run."""
    resource = FAMILY if item["kind"] == "ModelFamily" else POLICY
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    name = item["metadata"]["name"] if verb == "PUT" else ""
    with pytest.raises(ApiError) as caught:
        place.api._write(verb, resource.path(place.name, name), query, item)
    assert caught.value.status in (400, 422)
    return str(caught.value)


@pytest.mark.parametrize("case", BAD_FAMILIES)
def test_bad_families_are_refused(shared: Place, case: str) -> None:
    spec, named = BAD_FAMILIES[case]
    name = "a-family-of-a-long-name" if case.startswith("names too long") else "demo"
    assert named in refusal(shared, "POST", thing("ModelFamily", name, spec))


def test_a_bad_name_is_refused(shared: Place) -> None:
    assert "metadata.name: lower case" in refusal(shared, "POST", thing("ModelFamily", "7b", family()))


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_bad_policies_are_refused(shared: Place, case: str) -> None:
    spec, named = BAD_POLICIES[case]
    assert named in refusal(shared, "POST", thing("RoutingPolicy", "demo", spec))


@pytest.mark.parametrize("case", MISFITS)
def test_policies_that_do_not_fit_their_family_are_refused(shared: Place, case: str) -> None:
    more, named = MISFITS[case]
    assert named in refusal(shared, "POST", thing("RoutingPolicy", "demo", policy("stands", **more)))


@pytest.mark.parametrize("case", BAD_EDITS)
def test_bad_edits_are_refused(shared: Place, case: str) -> None:
    spec, named = BAD_EDITS[case]
    standing = shared.get(FAMILY, "stands")
    assert standing is not None
    assert named in refusal(shared, "PUT", {**standing, "spec": spec})


def test_a_policy_can_not_change_its_family(shared: Place) -> None:
    standing = shared.get(POLICY, "stands")
    assert standing is not None
    assert "familyRef.name: can't be changed" in refusal(shared, "PUT", {**standing, "spec": policy("other")})


def test_good_ones_are_taken(shared: Place) -> None:
    good = [
        thing("ModelFamily", "demo", family("draft", "mid", "target")),
        thing("ModelFamily", "demo", {"levels": [level("draft", engine="ngram"), level("target", **TORCH)]}),
        thing("ModelFamily", "demo", one(resources={"requests": {"cpu": 1}, "limits": {"cpu": "1500m"}})),
        thing("RoutingPolicy", "demo", policy("demo")),
    ]
    for item in good:
        resource = FAMILY if item["kind"] == "ModelFamily" else POLICY
        shared.api._write("POST", resource.path(shared.name), {"dryRun": "All", "fieldValidation": "Strict"}, item)


def test_there_are_enough() -> None:
    assert len(BAD_FAMILIES) + len(BAD_POLICIES) + len(BAD_EDITS) >= 40
