"""Custom resource definitions, made from the pydantic types: ``python -m specrouter_operator.crd [--check]``.

They are structural (no references, no alternatives of types), every field has a description, and every list, map and
string has a bound, without which the API server refuses CEL rules as too costly.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from specrouter_family.family import Spec
from specrouter_operator.family_types import MOST_NAME, ModelFamilySpec, ModelFamilyStatus
from specrouter_operator.policy_types import RoutingPolicySpec, RoutingPolicyStatus
from specrouter_operator.schema import GROUP, VERSION, rules

log = logging.getLogger(__name__)

TARGET = Path("charts/specrouter-crds/templates")
HEAD = "# Made by `make crds` from operator/specrouter_operator; do not edit.\n"
MOST_TEXT, MOST_ITEMS = 1024, 64  # bounds of what has none of its own
COUNTED = re.compile(r"\^\[[^]]+\]\{\d+,(\d+)\}\$")  # a pattern that bounds the length
DROPPED = frozenset({"title", "additionalProperties", "patternProperties", "propertyNames", "$defs", "description"})
ENVELOPE = {
    "apiVersion": {"type": "string", "description": "Group and version of the kind."},
    "kind": {"type": "string", "description": "The kind."},
    "metadata": {"type": "object"},
}
FAMILY_RULES = rules(
    (
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name: lower case letters, digits and '-', beginning with a letter",
    ),
    (
        f"self.spec.levels.all(l, size(self.metadata.name) + size(l.name) <= {MOST_NAME})",
        f"metadata.name: the name and that of a level must have {MOST_NAME} characters together at most",
    ),
    (
        "self.spec.levels.all(l, l.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))",
        "spec.levels: names must begin and end with a letter or digit",
    ),
)


def structural(model: type[Spec]) -> dict[str, Any]:
    """The OpenAPI v3 schema of a type, as Kubernetes wants it. Raises ValueError for a field without description."""
    schema = model.model_json_schema(by_alias=True)
    return _plain(schema, schema.get("$defs", {}), model.__name__)


def _plain(schema: Mapping[str, Any], named: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``schema`` with its references put in place and without what Kubernetes doesn't take."""
    if "$ref" in schema:
        target = named[schema["$ref"].rsplit("/", 1)[1]]
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _plain({**target, **beside}, named, where)
    if "allOf" in schema and len(schema["allOf"]) == 1:
        return _plain({**schema["allOf"][0], **{k: v for k, v in schema.items() if k != "allOf"}}, named, where)
    options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    if len(options) == 1:  # X or null: a field that may be left out
        beside = {key: value for key, value in schema.items() if key != "anyOf"}
        return _plain({**options[0], **beside}, named, where)
    out = {key: value for key, value in schema.items() if key not in DROPPED}
    if "description" in schema:
        out["description"] = " ".join(str(schema["description"]).split())
    if out.get("default", 0) is None:
        del out["default"]
    if "const" in out:
        out["enum"] = [out.pop("const")]
    for bound, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in out:  # in OpenAPI v3.0 these are flags
            out[plain], out[bound] = out[bound], True
    return _parts(out, schema, named, where)


def _parts(out: dict[str, Any], schema: Mapping[str, Any], named: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = out.get("type")
    if kind == "string" and "enum" not in out and "format" not in out:
        counted = COUNTED.fullmatch(out.get("pattern", ""))
        out.setdefault("maxLength", int(counted[1]) if counted else MOST_TEXT)
    elif kind == "array":
        out.setdefault("maxItems", MOST_ITEMS)
        out["items"] = _plain(schema["items"], named, f"{where}[]")
    elif kind == "object" and "properties" in schema:
        out["properties"] = {}
        for name, part in schema["properties"].items():
            out["properties"][name] = made = _plain(part, named, f"{where}.{name}")
            if "description" not in made:
                raise ValueError(f"{where}.{name}: has no description")
            if name not in schema.get("required", ()) and _defaultable(made):
                made.setdefault("default", _defaults(made))
    elif kind == "object":
        out.setdefault("maxProperties", MOST_ITEMS)
        keys = schema.get("patternProperties", {})
        for pattern in keys:  # structural schemas don't know them
            name = where.rsplit(".", 1)[1]
            extra = rules((f"self.all(k, k.matches('{pattern}'))", f"{name}: keys must match {pattern}"))
            out |= {key: [*out.get(key, []), *value] for key, value in extra.items()}
        values = next(iter(keys.values()), None) or schema["additionalProperties"]
        out["additionalProperties"] = _plain(values, named, f"{where}{{}}")
    return out


def _defaultable(schema: Mapping[str, Any]) -> bool:
    """An object without required fields, whose own defaults only count once it is there itself."""
    inner = schema.get("properties", {}).values()
    return schema.get("type") == "object" and not schema.get("required") and any("default" in part for part in inner)


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults within, written out: rules are tried on a default before what is in it has its own."""
    return {name: part["default"] for name, part in schema["properties"].items() if "default" in part}


@dataclass(frozen=True, slots=True)
class Kind:
    """One custom resource: its names, its types, and what kubectl shows of it."""

    name: str
    plural: str
    short: str
    about: str
    spec: type[Spec]
    status: type[Spec]
    columns: tuple[tuple[str, str, str, str, int], ...]  # name, type, path, description, priority
    root: Mapping[str, Any] = field(default_factory=dict)
    scale: Mapping[str, str] = field(default_factory=dict)

    def definition(self) -> dict[str, Any]:
        """The custom resource definition."""
        version = {
            "name": VERSION,
            "served": True,
            "storage": True,
            "schema": {"openAPIV3Schema": self._schema()},
            "subresources": {"status": {}, **({"scale": dict(self.scale)} if self.scale else {})},
            "additionalPrinterColumns": [
                {"name": name, "type": type_, "jsonPath": path, "description": text, "priority": priority}
                for name, type_, path, text, priority in self.columns
            ],
        }
        names = {
            "kind": self.name,
            "listKind": f"{self.name}List",
            "plural": self.plural,
            "singular": self.name.lower(),
            "shortNames": [self.short],
            "categories": ["all", "specrouter"],
        }
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": f"{self.plural}.{GROUP}",
                "labels": {"app.kubernetes.io/part-of": "specrouter"},
                "annotations": {"helm.sh/resource-policy": "keep"},  # families outlive a release of the definitions
            },
            "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
        }

    def _schema(self) -> dict[str, Any]:
        parts = {**ENVELOPE, "spec": structural(self.spec), "status": _status(self.status)}
        return {"type": "object", "description": self.about, "required": ["spec"], "properties": parts, **self.root}


def _status(model: type[Spec]) -> dict[str, Any]:
    schema = structural(model)
    schema.pop("required", None)  # a status grows; what is missing is not yet known
    conditions = schema["properties"]["conditions"]
    conditions |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "maxItems": 16}
    return schema


READY = '.status.conditions[?(@.type=="Ready")]'
FRESH = '.status.conditions[?(@.type=="SignalsFresh")].status'
AGE = ("Age", "date", ".metadata.creationTimestamp", "Since when it exists.", 0)
MODEL_FAMILY = Kind(
    "ModelFamily",
    "modelfamilies",
    "mf",
    "A family of models that work together: which levels run, and on what.",
    ModelFamilySpec,
    ModelFamilyStatus,
    (
        ("Levels", "string", ".status.readyLevels", "Levels that are ready, of all.", 0),
        ("Ready", "string", f"{READY}.status", "Whether every level is ready.", 0),
        ("Chain", "string", ".status.chain", "The levels, lowest first.", 0),
        ("GPUs", "integer", ".status.gpus", "GPUs that the wanted replicas take.", 0),
        AGE,
        ("Backend", "string", ".spec.backend", "What a level becomes.", 1),
        ("Reason", "string", f"{READY}.message", "What is missing.", 1),
    ),
    FAMILY_RULES,
    {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
)
ROUTING_POLICY = Kind(
    "RoutingPolicy",
    "routingpolicies",
    "rpol",
    "How a model family is used: what routers may choose, what was promised, who sets weights and replicas.",
    RoutingPolicySpec,
    RoutingPolicyStatus,
    (
        ("Family", "string", ".spec.familyRef.name", "The family.", 0),
        ("Ready", "string", f"{READY}.status", "Whether the policy is in force.", 0),
        ("Fresh", "string", FRESH, "Whether it is measured.", 0),
        ("Scaling", "string", ".spec.scaling.mode", "Who sets the replicas.", 0),
        ("Version", "integer", ".status.weightsVersion", "Version of the weights.", 0),
        AGE,
        ("Weights", "string", ".status.weights", "Level -> weight in force.", 1),
        ("Reason", "string", f"{READY}.message", "What is missing.", 1),
    ),
)


def definitions() -> dict[str, dict[str, Any]]:
    """File name -> custom resource definition."""
    return {f"{kind.plural}.yaml": kind.definition() for kind in (MODEL_FAMILY, ROUTING_POLICY)}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def render(definition: Mapping[str, Any]) -> str:
    """A definition as the YAML of a chart's template. Helm's own braces don't occur."""
    return HEAD + yaml.dump(dict(definition), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def main(arguments: list[str]) -> int:
    """Write the definitions; with ``--check``, only say whether they are up to date."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stale = []
    for name, definition in definitions().items():
        path, text = TARGET / name, render(definition)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path))
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        log.info("%s: %s", "out of date, run `make crds`" if "--check" in arguments else "written", ", ".join(stale))
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
