"""Replicas leave in order: a level's scale goes to 0, its pods hand over their sequences, then its objects go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from specrouter_operator.objects import deployment_name
from specrouter_operator.pods import GRACE_S
from specrouter_operator.resource import DEPLOYMENT, FAMILY, INFERENCE_SERVICE, LEVEL_LABEL, Object, Resource, name_of
from specrouter_operator.schema import GROUP
from specrouter_operator.situation import Seen
from specrouter_operator.world import World

log = logging.getLogger(__name__)

FINALIZER = f"{GROUP}/drain"
SLACK_S = 30.0  # beyond the pods' own deadline, after which nothing is waited for
DEFAULT_S = 60


class Drains:
    """What is being drained. It remembers since when, so that every wait ends; a new leader waits anew."""

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        self._world, self._clock = world, clock
        self._since: dict[tuple[str, str], float] = {}

    def ensure_finalizer(self, owner: Object) -> Object:
        """``owner`` with our finalizer, which makes its deletion wait for the drain."""
        names = owner["metadata"].get("finalizers", [])
        return owner if FINALIZER in names else self._finalizers(owner, [*names, FINALIZER])

    def family(self, owner: Object) -> bool:
        """Drain all levels of a family that is being deleted; when done, let it go. Returns whether it went."""
        name = name_of(owner)
        if FINALIZER not in owner["metadata"].get("finalizers", []):
            return True
        levels = {item["metadata"]["labels"].get(LEVEL_LABEL, "") for _, item in self._world.owned(owner)} - {""}
        empty = [self._level(owner, level) for level in sorted(levels)]  # all begin at once
        if not all(empty):
            return False
        self._finalizers(owner, [one for one in owner["metadata"]["finalizers"] if one != FINALIZER])
        for key in [key for key in self._since if key[0] == name]:
            del self._since[key]
        return True

    def leftovers(self, owner: Object, kept: set[tuple[Resource, str]]) -> list[str]:
        """Drain and delete what the family owns and no longer wants. Returns the levels that still drain."""
        left = [
            (resource, item) for resource, item in self._world.owned(owner) if (resource, name_of(item)) not in kept
        ]
        left = [
            (resource, item)
            for resource, item in self._world.owned(owner)
            if (resource, name_of(item)) not in kept and not item["metadata"].get("deletionTimestamp")
        ]
        if not left or not self._is_current(owner):
            return []
        running = set()
        for resource, item in left:
            level = item["metadata"]["labels"].get(LEVEL_LABEL, "")
            if resource in (INFERENCE_SERVICE, DEPLOYMENT) and not self._level(owner, level):
                running.add(level)
        for resource, item in left:
            level = item["metadata"]["labels"].get(LEVEL_LABEL, "")
            if level not in running:
                log.info("deleting %s %s", resource.kind, name_of(item))
                self._world.delete(resource, item)
                self._since.pop((name_of(owner), level), None)
        return sorted(running)

    def _level(self, owner: Object, level: str) -> bool:
        """Scale a level to 0. Returns whether its replicas are gone, or had their time."""
        name = deployment_name(name_of(owner), level)
        seen = Seen.of(self._world.get(DEPLOYMENT, name))
        if seen.wanted is None:
            return True
        since = self._since.setdefault((name_of(owner), level), self._clock())
        if seen.wanted > 0:
            log.info("draining %s: %d replicas", name, seen.wanted)
            self._world.api.merge(DEPLOYMENT, name, {"spec": {"replicas": 0}}, "scale")
            return False
        limit = int(owner["spec"].get("drainSeconds", DEFAULT_S)) + GRACE_S + SLACK_S
        if seen.replicas > 0 and self._clock() - since > limit:
            log.warning("%s: %d replicas still there after %.0f s, not waiting", name, seen.replicas, limit)
            return True
        return seen.replicas == 0

    def _is_current(self, owner: Object) -> bool:
        """Whether the family is still what the mirror has: nothing is deleted by an outdated wish."""
        live = self._world.api.get(FAMILY, name_of(owner))
        if live is None:
            return False
        new, old = live["metadata"], owner["metadata"]
        return bool(new["uid"] == old["uid"] and new["generation"] == old["generation"])

    def _finalizers(self, owner: Object, names: list[str]) -> Object:
        changes = {"metadata": {"resourceVersion": owner["metadata"]["resourceVersion"], "finalizers": names}}
        made = self._world.api.merge(FAMILY, name_of(owner), changes)
        if names:
            self._world.mirrors[FAMILY].note(made)
        return made
