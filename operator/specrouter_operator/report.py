"""What is written into the status of families and policies. Pure, but for the writer at the end."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

from specrouter_operator.conditions import Finding, stated, turned
from specrouter_operator.control import Decision
from specrouter_operator.events import Events
from specrouter_operator.family_types import ModelFamilySpec
from specrouter_operator.metrics import WRITES
from specrouter_operator.resource import FAMILY_LABEL, Object, Resource, name_of
from specrouter_operator.situation import Seen
from specrouter_operator.world import World

TEXT_S = 30.0  # a status of which only words changed is written so often at most
Wants = Mapping[str, int]


def family_status(
    owner: Object,
    spec: ModelFamilySpec | None,
    seen: Mapping[str, Seen],
    wants: Wants,
    findings: list[Finding],
    now: datetime.datetime,
) -> Object:
    """The status of a ModelFamily. ``spec`` None: it can't be read. ``wants``: level -> replicas."""
    old = {one["name"]: one for one in owner.get("status", {}).get("levels", [])}
    levels = [] if spec is None else [_level(one.name, seen[one.name], wants, spec, old) for one in spec.levels]
    ready = sum(_is_ready(seen[level["name"]], level["desired"]) for level in levels)
    findings = [*findings, _levels_ready(levels, ready)]
    bad = next((one for one in findings if not one.holds), None)
    findings.append(
        Finding("Ready", True, "AllReady", "every level is ready")
        if bad is None
        else Finding("Ready", False, bad.reason, bad.message)
    )
    target = seen[spec.levels[-1].name] if spec is not None else Seen()
    return {
        "observedGeneration": int(owner["metadata"]["generation"]),
        "conditions": stated(findings, owner, now),
        "levels": levels,
        "chain": " < ".join(level["name"] for level in levels),
        "readyLevels": f"{ready}/{len(levels)}",
        "replicas": target.replicas,
        "selector": f"{FAMILY_LABEL}={name_of(owner)}",
        "gpus": sum(one.gpus * wants[one.name] for one in spec.levels) if spec is not None else 0,
    }


def _level(name: str, seen: Seen, wants: Wants, spec: ModelFamilySpec, old: Mapping[str, Any]) -> Object:
    wanted = wants[name]
    message = "" if _is_ready(seen, wanted) else _lacking(seen)
    set_by_hand = seen.wanted is None or seen.wanted != wanted
    copies = old.get(name, {}).get("copies", -1) if set_by_hand else spec.replicas
    return {
        "name": name,
        "desired": wanted,
        "replicas": seen.replicas,
        "ready": seen.ready,
        "copies": copies,
        "message": message,
    }


def _is_ready(seen: Seen, wanted: int) -> bool:
    """Whether a level answers, as the family asks for. More replicas may be starting; one that is scaled to zero is as
    it should be."""
    answers = seen.ready >= 1 or (wanted == 0 and seen.replicas == 0)
    return seen.wanted is not None and seen.rolled_out != "" and answers


def _lacking(seen: Seen) -> str:
    """What a level waits for."""
    if seen.wanted is None:
        return "no Deployment yet"
    return "not every replica is of the newest version yet" if seen.ready else "replicas are starting"


def _levels_ready(levels: list[Object], ready: int) -> Finding:
    if levels and ready == len(levels):
        return Finding("LevelsReady", True, "AllReady", f"{ready} of {len(levels)} levels answer")
    waiting = ", ".join(f"{level['name']}: {level['message']}" for level in levels if level["message"])
    return Finding("LevelsReady", False, "LevelsStarting", waiting or "no level is there")


def policy_status(
    owner: Object,
    findings: list[Finding],
    decision: Decision | None,
    wants: Wants,
    version: int,
    now: datetime.datetime,
) -> Object:
    """The status of a RoutingPolicy. Without a decision, what was in force stays."""
    needed = [one for one in findings if one.type in ("FamilyFound", "Valid")]
    bad = next((one for one in needed if not one.holds), None)
    ready = (
        Finding("Ready", True, "InForce", "the policy is in force")
        if bad is None
        else Finding("Ready", False, bad.reason, bad.message)
    )
    old = owner.get("status", {})
    status: Object = {
        "observedGeneration": int(owner["metadata"]["generation"]),
        "conditions": stated([*findings, ready], owner, now),
        "weights": dict(decision.weights) if decision is not None else old.get("weights", {}),
        "pinned": sorted(owner["spec"].get("weights", {}).get("pins", {}))
        if decision is not None
        else old.get("pinned", []),
        "weightsVersion": version,
        "replicas": dict(wants),
        "reasons": [f"{name}: {why}" for name, why in decision.reasons.items()] if decision is not None else [],
    }
    # server-side apply makes a map null when all we owned in it goes; a map without entries is left out instead
    return {key: value for key, value in status.items() if value not in ({}, [])}


class Reporter:
    """Writes a status when it says something new."""

    def __init__(self, world: World, events: Events, clock: Callable[[], float] = time.monotonic) -> None:
        self._world, self._events, self._clock = world, events, clock
        self._written: dict[str, float] = {}

    def write(self, resource: Resource, owner: Object, status: Object) -> None:
        """Write ``status``, if it differs enough, and an event for each condition that turned. Raises ApiError."""
        live, uid = owner.get("status", {}), owner["metadata"]["uid"]
        if live == status:
            return
        recent = self._clock() - self._written.setdefault(uid, self._clock()) < TEXT_S
        if recent and _wordless(live) == _wordless(status):
            return
        meta = {"name": name_of(owner), "namespace": owner["metadata"]["namespace"], "uid": uid}
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta, "status": status}
        made = self._world.api.apply(resource, body, "status")
        WRITES.labels(f"{resource.kind} status").inc()
        self._world.mirrors[resource].note(made)
        self._written[uid] = self._clock()
        for condition in turned(owner, status["conditions"]):
            if condition["type"] == "Ready":
                self._events.tell(
                    owner,
                    condition["reason"],
                    condition["message"],
                    "Normal" if condition["status"] == "True" else "Warning",
                )

    def forget(self, owner: Object) -> None:
        """The object is gone."""
        self._written.pop(owner["metadata"]["uid"], None)


def _wordless(status: Mapping[str, Any]) -> Object:
    """A status without the explanations, whose numbers may differ each second."""
    conditions = [
        {key: value for key, value in one.items() if key != "message"} for one in status.get("conditions", [])
    ]
    return {**status, "conditions": conditions, "reasons": None}
