"""Every field of both specs, changed on the real API server with the real KServe: each shows where it should."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import yaml
from families import level, policy
from kube import NOWHERE, Place, until

from specrouter_operator.crd import structural
from specrouter_operator.family_types import ModelFamilySpec
from specrouter_operator.objects import ONE_BY_ONE
from specrouter_operator.pods import OPTIONS
from specrouter_operator.policy_types import RoutingPolicySpec
from specrouter_operator.resource import CONFIG_MAP, DEPLOYMENT, FAMILY, INFERENCE_SERVICE, POLICY, Object, Resource
from specrouter_operator.settings import Settings
from specrouter_operator.situation import rules

IMMUTABLE = {"backend", "levels[].name", "familyRef.name"}  # see test_refusals
LEVELS = [
    level("draft", engine="ngram", replicas={"min": 0, "max": 4}),
    level("mid", engine="torch", storageUri="hf://org/mid", gpus=1),
    level("target", engine="torch", pvc={"claimName": "weights"}),
]
STUBS = [level("draft", agreement=0.5), level("target")]


def leaves(schema: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Paths of all fields that hold a value; [] for a list's items, {} for a map's values."""
    if "items" in schema:
        yield from leaves(schema["items"], f"{at}[]")
    elif "properties" in schema:
        for name, part in schema["properties"].items():
            yield from leaves(part, f"{at}.{name}" if at else name)
    elif "additionalProperties" in schema:
        yield from leaves(schema["additionalProperties"], f"{at}{{}}")
    else:
        yield at


Look = Callable[[Place], Any]


@dataclass(frozen=True)
class Change:
    """A field, what of the spec changes, and what shows then."""

    field: str
    spec: Object
    look: Look
    shows: Any

    def shown(self, place: Place) -> bool:
        return bool(self.look(place) == self.shows)


def pod(name: str) -> Callable[[Place], Object]:
    """The pod template of a level, as KServe made it."""

    def look(place: Place) -> Object:
        found = place.get(DEPLOYMENT, f"demo-{name}-predictor")
        return dict(found["spec"]["template"]["spec"]) if found else {}

    return look


def of_pod(*path: Any, name: str = "mid") -> Look:
    """A part of it."""

    def look(place: Place) -> Any:
        value: Any = pod(name)(place)
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError):
                return None
        return value

    return look


def argument(option: str, name: str = "mid", family: str = "demo") -> Look:
    """An option of the level's command line."""

    def look(place: Place) -> str | None:
        found = place.get(DEPLOYMENT, f"{family}-{name}-predictor")
        if found is None:
            return None
        arguments = found["spec"]["template"]["spec"]["containers"][0]["args"]
        return next((one.partition("=")[2] for one in arguments if one.startswith(f"--{option}=")), None)

    return look


def in_file(*path: Any) -> Look:
    """A part of the routers' family file."""

    def look(place: Place) -> Any:
        found = place.get(CONFIG_MAP, "demo-family")
        value = yaml.safe_load(found["data"]["family.yaml"]) if found else {}
        for step in path:
            value = value[step] if isinstance(value, list) else value.get(step)
            if value is None:
                return None
        return value

    return look


def scale(name: str) -> Look:
    """Replicas of a level's Deployment."""
    return lambda place: (place.get(DEPLOYMENT, f"demo-{name}-predictor") or {"spec": {}})["spec"].get("replicas")


def copies(place: Place) -> Any:
    """Copies of the family that its levels were scaled for."""
    levels = (place.get(FAMILY, "demo") or {})["status"]["levels"]
    return min(one["copies"] for one in levels)


def mid(**more: Any) -> Object:
    """The family with something about its middle level."""
    return {"levels": [LEVELS[0], {**LEVELS[1], **more}, LEVELS[2]]}


def target(**more: Any) -> Object:
    """The family with something about its target."""
    return {"levels": [LEVELS[0], LEVELS[1], {**LEVELS[2], **more}]}


CONTAINER = ("containers", 0)
TOLERATION = {"key": "gpu", "operator": "Equal", "value": "a", "effect": "NoExecute", "tolerationSeconds": 30}
SPREAD = {"topologyKey": "zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}
FAMILY_CHANGES = [
    Change("image", {"image": "org/level:2"}, of_pod(*CONTAINER, "image"), "org/level:2"),
    Change("drainSeconds", {"drainSeconds": 90}, of_pod("terminationGracePeriodSeconds"), 100),
    Change("serviceAccountName", {"serviceAccountName": "reader"}, of_pod("serviceAccountName"), "reader"),
    Change("replicas", {"replicas": 2}, copies, 2),
    Change("levels[].dtype", mid(dtype="float16"), argument("dtype"), "float16"),
    Change("levels[].quantization", mid(quantization="int8"), argument("quantization"), "int8"),
    Change("levels[].device", mid(device="cuda:1"), argument("device"), "cuda:1"),
    Change("levels[].threads", mid(threads=3), argument("threads"), "3"),
    Change("levels[].exactness", mid(exactness="bitwise"), argument("exactness"), "bitwise"),
    Change("levels[].maxLength", mid(maxLength=4096), argument("max-length"), "4096"),
    Change("levels[].slots", mid(slots=7), argument("slots"), "7"),
    Change("levels[].kvCheckpoints", mid(kvCheckpoints="all"), argument("kv-checkpoints"), "all"),
    Change("levels[].kvCodec", mid(kvCheckpoints="all", kvCodec="int8"), argument("kv-codec"), "int8"),
    Change("levels[].kvBudgetMib", mid(kvCheckpoints="all", kvBudgetMib=64), argument("kv-budget-mib"), "64"),
    Change("levels[].weight", mid(weight=40), in_file("levels", 1, "weight"), 40.0),
    Change(
        "levels[].storageUri",
        mid(storageUri="s3://b/mid"),
        lambda place: {one["name"]: one.get("value") for one in of_pod(*CONTAINER, "env")(place)}.get("STORAGE_URI"),
        "s3://b/mid",
    ),
    Change(
        "levels[].pvc.claimName",
        target(pvc={"claimName": "other"}),
        of_pod("volumes", 1, "persistentVolumeClaim", "claimName", name="target"),
        "other",
    ),
    Change(
        "levels[].pvc.path",
        target(pvc={"claimName": "weights", "path": "a/b"}),
        lambda place: [one.get("subPath") for one in of_pod(*CONTAINER, "volumeMounts", name="target")(place)][1],
        "a/b",
    ),
    Change("levels[].image", mid(image="org/mid:3"), of_pod(*CONTAINER, "image"), "org/mid:3"),
    Change(
        "levels[].resources.requests{}",
        mid(resources={"requests": {"cpu": 2, "memory": "3Gi"}}),
        of_pod(*CONTAINER, "resources", "requests"),
        {"cpu": "2", "memory": "3Gi", "nvidia.com/gpu": "1"},
    ),
    Change(
        "levels[].resources.limits{}",
        mid(resources={"requests": {"cpu": 1}, "limits": {"cpu": 4, "memory": "8Gi"}}),
        of_pod(*CONTAINER, "resources", "limits"),
        {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "1"},
    ),
    Change("levels[].gpus", mid(gpus=2), of_pod(*CONTAINER, "resources", "limits", "nvidia.com/gpu"), "2"),
    Change("levels[].runtimeClassName", mid(runtimeClassName="nvidia"), of_pod("runtimeClassName"), "nvidia"),
    Change(
        "levels[].nodeSelector{}",
        mid(nodeSelector={**NOWHERE, "gpu": "h100"}),
        of_pod("nodeSelector"),
        {**NOWHERE, "gpu": "h100"},
    ),
    *(
        Change(f"levels[].tolerations[].{name}", mid(tolerations=[TOLERATION]), of_pod("tolerations", 0, name), value)
        for name, value in TOLERATION.items()
    ),
    *(
        Change(
            f"levels[].topologySpreadConstraints[].{name}",
            mid(topologySpreadConstraints=[SPREAD]),
            of_pod("topologySpreadConstraints", 0, name),
            value,
        )
        for name, value in SPREAD.items()
    ),
    Change(
        "levels[].surge",
        mid(surge=False),
        lambda place: (place.get(DEPLOYMENT, "demo-mid-predictor") or {"spec": {}})["spec"].get("strategy"),
        ONE_BY_ONE,
    ),
    Change("levels[].replicas.min", mid(replicas={"min": 2, "max": 9}), scale("mid"), 4),  # of two copies
    Change("levels[].replicas.max", mid(replicas={"min": 1, "max": 2}), scale("mid"), 2),  # after the 4 above
]


def draft(**more: Any) -> Object:
    """The family of stubs with something else for its draft."""
    return {"levels": [level("draft", **more), STUBS[1]]}


STUB_CHANGES = [
    Change("levels[].engine", draft(engine="ngram"), argument("engine", "draft", "stub"), "ngram"),
    Change("levels[].agreement", draft(agreement=0.25), argument("agreement", "draft", "stub"), "0.25"),
    Change("levels[].stepMs", draft(stepMs="1:2,8:3"), argument("step-ms", "draft", "stub"), "1:2,8:3"),
]


def status(*path: Any) -> Look:
    """A part of the policy's status."""

    def look(place: Place) -> Any:
        value: Any = (place.get(POLICY, "demo") or {}).get("status", {})
        for step in path:
            value = value.get(step) if isinstance(value, dict) else value
        return value

    return look


def condition(type_: str) -> Look:
    """The reason of a condition of the policy."""

    def look(place: Place) -> Any:
        conditions = ((place.get(POLICY, "demo") or {}).get("status") or {}).get("conditions", [])
        return next((one["reason"] for one in conditions if one["type"] == type_), None)

    return look


def rule(name: str) -> Look:
    """What the controllers are told."""

    def look(place: Place) -> Any:
        spec = (place.get(POLICY, "demo") or {})["spec"]
        return getattr(rules(RoutingPolicySpec.model_validate(spec, by_alias=True, by_name=False)), name)

    return look


def asked(name: str) -> Look:
    """What the operator asked for signals by."""

    def look(place: Place) -> Any:
        seen = ASKED.get(place.name)
        value: Any = seen
        for step in name.split("."):
            value = getattr(value, step, None)
        return value

    return look


ASKED: dict[str, Any] = {}  # namespace -> signals of the policy that was last decided by
CHAINS = [["mid", "target"]]
CHAT = {"routing": {"classes": {"chat": {"priority": 80, "ttftMs": 400, "tpotMs": 30}}}}
PROMETHEUS = {"source": "Prometheus", "prometheus": {"url": "http://p:9090"}}
POLICY_CHANGES = [
    Change("routing.policy", {"routing": {"policy": "fixed"}}, in_file("chain", "policy"), "fixed"),
    Change("routing.mode", {"routing": {"mode": "lockstep"}}, in_file("chain", "mode"), "lockstep"),
    Change("routing.windows{}", {"routing": {"windows": {"mid": 5}}}, in_file("chain", "windows", "mid"), 5),
    Change("routing.lookahead", {"routing": {"lookahead": 33}}, in_file("chain", "lookahead"), 33),
    Change("routing.chains[][]", {"routing": {"chains": CHAINS}}, in_file("chain", "chains"), CHAINS),
    Change("routing.classes{}.priority", CHAT, in_file("chain", "classes", "chat", "priority"), 80),
    Change("routing.classes{}.ttftMs", CHAT, rule("ttft"), {"chat": 0.4}),
    Change("routing.classes{}.tpotMs", CHAT, rule("tpot"), {"chat": 0.03}),
    Change("routing.waste", {"routing": {"waste": 0.5}}, in_file("chain", "waste"), 0.5),
    Change("objective.stepMs{}", {"objective": {"stepMs": {"mid": 12.5}}}, condition("Valid"), "Fits"),
    Change("objective.utilisation", {"objective": {"utilisation": 60}}, rule("utilisation"), 0.6),
    Change("objective.errors", {"objective": {"errors": 2}}, rule("error_rate"), 0.02),
    Change("weights.pins{}", {"weights": {"pins": {"mid": 30}}}, status("weights", "mid"), 30),
    Change("weights.intervalSeconds", {"weights": {"intervalSeconds": 9}}, rule("weight_interval"), 9.0),
    Change("scaling.stabilization.upSeconds", {"scaling": {"stabilization": {"upSeconds": 3}}}, rule("up_window"), 3.0),
    Change(
        "scaling.stabilization.downSeconds",
        {"scaling": {"stabilization": {"downSeconds": 4}}},
        rule("down_window"),
        4.0,
    ),
    Change("scaling.maxStep.up", {"scaling": {"maxStep": {"up": 7}}}, rule("up_step"), 7),
    Change("scaling.maxStep.down", {"scaling": {"maxStep": {"down": 5}}}, rule("down_step"), 5),
    Change("scaling.gpuBudget", {"scaling": {"gpuBudget": 8}}, rule("gpus"), 8),
    Change("scaling.scaleToZero", {"scaling": {"scaleToZero": True}}, scale("draft"), 1),  # stale: nothing goes down
    Change("scaling.mode", {"scaling": {"mode": "Manual"}}, condition("Scaling"), "ByHand"),
    Change("signals.source", {"signals": PROMETHEUS}, asked("source"), "Prometheus"),
    Change("signals.prometheus.url", {"signals": PROMETHEUS}, asked("prometheus.url"), "http://p:9090"),
    Change("signals.freshnessSeconds", {"signals": {"freshnessSeconds": 44}}, asked("freshness_seconds"), 44),
]


def test_every_field_has_its_change() -> None:
    changed = {one.field for one in (*FAMILY_CHANGES, *STUB_CHANGES)} | {"levels[].engine"}
    assert changed == set(leaves(structural(ModelFamilySpec))) - IMMUTABLE
    assert {one.field for one in POLICY_CHANGES} == set(leaves(structural(RoutingPolicySpec))) - IMMUTABLE


def test_every_option_is_one_of_the_level() -> None:
    from typer.main import get_command  # noqa: PLC0415

    from specrouter_level.scripts import app  # noqa: PLC0415

    known = {option for parameter in get_command(app).params for option in parameter.opts}
    assert {f"--{name.replace('_', '-')}" for name in OPTIONS} <= known


def test_every_field_shows(place: Place) -> None:
    def signals_of(spec: RoutingPolicySpec) -> Any:
        from specrouter_operator.operator import Silence  # noqa: PLC0415

        ASKED[place.name] = spec.signals
        return Silence()

    settings = replace(Settings(), kv_secret="kv")
    place.operator(signals_of=signals_of, settings=settings)
    family = {"backend": "KServe", "levels": LEVELS}
    place.create("ModelFamily", "demo", family)
    place.create("ModelFamily", "stub", {"backend": "Deployment", "levels": STUBS})
    place.create("RoutingPolicy", "demo", policy("demo"))
    place.ready(FAMILY, "demo")
    place.ready(FAMILY, "stub")
    before = place.settled()
    wrong = []
    for resource, name, changes in (
        (FAMILY, "demo", FAMILY_CHANGES),
        (FAMILY, "stub", STUB_CHANGES),
        (POLICY, "demo", POLICY_CHANGES),
    ):
        standing = place.get(resource, name)
        assert standing is not None
        original = copy.deepcopy(standing["spec"])
        for change in changes:
            place.edit(resource, name, change.spec)
            try:
                until(change.field, partial(change.shown, place), 15)
            except AssertionError:
                wrong.append(f"{change.field}: {change.look(place)!r} in place of {change.shows!r}")
        # back to what it was: everything follows
        place.put_back(resource, name, original)
    assert not wrong
    place.becomes(before, 60)  # the weight that was pinned too


def test_kserve_keeps_what_we_wrote(place: Place) -> None:
    """The InferenceService as it stands has every wish in it; see apply.py for what its webhook turns into others."""
    place.operator()
    place.create("ModelFamily", "demo", {"levels": [LEVELS[1] | {"name": "target"}]})
    place.ready(FAMILY, "demo")
    made = place.get(INFERENCE_SERVICE, "demo-target")
    assert made is not None
    annotations = made["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"
    assert annotations["serving.kserve.io/autoscalerClass"] == "external"
    assert made["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"
    assert not place.all(Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"))
