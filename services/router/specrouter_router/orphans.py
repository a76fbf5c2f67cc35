"""What a dead router ran, and nobody came for: finished by those that live, or left to expire.

Each router lists its sequences (lease.py). Every ``SWEEP_S`` the lists of dead routers are looked at, a few entries
at a time; two routers that look at the same entry do no harm, for only one can take it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from enum import StrEnum

from specrouter_router.ending import end
from specrouter_router.lease import Lease
from specrouter_router.records import Records, StoreError
from specrouter_router.refusal import RefusedError

log = logging.getLogger(__name__)

SWEEP_S = 1.0
BATCH = 16


class OrphansPolicy(StrEnum):
    """What becomes of a sequence whose router died, or was drained, when no client asks for it."""

    EXPIRE = "expire"  # its record, after an hour
    FINISH = "finish"


class Sweeper:
    """See the module. ``finish`` brings one to its end; ``room`` says how many more may run here."""

    def __init__(
        self,
        records: Records,
        lease: Lease,
        policy: OrphansPolicy,
        finish: Callable[[str], Awaitable[object]],
        room: Callable[[], int],
    ) -> None:
        self._records = records
        self._lease = lease
        self._policy = policy
        self._finish = finish
        self._room = room
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Sweep until ``stop``."""
        self._task = asyncio.create_task(self._run(), name="sweeper")

    async def stop(self) -> None:
        """No more."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S * random.uniform(0.75, 1.25))
            try:
                await self._sweep()
            except StoreError:
                continue  # the store tells people
            except Exception:  # whatever happens, the next sweep must come
                log.exception("sweeping failed")

    async def _sweep(self) -> None:
        routers = await self._lease.routers()
        living = await self._lease.living(routers)
        for router in sorted(set(routers) - living):
            if self._policy is OrphansPolicy.FINISH and await self._some_left(router):
                continue
            log.info("router %s at %s is gone", router, routers[router].get("address", "an unknown address"))
            await self._lease.forget(router)

    async def _some_left(self, router: str) -> bool:
        """Finish some of what a dead router listed. Returns whether there was anything."""
        index = self._lease.index_of(router)
        count = min(BATCH, self._room())
        if count <= 0:
            return True
        (found,) = await self._records.ask([("SRANDMEMBER", index, count)])
        for name in sorted(entry.decode() for entry in found):
            (progress,) = await self._records.progress([(name, 1 << 20)])
            if progress is None or progress.finish or progress.owner not in (router, ""):
                await self._records.ask([("SREM", index, name)])
                continue
            try:
                await self._finish(name)
            except RefusedError as refusal:
                log.warning("sequence %s of the dead router %s is not finished: %s", name, router, refusal.message)
        return bool(found)
