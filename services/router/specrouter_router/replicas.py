"""The replicas of one level: which of them each sequence uses, and what happens when one is lost.

A sequence has a *seat* at one replica, since its KV is there; all its calls to the level go to it. A new sequence gets
the seat where a call is expected to be answered soonest. It moves to another replica, with a call that sends its whole
text, when its own is lost, hangs, is being drained, or has left the level's addresses. The call in flight
moves with it: calls may be repeated freely, so neither the state machine nor the stream notice.

With no replica left, a call to the target is *patient*: it waits up to ``PATIENCE_S``, and is sent when one is there.
Any other call fails at once, so that its chain goes on without the level.

A replica that failed is not trusted with sequences until its circuit closes. The target is *vital*: where there is no
better one, a replica with an open circuit, or one that is being drained, is used all the same.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator

from specrouter.v1 import level_pb2 as pb
from specrouter_router.endpoints import Endpoints
from specrouter_router.flight import Flight
from specrouter_router.link import BEAT_S, SILENT_S, Link
from specrouter_router.metrics import Metrics
from specrouter_router.seat import Seat

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
SWEEP_S = 0.05  # how often deadlines are looked at
LOOK_S = 0.25  # how often replicas are looked at
LATE_S = 0.5  # a look that is later than this says that this process stood still, not the replicas
RESOLVE_S = 3.0  # how often names are looked up; shortened by up to a third
MAX_MOVES = 4  # of one call: after so many replicas it is the call that is at fault


class Replicas:
    """See the module. ``on_ready`` is told each time that the level can be used again."""

    def __init__(
        self,
        name: str,
        endpoints: Endpoints,
        metrics: Metrics,
        on_ready: Callable[[str], None],
        *,
        vital: bool,
    ) -> None:
        self.name = name
        self.address = ", ".join(endpoints.names)  # for people
        self.links: dict[str, Link] = {}  # by address
        self.info: pb.DescribeResponse | None = None  # what the first of them said
        self.ready = False  # there is one to be used
        self.moves = 0  # calls that went on with another replica
        self._vital = vital
        self._endpoints = endpoints
        self._metrics = metrics
        self._on_ready = on_ready
        self._parked: list[Flight] = []
        self._sweeping = False
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []

    # For owners.

    @property
    def inflight(self) -> list[Flight]:
        """Calls on their way."""
        return [flight for link in self.links.values() for flight in link.inflight.values()]

    @property
    def count(self) -> int:
        """Replicas that may be given sequences."""
        return sum(link.good for link in self.links.values())

    @property
    def why_down(self) -> str:
        """Why no replica can be used; "" = one can."""
        if self.ready:
            return ""
        if not self.links:
            return self._endpoints.problem or "it has no address"
        whys = {link.address: _state(link) for link in self.links.values()}
        return next(iter(whys.values())) if len(whys) == 1 else "; ".join(f"{a}: {why}" for a, why in whys.items())

    def send(self, flight: Flight) -> None:
        """Put a call on its way. With no replica it waits or fails; a failure is told in the next tick."""
        link = flight.seat.link
        flight.moves = 0
        if link is None or not link.good:
            link = self._seated(flight.seat)
            if link is None:
                if flight.patient:
                    self._park(flight)
                else:
                    self._loop.call_soon(flight.owner.failed, flight, self.why_down or "it is being drained", True)
                return
        link.send(flight)
        if not self._sweeping:
            self._sweep_later()

    def withdraw(self, flight: Flight) -> None:
        """Its answer is of no use any more."""
        if flight.number:
            if flight.link is not None:
                flight.link.withdraw(flight)
        elif flight in self._parked:
            self._parked.remove(flight)

    def release(self, seat: Seat) -> None:
        """The sequence has ended, or leaves the level: its replicas may forget it."""
        for link in list(seat.holdings):
            link.release(seat.sequence)
            seat.forget(link)
        seat.move(None)

    # Life.

    def start(self) -> None:
        """Connect to all replicas, and stay so until ``close``."""
        self._set(self._endpoints.now)
        self._tasks.append(asyncio.create_task(self._watch(), name=f"watch {self.name}"))
        if self._endpoints.changing:
            self._tasks.append(asyncio.create_task(self._follow(), name=f"names {self.name}"))

    async def close(self) -> None:
        """Disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self.links.values()))
        self._endpoints.close()

    async def _follow(self) -> None:
        while True:
            await self._endpoints.look_up()
            self._set(self._endpoints.now)
            await asyncio.sleep(RESOLVE_S * random.uniform(2 / 3, 1))

    def _set(self, addresses: list[str]) -> None:
        for address in addresses:
            link = self.links.get(address)
            if link is None:
                self.links[address] = link = Link(self.name, address, self)
                link.start()
            elif link.leaving:
                link.leaving = False
                self._look(link)
        for address, link in self.links.items():
            if address not in addresses and not link.leaving:
                log.info("level %s at %s has left the level's addresses", self.name, address)
                link.leaving = True
                self._look(link)

    # Places.

    def _look(self, link: Link) -> None:
        """Something about the link has changed: see whether it, and the level, can be used."""
        usable = link.ready and not link.silent
        link.good = usable and link.circuit.state == "closed" and not (link.draining or link.leaving)
        was = self.ready
        self.ready = any(each.good for each in self.links.values()) or (
            self._vital and any(each.ready and not each.silent for each in self.links.values())
        )
        if usable and self.ready:
            parked, self._parked = self._parked, []
            for flight in parked:
                self._go(flight)
        if self.ready and not was:
            self._on_ready(self.name)

    def _choose(self, besides: Link | None = None) -> Link | None:
        """The replica for a sequence that comes to the level."""
        links = [link for link in self.links.values() if link.good and link is not besides]
        if not links and self._vital:
            links = [link for link in self.links.values() if link.ready and not link.silent and link is not besides]
            links = [link for link in links if not link.draining] or links
        return min(links, key=_load, default=None)

    def _seated(self, seat: Seat) -> Link | None:
        """Where a sequence goes whose seat is not good. It stays where there is no better one, and that will do."""
        best, link = self._choose(), seat.link
        if self._vital and link is not None and link.ready and not link.silent and (best is None or not best.good):
            return link
        if best is not None:
            self._place(seat, best)
        return best

    def _place(self, seat: Seat, link: Link) -> None:
        old = seat.link
        if old is not None and old is not link:
            old.release(seat.sequence)
            seat.forget(old)
        link.claim(seat.sequence)
        seat.move(link)

    def _elsewhere(self, flight: Flight) -> bool:
        """Send a call to another replica. Returns whether there is one."""
        link = self._choose(besides=flight.link)
        if link is None or not link.good or flight.moves >= MAX_MOVES:
            return False
        flight.moves += 1
        self.moves += 1
        self._place(flight.seat, link)
        link.send(flight)
        return True

    def _go(self, flight: Flight) -> None:
        """Send a call that has waited."""
        link = self._seated(flight.seat)
        if link is None:
            self._parked.append(flight)
        else:
            flight.patience = 0.0
            link.send(flight)
            self._sweep_later()

    # What links say.

    def accept(self, info: pb.DescribeResponse) -> str:
        """See Listener: all replicas, and those that come later, have the same model."""
        if self.info is None:
            self.info = info
        elif self.info.model_digest != info.model_digest:
            return f"its model has the digest {info.model_digest[:16]}, before it was {self.info.model_digest[:16]}"
        return ""

    def opened(self, link: Link) -> None:
        """See Listener."""
        self._look(link)

    def lost(self, link: Link, flights: list[Flight], why: str) -> None:
        """See Listener."""
        link.circuit.failed(self._loop.time())
        self._look(link)
        for flight in flights:
            self._strand(flight, why)

    def asked(self, link: Link, well: bool) -> None:
        """See Listener."""
        link.circuit.tried(well, self._loop.time())
        self._look(link)

    def turned(self, link: Link) -> None:
        """See Listener."""
        if link.draining:
            log.info("level %s at %s is being drained", self.name, link.address)
        for flight in link.inflight.values():
            flight.patience = 0.0
        self._look(link)

    def replied(self, flight: Flight, reply: pb.ExtendReply) -> None:
        """See Listener."""
        outcome = reply.outcome
        if outcome == pb.OUTCOME_DONE and flight.link is not None:
            flight.link.calls += 1
            flight.link.circuit.answered()
            flight.holding.confirm()
        elif outcome and self._goes_on(flight, reply):
            self._metrics.call_ended(self.name, pb.Outcome.Name(outcome).removeprefix("OUTCOME_").lower())
            return
        flight.owner.replied(flight, reply)

    def _goes_on(self, flight: Flight, reply: pb.ExtendReply) -> bool:
        """Whether a call that was not done has been sent again, and need not bother its owner."""
        link, outcome = flight.link, reply.outcome
        if link is None:
            return False
        if outcome == pb.OUTCOME_PREFIX_UNKNOWN and flight.holding.correct(reply.held, reply.held_hash):
            link.send(flight)
            return True
        if outcome == pb.OUTCOME_OVERLOADED:
            if reply.draining and not link.draining:
                link.draining = True
                self.turned(link)
            return self._elsewhere(flight)
        if outcome in (pb.OUTCOME_INTERNAL, pb.OUTCOME_EXPIRED):
            self._erred(link)
            return self._elsewhere(flight)
        return False

    def _erred(self, link: Link) -> None:
        if link.circuit.erred(self._loop.time()):
            log.warning("level %s at %s fails call after call: it gets none for a while", self.name, link.address)
            self._look(link)

    def _strand(self, flight: Flight, why: str) -> None:
        """The replica of a call in flight is gone."""
        if self._elsewhere(flight):
            return
        flight.moves += 1
        if flight.patient and flight.moves <= MAX_MOVES:
            self._park(flight)
        else:
            flight.owner.failed(flight, why, True)

    # Time.

    def _park(self, flight: Flight) -> None:
        flight.number = 0
        flight.patience = flight.patience or self._loop.time() + PATIENCE_S
        self._parked.append(flight)
        self._sweep_later()

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        for flight in list(self._due(now)):
            self.withdraw(flight)
            if flight.deadline <= now:
                if flight.link is not None:
                    self._erred(flight.link)
                if not self._elsewhere(flight):
                    flight.owner.failed(flight, "no answer before the call's deadline", False)
            else:
                flight.owner.failed(flight, f"{self.why_down} (waited {PATIENCE_S:g} s)", True)
        for flight in [flight for flight in self._parked if flight.patience <= now]:
            self._parked.remove(flight)
            flight.owner.failed(flight, f"{self.why_down} (waited {PATIENCE_S:g} s)", True)
        self._sweeping = False
        if self._parked or any(link.inflight for link in self.links.values()):
            self._sweep_later()

    def _due(self, now: float) -> Iterator[Flight]:
        """Calls in flight that took too long."""
        for link in self.links.values():
            for flight in link.inflight.values():
                if flight.deadline <= now or 0 < flight.patience <= now:
                    yield flight

    async def _watch(self) -> None:
        last = self._loop.time()
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._loop.time()
            late, last = now - last - LOOK_S, now
            for link in list(self.links.values()):
                if late > LATE_S:
                    link.heard = min(link.heard + late, now)
                self._check(link, now)

    def _check(self, link: Link, now: float) -> None:
        quiet = now - link.heard
        if link.ready:
            if link.circuit.due(now) or quiet > BEAT_S:
                link.beat()
            if quiet > SILENT_S and not link.silent:
                self._hush(link, now)
        if link.draining or link.leaving:
            self._empty(link)
        if link.leaving and not (link.ready and (link.seats or link.inflight)):
            del self.links[link.address]
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks.append(asyncio.create_task(link.close(), name=f"close {self.name}"))

    def _hush(self, link: Link, now: float) -> None:
        """The replica says nothing any more: its calls go on elsewhere, or wait here, or fail."""
        log.warning("level %s at %s is silent", self.name, link.address)
        link.silent = True
        link.circuit.failed(now)
        self._look(link)
        for flight in list(link.inflight.values()):
            if flight.patient and self._choose(besides=link) is None:
                flight.patience = now + PATIENCE_S
            else:
                link.withdraw(flight)
                self._strand(flight, "it is silent")

    def _empty(self, link: Link) -> None:
        """Free what it holds of sequences that need not stay. Those with a call in flight move at their next."""
        if self._vital and not any(each.good for each in self.links.values()):
            return
        busy = {flight.seat for flight in link.inflight.values()}
        for seat in [seat for seat in link.seats if seat not in busy]:
            link.release(seat.sequence)
            seat.forget(link)


def _load(link: Link) -> tuple[float, float]:
    """How long a sequence that comes to the replica will wait, in no unit; equals are told apart by chance."""
    return len(link.seats) + len(link.inflight), random.random()


def _state(link: Link) -> str:
    """Why a replica is not used."""
    if not link.ready:
        return link.why_down
    if link.silent:
        return "it is silent"
    return "it is being drained" if link.draining or link.leaving else "it was lost a moment ago"
