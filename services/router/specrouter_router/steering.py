"""Takes what the operator wants of the routers from Redis: weights of the levels, and the limits of chains.

The family's policy (specrouter_family.published) is read every second. Only a version newer than the one in force is
taken; what can't be read changes nothing. While Redis is lost, or was emptied, the last version stays in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from specrouter_family.family import ChainSpec
from specrouter_family.published import policy_key, read
from specrouter_router.ending import end
from specrouter_router.records import Records, StoreError

log = logging.getLogger(__name__)

POLL_S = 1.0
DEADLINE_S = 2.0  # for one look

Steer = Callable[[Mapping[str, float], ChainSpec | None], str]


class Steering:
    """See the module. ``steer`` puts weights and chain in force and returns what it left out, "" for nothing."""

    def __init__(self, records: Records, family: str, steer: Steer) -> None:
        self.version = 0  # in force; 0 = the family file's
        self.problem = ""  # with the newest version, for people
        self._records = records
        self._key = policy_key(family)
        self._steer = steer
        self._refused = 0  # the last version that can't be used
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look every second, until ``stop``."""
        self._task = asyncio.create_task(self._run(), name="steering")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            await end(self._task)
            self._task = None

    async def _run(self) -> None:
        while True:
            with suppress(StoreError, TimeoutError):  # the store tells people
                async with asyncio.timeout(DEADLINE_S):
                    ((version, text),) = await self._records.ask([("HMGET", self._key, "version", "document")])
                self.take(version, text)
            await asyncio.sleep(POLL_S)

    def take(self, version: bytes | None, text: bytes | None) -> None:
        """What Redis holds: put it in force if it is newer and can be used."""
        if version is None or text is None or not version.isdigit() or len(version) > 18:
            return
        number = int(version)
        if number <= self.version or number == self._refused:
            return
        try:
            weights, chain, problem = read(text)
        except ValueError as error:
            self._refused = number
            self.problem = " ".join(str(error).split())
            log.warning("version %d of the family's policy can't be used: %s", number, self.problem)
            return
        left_out = self._steer(weights, chain)
        self.version = number
        self.problem = "; ".join(part for part in (problem, left_out) if part)
        if self.problem:
            log.warning("version %d of the family's policy, in part: %s", number, self.problem)
        else:
            log.info("version %d of the family's policy is in force", number)
