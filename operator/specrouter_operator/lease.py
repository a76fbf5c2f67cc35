"""Leader election over a coordination.k8s.io Lease.

A lease counts as expired when its record has not changed for its duration *by the watcher's own monotonic clock*; the
times in it are never compared with a clock, so that machines may disagree about the time. The holder stops writing
``MARGIN`` before others may take over, by the same kind of clock.
"""

from __future__ import annotations

import datetime
import logging
import random
import threading
import time
from collections.abc import Callable

from specrouter_operator.api import Api, ApiError
from specrouter_operator.metrics import LEADS
from specrouter_operator.resource import LEASE, Object

log = logging.getLogger(__name__)

DURATION, RETRY = 15.0, 2.0  # seconds
MARGIN = 1 / 3  # of the duration


class Lease:
    """The right to write, for one of several replicas. ``holder``: this replica's unique name."""

    def __init__(
        self,
        api: Api,
        name: str,
        holder: str,
        *,
        duration: float = DURATION,
        retry: float = RETRY,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._api, self._name, self._holder = api, name, holder
        self._duration, self._retry, self._clock, self._today = duration, retry, clock, today
        self._renewed: float | None = None  # when the last renewal that succeeded was begun
        self._seen: tuple[str, float] = ("", 0.0)  # the record's version, and since when it is the same
        self.taken = threading.Event()

    def held(self) -> bool:
        """Whether this replica may write now."""
        renewed = self._renewed
        return renewed is not None and self._clock() - renewed < self._duration * (1 - MARGIN)

    def run(self, stop: threading.Event) -> None:
        """Take, renew, take again, until ``stop`` is set; then give it back."""
        while not stop.is_set():
            try:
                self._step()
            except ApiError as error:
                log.warning("lease %s: %s", self._name, error)
            LEADS.set(self.held())
            stop.wait(self._retry * random.uniform(0.8, 1.2))
        self._release()

    def _step(self) -> None:
        begun = self._clock()
        lease = self._api.get(LEASE, self._name)
        if lease is None:
            self._api.create(LEASE, self._record(None))
        else:
            version, holder = lease["metadata"]["resourceVersion"], lease["spec"].get("holderIdentity")
            if version != self._seen[0]:
                self._seen = (version, begun)
            lasts = float(lease["spec"].get("leaseDurationSeconds") or self._duration)
            if holder not in (self._holder, None, "") and begun - self._seen[1] < max(lasts, self._duration):
                self._lost(holder)
                return
            self._api.replace(LEASE, self._record(lease))  # only if nobody else wrote since
        if not self.taken.is_set():
            log.info("lease %s: leading as %s", self._name, self._holder)
            self.taken.set()
        self._renewed = begun

    def _lost(self, holder: str) -> None:
        if self.taken.is_set():
            log.warning("lease %s: now held by %s", self._name, holder)
        self._renewed = None
        self.taken.clear()

    def _record(self, old: Object | None, holder: str | None = None) -> Object:
        now = self._today().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict(old["spec"]) if old else {}
        mine = spec.get("holderIdentity") == self._holder
        spec |= {
            "holderIdentity": self._holder if holder is None else holder,
            "leaseDurationSeconds": max(1, round(self._duration)),
            "renewTime": now,
            "acquireTime": spec["acquireTime"] if mine and "acquireTime" in spec else now,
            "leaseTransitions": int(spec.get("leaseTransitions", 0)) + (0 if mine or not old else 1),
        }
        meta = old["metadata"] if old else {"name": self._name, "namespace": self._api.namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": meta, "spec": spec}

    def _release(self) -> None:
        """Let another replica lead at once, rather than after the duration."""
        held, self._renewed = self.held(), None
        LEADS.set(0)
        if not held:
            return
        try:
            lease = self._api.get(LEASE, self._name)
            if lease and lease["spec"].get("holderIdentity") == self._holder:
                self._api.replace(LEASE, self._record(lease, holder=""))
        except ApiError as error:
            log.info("lease %s: not given back, it will expire: %s", self._name, error)
