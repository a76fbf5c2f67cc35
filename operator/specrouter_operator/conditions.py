"""Conditions of metav1 form: made anew each time, with the times of those that did not change kept. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from specrouter_operator.resource import Object

MOST_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """What holds of an object, or doesn't (None: not known), and why."""

    type: str
    holds: bool | None
    reason: str
    message: str = ""


def stated(findings: Iterable[Finding], owner: Object, now: datetime.datetime) -> list[dict[str, Any]]:
    """The status.conditions of ``owner`` by what was found."""
    old = {one["type"]: one for one in owner.get("status", {}).get("conditions", [])}
    generation = int(owner["metadata"].get("generation", 0))
    return [_stated(finding, old.get(finding.type), generation, now) for finding in findings]


def _stated(finding: Finding, old: Mapping[str, Any] | None, generation: int, now: datetime.datetime) -> dict[str, Any]:
    status = {True: "True", False: "False", None: "Unknown"}[finding.holds]
    since = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    if old is not None and old["status"] == status:
        since = old["lastTransitionTime"]
    return {
        "type": finding.type,
        "status": status,
        "reason": finding.reason,
        "message": finding.message[:MOST_MESSAGE],
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }


def turned(owner: Object, conditions: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The conditions whose status differs from what ``owner`` says now."""
    old = {one["type"]: one["status"] for one in owner.get("status", {}).get("conditions", [])}
    return [one for one in conditions if old.get(one["type"]) != one["status"]]
