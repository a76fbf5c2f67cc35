#!/usr/bin/env python3
"""Make values.schema.json and README.md of the chart from its values.yaml, in the manner of helm-docs.

    document.py [--check]

Of each value the comment above it says what it is ("# -- text") and what it may be ("# @schema {JSON Schema}"); the
type is that of the default. "$ref: NAME" means a definition of definitions.yaml, or the spec of a custom resource.
--check: say whether both are as they would be made, and change nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

HERE = Path(__file__).parent
CHART = HERE / "specrouter"
CRDS = {"ModelFamilySpec": "modelfamilies.yaml", "RoutingPolicySpec": "routingpolicies.yaml"}
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
# Keywords of a custom resource's schema that a JSON Schema has too.
KEYWORDS = ["type", "description", "default", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum", "required"]
KEYWORDS += ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "anyOf"]
Schema = dict[str, Any]


class Value(NamedTuple):
    """One value of values.yaml: where it stands, its default, and what is said of it."""

    path: tuple[str, ...]
    default: Any
    text: str
    schema: Schema


def values(text: str) -> Iterator[Value]:
    """All values that have no described ones below them."""
    lines = text.splitlines()

    def below(node: yaml.MappingNode, path: tuple[str, ...]) -> Iterator[Value]:
        for key, value in node.value:
            here = (*path, key.value)
            said, schema = comment(lines, key.start_mark.line)
            if said:
                yield Value(here, yaml.safe_load(yaml.serialize(value)), said, schema)
            elif isinstance(value, yaml.MappingNode):
                yield from below(value, here)
            else:
                raise SystemExit(f"values.yaml: {'.'.join(here)}: has no description")

    root = yaml.compose(text, yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101  # for mypy; values.yaml is a mapping
    yield from below(root, ())


def comment(lines: list[str], line: int) -> tuple[str, Schema]:
    """Description and schema of the key in this line, from the comment right above it."""
    said: list[str] = []
    schema: Schema = {}
    while line > 0 and (above := lines[line - 1].strip()).startswith("#"):
        line -= 1
        if above.startswith("# @schema "):
            schema = yaml.safe_load(above.removeprefix("# @schema "))
        else:
            said.insert(0, above.removeprefix("#").strip())
        if above.startswith("# -- "):
            return " ".join(said).removeprefix("-- "), schema
    return "", {}


def schema_of(found: list[Value]) -> Schema:
    """The schema of values.yaml as a whole: no others than these."""
    root: Schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "properties": {},
    }
    for value in found:
        at = root
        for part in value.path[:-1]:
            new: Schema = {"type": "object", "additionalProperties": False, "properties": {}}
            at = at["properties"].setdefault(part, new)
        own: Schema = {} if {"$ref", "type", "enum"} & value.schema.keys() else {"type": TYPES[type(value.default)]}
        at["properties"][value.path[-1]] = resolved({"description": value.text, **own, **value.schema})
        at.setdefault("required", []).append(value.path[-1])  # what a null takes out is missed here, by name
    return root


@cache
def definitions() -> dict[str, Schema]:
    """What values may be, by name."""
    named: dict[str, Schema] = yaml.safe_load((HERE / "definitions.yaml").read_text())
    named |= {name: spec_of(file) for name, file in CRDS.items()}
    # The family of a policy is that of the release.
    named["RoutingPolicySpec"]["properties"].pop("familyRef")
    named["RoutingPolicySpec"].pop("required", None)
    return named


def resolved(schema: Any) -> Any:
    """References filled in, since Helm's messages about what one leads to do not name the value. What stands beside
    a reference comes before it."""
    if isinstance(schema, list):
        return [resolved(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    own = {key: resolved(value) for key, value in schema.items() if key != "$ref"}
    return resolved(definitions()[schema["$ref"]]) | own if "$ref" in schema else own


def spec_of(file: str) -> Schema:
    """The spec of a custom resource as a JSON Schema that knows no other fields."""
    crd = yaml.safe_load((HERE / "specrouter-crds/templates" / file).read_text())
    return tight(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"])


def tight(schema: Schema) -> Schema:
    """Without Kubernetes' own keywords, and closed."""
    made = {key: schema[key] for key in KEYWORDS if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        made |= {"type": ["integer", "string"]}
    if made.get("exclusiveMinimum") is True:  # a number since draft 6
        made["exclusiveMinimum"] = made.pop("minimum")
    if "items" in schema:
        made["items"] = tight(schema["items"])
    if "properties" in schema:
        made["properties"] = {name: tight(one) for name, one in schema["properties"].items()}
        made["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = tight(schema["additionalProperties"])
    return made


def readme(found: list[Value]) -> str:
    """The chart's README."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    lines = [
        f"# {chart['name']}",
        "",
        chart["description"],
        "",
        f"Version {chart['version']}, Kubernetes {chart['kubeVersion']}. The way from nothing to a token is in "
        "[docs/install.md](../../docs/install.md). This page is made by charts/document.py from values.yaml.",
        "",
        "```sh",
        "helm install specrouter charts/specrouter -f my-values.yaml",
        "helm test specrouter",
        "```",
        "",
        "Helm installs the custom resource definitions with the chart, unless `--skip-crds` is given, and never "
        "changes them again. `helm upgrade --install specrouter-crds charts/specrouter-crds --take-ownership` does.",
        "",
        "| value | meaning | default |",
        "|---|---|---|",
    ]
    for value in found:
        default = json.dumps(value.default)
        shown = f"`{default}`" if len(default) < 60 else "see values.yaml"
        lines.append(f"| `{'.'.join(value.path)}` | {value.text.replace('|', chr(92) + '|')} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both files, or compare them."""
    found = list(values((CHART / "values.yaml").read_text()))
    made = {"values.schema.json": json.dumps(schema_of(found), indent=1) + "\n", "README.md": readme(found)}
    for name, text in made.items():
        path = CHART / name
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            raise SystemExit(f"{path} is not what charts/document.py makes of values.yaml and the custom resources")


main()
