"""``explain-policy``: what a policy came to, in words, from what the API server has."""

from __future__ import annotations

from collections.abc import Sequence

from specrouter_operator.api import Api, ApiError
from specrouter_operator.resource import FAMILY, POLICY, Object


def policy(api: Api, name: str) -> str:
    """A table of levels and the reasons behind it. Raises ApiError (404: no such policy)."""
    item = api.get(POLICY, name)
    if item is None:
        raise ApiError(404, f"there is no RoutingPolicy {name!r} in namespace {api.namespace}")
    family = api.get(FAMILY, item["spec"]["familyRef"]["name"])
    status = item.get("status", {})
    lines = [f"RoutingPolicy {name} of ModelFamily {item['spec']['familyRef']['name']}", ""]
    if status.get("observedGeneration") != item["metadata"]["generation"]:
        lines += ["The operator has not seen the newest version of this policy yet.", ""]
    lines += [*_levels(item, family, status), ""]
    lines += ["why:", *(f"  {reason}" for reason in status.get("reasons", []) or ["nothing was decided yet"]), ""]
    rows = [(one["type"], one["status"], one["reason"], one["message"]) for one in status.get("conditions", [])]
    lines += _table([("condition", "", "", ""), *rows])
    return "\n".join(line.rstrip() for line in lines)


def _levels(item: Object, family: Object | None, status: Object) -> list[str]:
    if family is None:
        return ["There is no such family."]
    pins = item["spec"].get("weights", {}).get("pins", {})
    weights, wants = status.get("weights", {}), status.get("replicas", {})
    seen = {one["name"]: one for one in family.get("status", {}).get("levels", [])}
    rows = [("level", "weight", "", "replicas", "ready", "bounds")]
    for level in family["spec"]["levels"]:
        name, bounds = level["name"], level.get("replicas", {})
        least = bounds.get("min", 1)
        row = (
            name,
            str(weights.get(name, "-")),
            "pinned" if name in pins else "",
            str(wants.get(name, "-")),
            str(seen.get(name, {}).get("ready", "-")),
            f"{least} to {bounds.get('max', max(least, 1))}",
        )
        rows.append(row)
    version = status.get("weightsVersion", 0)
    return [*_table(rows), f"weights version {version}, scaling {item['spec']['scaling']['mode']}"]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
