"""This router among those of its family: who it is, and which of the others live.

A router lives as long as its lease, one key with a time to live, that it renews every ``RENEW_S``; one lease
covers all of its sequences. Redis alone measures its time; clocks of two hosts are never compared. A lease only says
who *may be* taken over: that a router which was merely slow does no harm is due to the epochs (record_scripts.py).

Shared by the routers of a family:

    specrouter:family:{NAME}:routers      hash of router -> JSON of address, host and heartbeat (its clock; for people)
    specrouter:family:{NAME}:lease:ID     there is one while the router lives; how often it was renewed
    specrouter:family:{NAME}:owned:ID     set of the sequences that it runs

A lease that is not there says that its router is dead only where Redis has kept what it was told. It has not when
this router's own lease is not as it was renewed last: Redis came back with less than it had (between two renewals
nothing else shows that), or its clock was set ahead. From then on, as after an outage, nobody is dead before this
router has been in touch with Redis for a whole lease, in which all that live have renewed theirs. A clock of Redis that
is set back makes a lease longer than any is: it is cut to its length by whoever sees it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from specrouter_router.ending import end
from specrouter_router.record_scripts import TTL_S, family_key
from specrouter_router.records import Records, StoreError

log = logging.getLogger(__name__)

LEASE_S = 3.0
RENEW_S = 0.5
TRY_S = 1.0  # for one renewal: with RENEW_S less than a lease, so that an outage costs nobody a whole one
LEASE_MS = int(LEASE_S * 1000)
MAX_ROUTERS = 1000  # looked at


class Lease:
    """See the module. ``on_renewal`` is called after each renewal, with whether the lease had run out before: then
    others may have taken what is run here.
    """

    def __init__(self, records: Records, family: str, address: str, on_renewal: Callable[[bool], None]) -> None:
        self.id = secrets.token_hex(8)
        self.address = address
        self._records = records
        self._family = family
        self._on_renewal = on_renewal
        self._renewals = 0  # of which Redis said that it has them
        self._sent = 0
        self._steady_since: float | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def index(self) -> str:
        """Key of the set of the sequences run here."""
        return self.index_of(self.id)

    def index_of(self, router: str) -> str:
        """Key of the set of the sequences that a router runs, or ran when it died."""
        return family_key(self._family, f"owned:{router}")

    @property
    def steady(self) -> bool:
        """Whether a lease that is not there says that its router is dead."""
        return self._steady_since is not None and time.monotonic() - self._steady_since >= LEASE_S

    def start(self) -> None:
        """Take the lease, and keep it until ``stop``."""
        self._task = asyncio.create_task(self._run(), name="lease")

    async def stop(self, left: bool) -> None:
        """Give it back. ``left``: there are sequences that others should look for on this router's list."""
        if self._task is None:
            return
        await end(self._task)
        self._task = None
        with suppress(StoreError):
            await self._records.ask([("DEL", self._key(self.id))])
            if not left:
                await self.forget(self.id)

    async def living(self, routers: Iterable[str]) -> set[str]:
        """Those that live, or may. Raises StoreError."""
        asked = sorted(set(routers) - {self.id, ""})
        if not asked:
            return {self.id}
        left = [("PTTL", self._key(router)) for router in asked]
        mine, *found = await self._records.ask([("GET", self._key(self.id)), *left])
        if longer := [router for router, ms in zip(asked, found, strict=True) if ms > LEASE_MS]:
            await self._records.ask([("PEXPIRE", self._key(router), LEASE_MS) for router in longer])
        if not self.steady or mine != b"%d" % self._renewals:
            return {*asked, self.id}
        return {self.id} | {router for router, ms in zip(asked, found, strict=True) if ms >= 0}

    async def routers(self) -> dict[str, dict[str, Any]]:
        """All that are registered, living or not, with what they say of themselves. Raises StoreError."""
        (found,) = await self._records.ask([("HGETALL", self._routers)])
        pairs = list(found.items()) if isinstance(found, dict) else list(zip(found[::2], found[1::2], strict=True))
        return {name.decode(): _about(said) for name, said in pairs[:MAX_ROUTERS]}

    async def forget(self, router: str) -> None:
        """Take a dead one off the list. Raises StoreError."""
        await self._records.ask([("HDEL", self._routers, router), ("DEL", self.index_of(router))])

    @property
    def _routers(self) -> str:
        return family_key(self._family, "routers")

    def _key(self, router: str) -> str:
        return family_key(self._family, f"lease:{router}")

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(TRY_S):
                    lapsed = await self._renew()
                self._on_renewal(lapsed)
            except (StoreError, TimeoutError):  # the store tells people
                self._steady_since = None
            except Exception:  # whatever happens, the lease must be renewed again
                log.exception("router %s: renewing the lease failed", self.id)
                self._steady_since = None
            else:
                if lapsed or self._steady_since is None:
                    self._steady_since = time.monotonic()
                if lapsed:
                    log.warning("router %s: the lease had run out; looking whose its sequences are", self.id)
            await asyncio.sleep(RENEW_S)

    async def _renew(self) -> bool:
        """Returns whether it had run out, or Redis had lost it."""
        about = {"address": self.address, "host": socket.gethostname(), "heartbeat": time.time_ns() // 1_000_000}
        self._sent += 1
        before, *_ = await self._records.ask(
            [
                ("GET", self._key(self.id)),
                ("SET", self._key(self.id), self._sent, "PX", LEASE_MS),
                ("HSET", self._routers, self.id, json.dumps(about)),
                ("EXPIRE", self.index, TTL_S),
            ]
        )
        lapsed = self._renewals > 0 and (before is None or int(before) < self._renewals)
        self._renewals = self._sent
        return lapsed


def _about(said: bytes) -> dict[str, Any]:
    try:
        about = json.loads(said)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
