"""A mirror of one resource: list, then watch, and list anew from time to time.

Three things can go wrong with a watch, and each heals by itself: it breaks off (watch again from the last version), its
version expires (410: list), it silently misses changes (the periodic list). Lists are read with quorum and a watch goes
on from the version of what was read, so that an API server that lags can't show an older world.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from specrouter_operator.api import Api, ApiError
from specrouter_operator.metrics import RELISTS
from specrouter_operator.resource import Object, Resource, name_of

log = logging.getLogger(__name__)

FIRST_WAIT, LAST_WAIT = 0.2, 10.0  # seconds after a failure


class Mirror:
    """All objects of one resource in one namespace, as last seen. Thread-safe.

    ``changed`` is called, from the mirror's thread, with every object that came, changed or went.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        changed: Callable[[Object], None],
        *,
        selector: str = "",
        relist: float = 300.0,
        watch: int = 60,
    ) -> None:
        self.resource = resource
        self.synced = threading.Event()  # set from the first list on
        self._api, self._changed, self._selector = api, changed, selector
        self._relist, self._watch = relist, watch
        self._lock = threading.Lock()
        self._objects: dict[str, Object] = {}
        self._version = ""
        self.missing = False  # the API server has no such resource

    def get(self, name: str) -> Object | None:
        """The object of this name. Not to be changed."""
        with self._lock:
            return self._objects.get(name)

    def all(self) -> list[Object]:
        """All objects. Not to be changed."""
        with self._lock:
            return list(self._objects.values())

    def note(self, item: Object) -> None:
        """Take the answer of an own write at once, not only when the watch brings it."""
        with self._lock:
            if not _older(item, self._objects.get(name_of(item))):
                self._objects[name_of(item)] = item

    def run(self, stop: threading.Event) -> None:
        """List and watch until ``stop`` is set."""
        failures = 0
        while not stop.is_set():
            try:
                self._list()
                end = time.monotonic() + self._relist * random.uniform(0.9, 1.1)
                failures = 0
                while not stop.is_set() and time.monotonic() < end:
                    self._follow(stop, end)
            except ApiError as error:
                if error.status == 410:
                    log.info("%s: version expired, listing anew", self.resource.plural)
                    stop.wait(FIRST_WAIT * random.uniform(0.5, 1.0))
                    continue
                if error.status == 404:  # nothing to mirror, as KServe's resources without KServe; look again later
                    self._clear()
                    stop.wait(LAST_WAIT)
                    continue
                failures += 1
                wait = min(FIRST_WAIT * 2 ** (failures - 1), LAST_WAIT)
                log.warning("%s: %s; again in %.1f s", self.resource.plural, error, wait)
                stop.wait(max(wait * random.uniform(0.75, 1.25), min(error.retry_after or 0.0, LAST_WAIT)))

    def _list(self) -> None:
        items, version = self._api.list(self.resource, self._selector)
        RELISTS.labels(self.resource.plural).inc()
        for item in items:  # items of a list don't say what they are
            item["apiVersion"], item["kind"] = self.resource.api_version, self.resource.kind
        new = {name_of(item): item for item in items}
        with self._lock:
            old, self._objects, self._version = self._objects, new, version
        self.missing = False
        self.synced.set()
        for name, item in {**old, **new}.items():
            if name not in old or name not in new or not _same(old[name], item):
                self._changed(item)

    def _clear(self) -> None:
        with self._lock:
            self._objects, self.missing = {}, True
        self.synced.set()

    def _follow(self, stop: threading.Event, end: float) -> None:
        """One watch, until it ends. What it breaks off with is no reason to list, except 410."""
        seconds = max(1, min(self._watch, int(end - time.monotonic())))
        try:
            for kind, item in self._api.watch(self.resource, self._version, self._selector, seconds):
                self._take(kind, item)
                if stop.is_set():
                    return
        except ApiError as error:
            if error.status != 0:
                raise
            log.debug("%s", error)
            stop.wait(random.uniform(0.05, 0.2))

    def _take(self, kind: str, item: Object) -> None:
        with self._lock:
            self._version = item["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                return
            name = name_of(item)
            if kind == "DELETED":
                self._objects.pop(name, None)
            elif _older(item, self._objects.get(name)):
                return
            else:
                self._objects[name] = item
        self._changed(item)


def _same(one: Object, other: Object) -> bool:
    a, b = one["metadata"], other["metadata"]
    return (a["uid"], a["resourceVersion"]) == (b["uid"], b["resourceVersion"])


def _older(item: Object, than: Object | None) -> bool:
    """Whether it is an earlier version of the same object (versions of one resource grow, see Kubernetes KEP-5504)."""
    if than is None or item["metadata"]["uid"] != than["metadata"]["uid"]:
        return False
    return int(item["metadata"]["resourceVersion"]) < int(than["metadata"]["resourceVersion"])
