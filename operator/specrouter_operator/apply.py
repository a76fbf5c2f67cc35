"""Server-side apply that writes only what differs.

An object is left alone when it holds every wanted value and we own no field that is not wanted. Webhooks and defaults
may turn a value into another one that means the same; what the API server answered to the last write counts as right
for as long as both the wish and the object stay the same, so that such a difference is written once and not for ever.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from specrouter_operator.api import MANAGER, Api
from specrouter_operator.metrics import WRITES
from specrouter_operator.resource import Object, Resource, name_of
from specrouter_operator.watch import Mirror

log = logging.getLogger(__name__)

SUFFIXES = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
ATOMIC = frozenset({"selector", "matchLabels", "nodeSelector"})  # maps in which a key more is another meaning
MISSING = "(missing)"


class Applier:
    """Applies objects of mirrored resources."""

    def __init__(self, api: Api, mirrors: Mapping[Resource, Mirror]) -> None:
        self._api, self._mirrors = api, mirrors
        self._settled: dict[tuple[Resource, str], tuple[str, Any]] = {}  # by object: the wish, and what became of it

    def apply(self, resource: Resource, wish: Object) -> bool:
        """Make the object as wished. Returns whether that took a write. Raises ApiError, NotLeaderError."""
        key, mirror = (resource, name_of(wish)), self._mirrors[resource]
        live = mirror.get(name_of(wish))
        text = json.dumps(wish, sort_keys=True)
        if live is not None and not live["metadata"].get("deletionTimestamp"):
            if holds(live, wish) and not surplus(_owned(live), wish):
                return False
            if self._settled.get(key) == (text, cut(live, wish)):
                return False
        made = self._api.apply(resource, wish)
        WRITES.labels(resource.kind).inc()
        log.info("applied %s %s", resource.kind, name_of(wish))
        mirror.note(made)
        self._settled[key] = (text, cut(made, wish))
        return True

    def forget(self, resource: Resource, name: str) -> None:
        """The object is gone."""
        self._settled.pop((resource, name), None)


def holds(live: Any, wish: Any) -> bool:
    """Whether ``live`` has everything that ``wish`` has. Lists must be equally long."""
    if isinstance(wish, dict):
        return isinstance(live, dict) and all(_has(live, key, value) for key, value in wish.items())
    if isinstance(wish, list):
        return isinstance(live, list) and len(live) == len(wish) and all(map(holds, live, wish))
    return bool(live == wish) or quantity(live) == quantity(wish) is not None


def _has(live: Mapping[str, Any], key: str, value: Any) -> bool:
    if key not in live:
        return value in ({}, [])
    return bool(live[key] == value) if key in ATOMIC else holds(live[key], value)


def cut(live: Any, wish: Any) -> Any:
    """The part of ``live`` that ``wish`` speaks of."""
    if isinstance(wish, dict) and isinstance(live, dict):
        return {
            key: live.get(key, MISSING) if key in ATOMIC else cut(live.get(key, MISSING), value)
            for key, value in wish.items()
        }
    if isinstance(wish, list) and isinstance(live, list) and len(wish) == len(live):
        return [cut(*pair) for pair in zip(live, wish, strict=True)]
    return live


def quantity(value: Any) -> Decimal | None:
    """A Kubernetes quantity as a number, None if it is none: "1000m" and 1 are the same."""
    text = str(value)
    try:
        if text[-2:] in BINARY:
            return Decimal(text[:-2]) * (1 << BINARY[text[-2:]])
        if text[-1:] in SUFFIXES:
            return Decimal(text[:-1]).scaleb(SUFFIXES[text[-1:]])
        return Decimal(text)
    except (InvalidOperation, ValueError):
        return None


def _owned(live: Object) -> Object:
    """The fields that we own by apply, in the form of metadata.managedFields."""
    for entry in live["metadata"].get("managedFields", []):
        if entry["manager"] == MANAGER and entry["operation"] == "Apply" and not entry.get("subresource"):
            return dict(entry["fieldsV1"])
    return {}


def surplus(owned: Mapping[str, Any], wish: Any) -> bool:
    """Whether a field is owned that is not in ``wish``: it was wanted once, and apply would remove it."""
    for key, inner in owned.items():
        if key.startswith("f:"):
            if not isinstance(wish, dict) or key[2:] not in wish or surplus(inner, wish[key[2:]]):
                return True
        elif key.startswith("k:"):
            names = json.loads(key[2:])
            fits = [one for one in wish if all(one.get(n) == v for n, v in names.items())] if wish else []
            if not fits or surplus(inner, fits[0]):
                return True
        elif key.startswith("v:") and json.loads(key[2:]) not in wish:
            return True
    return False
