"""The links to a level's replicas: one for each address that the level has now."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from specrouter_router.ending import end
from specrouter_router.endpoints import Endpoints
from specrouter_router.link import Link, Listener

log = logging.getLogger(__name__)

RESOLVE_S = 3.0  # how often names are looked up; shortened by up to a third


class Fleet:
    """See the module. ``changed`` is told of a link that leaves the addresses, or comes back to them.

    A replica that has left the addresses keeps its link until nothing of it is needed any more: a pod that ends
    leaves its Service's records at once, and goes on for as long as it is given.
    """

    def __init__(self, name: str, endpoints: Endpoints, listener: Listener, changed: Callable[[Link], None]) -> None:
        self.name = name
        self.endpoints = endpoints
        self.links: dict[str, Link] = {}  # by address
        self._listener = listener
        self._changed = changed
        self._following: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def good(self) -> list[Link]:
        """Replicas that may be given sequences."""
        return [link for link in self.links.values() if link.good]

    @property
    def usable(self) -> list[Link]:
        """Replicas that would answer."""
        return [link for link in self.links.values() if link.usable]

    @property
    def why_down(self) -> str:
        """Why no replica is good."""
        if not self.links:
            return self.endpoints.problem or "it has no address"
        whys = [f"{link.address}: {link.trouble}" for link in self.links.values()]
        return "; ".join(whys) if len(whys) > 1 else whys[0].partition(": ")[2]

    def start(self) -> None:
        """Connect to all, and follow the names."""
        self._set(self.endpoints.now)
        if self.endpoints.changing:
            self._following = asyncio.create_task(self._follow(), name=f"names {self.name}")

    async def close(self) -> None:
        """Disconnect."""
        if self._following is not None:
            await end(self._following)
        await asyncio.gather(*self._closing, *(link.close() for link in self.links.values()))
        self.endpoints.close()

    def empty(self, link: Link) -> None:
        """Free what it holds of sequences that need not stay. Those with a call in flight move at their next."""
        busy = {flight.seat for flight in link.inflight.values()}
        for seat in [seat for seat in link.seats if seat not in busy]:
            link.release(seat.sequence)
            seat.forget(link)

    def drop(self, link: Link) -> None:
        """Nothing of it is needed any more."""
        self.links.pop(link.address, None)
        self._changed(link)
        task = asyncio.create_task(link.close(), name=f"close {self.name}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _follow(self) -> None:
        while True:
            await self.endpoints.look_up()
            self._set(self.endpoints.now)
            await asyncio.sleep(RESOLVE_S * random.uniform(2 / 3, 1))

    def _set(self, addresses: list[str]) -> None:
        for address in addresses:
            link = self.links.get(address)
            if link is None:
                self.links[address] = link = Link(self.name, address, self._listener, self.endpoints.dial)
                link.start()
            elif link.leaving:
                link.leaving = False
                self._changed(link)
        for address, link in self.links.items():
            if address not in addresses and not link.leaving:
                log.info("level %s at %s has left the level's addresses", self.name, address)
                link.leaving = True
                self._changed(link)
