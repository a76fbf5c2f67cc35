"""The replicas of one level: which of them each sequence uses, and what happens when one is lost.

A sequence has a *seat* at one replica, since its KV is there; all its calls to the level go to it. A new sequence gets
the seat where a call is expected to be answered soonest (placement.py). It moves to another replica, with a call that
sends its whole text, when its own is lost, hangs, is being drained, has left the level's addresses, or makes it wait
much longer. A call in flight moves with it: calls may be repeated freely, so neither the state machine nor the stream
notice. For the same reason a late call may be sent to a second replica as well (hedges.py): the first answer
counts, and the sequence stays where it came from.

With no replica left, a call to the target is *patient*: it waits up to ``PATIENCE_S``, and is sent when one is there.
Any other call fails at once, so that its chain goes on without the level.

A replica that failed is not trusted with sequences until its circuit closes. The target is *vital*: where there is no
better one, a replica with an open circuit, or one that is being drained, is used all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from specrouter.v1 import level_pb2 as pb
from specrouter_router import parking, placement
from specrouter_router.endpoints import Endpoints
from specrouter_router.fleet import Fleet
from specrouter_router.flight import Flight
from specrouter_router.hedges import Hedges
from specrouter_router.link import Link
from specrouter_router.metrics import Metrics
from specrouter_router.parking import Parking
from specrouter_router.seat import Seat
from specrouter_router.tempo import SAMPLE_S

log = logging.getLogger(__name__)

SWEEP_S = 0.05  # how often calls in flight are looked at
LOOK_S = 0.25  # how often replicas are looked at
LATE_S = 0.5  # a look that is later than this says that this process stood still, not the replicas
MAX_MOVES = 4  # of one call: after so many replicas it is the call that is at fault


class Replicas:
    """See the module. ``on_ready`` is told the level's name each time that it can be used again."""

    def __init__(
        self, name: str, endpoints: Endpoints, metrics: Metrics, on_ready: Callable[[str], None], *, vital: bool
    ) -> None:
        self.name = name
        self.address = ", ".join(endpoints.names)  # for people
        self.fleet = Fleet(name, endpoints, self, self._look)
        self.hedges = Hedges()
        self.info: pb.DescribeResponse | None = None  # what the first of them said
        self.ready = False  # there is one to be used
        self.moves = 0  # calls and sequences that went on with another replica
        self._vital = vital
        self._metrics = metrics
        self._on_ready = on_ready
        self._parking = Parking()
        self._sweeping = False
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    # For owners.

    @property
    def inflight(self) -> list[Flight]:
        """Calls on their way."""
        return [flight for link in self.fleet.links.values() for flight in link.inflight.values()]

    @property
    def count(self) -> int:
        """How many replicas may be given sequences."""
        return len(self.fleet.good)

    @property
    def why_down(self) -> str:
        """Why no replica can be used; "" = one can."""
        return "" if self.ready else self.fleet.why_down

    def send(self, flight: Flight) -> None:
        """Put a call on its way. With no replica it waits or fails; a failure is told in the next tick."""
        seat = flight.seat
        link = seat.link
        flight.moves = 0
        if link is None or seat.left is not None or not link.good:
            link = self._seated(seat)
            if link is None:
                if flight.patient:
                    self._park(flight)
                else:
                    self._loop.call_soon(flight.owner.failed, flight, self.fleet.why_down, True)
                return
        link.send(flight)
        if not self._sweeping:
            self._sweep_later()

    def withdraw(self, flight: Flight) -> None:
        """Its answer is of no use any more."""
        for each in (flight, flight.twin):
            if each is not None and each.number and each.link is not None:
                each.link.withdraw(each)
            elif each is not None:
                self._parking.remove(each)

    def release(self, seat: Seat) -> None:
        """The sequence has ended: its replicas may forget it. Calls that judge for it may still be on their way."""
        seat.ended = True
        for link in list(seat.holdings):
            link.release(seat.sequence)
            seat.forget(link)
        seat.move(None)

    # Life.

    def start(self) -> None:
        """Connect to all replicas, and stay so until ``close``."""
        self.fleet.start()
        self._task = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    async def close(self) -> None:
        """Disconnect."""
        if self._task is not None:
            self._task.cancel()
        await self.fleet.close()

    # Places.

    def _look(self, link: Link) -> None:
        """Something about the link has changed: see whether it, and the level, can be used."""
        link.good = link.usable and link.circuit.state == "closed" and not (link.draining or link.leaving)
        was = self.ready
        self.ready = bool(self.fleet.good or (self._vital and self.fleet.usable))
        for flight in self._parking.empty() if self.ready else ():
            self._go(flight)
        if link.good:
            for other in [other for other in self.fleet.links.values() if other.lifeless and other.inflight]:
                self._clear(other, other.lifeless)
        if self.ready and not was:
            self._on_ready(self.name)

    def _choose(self, besides: Link | None = None) -> Link | None:
        """The replica for a sequence that comes to the level, or leaves one for another."""
        links = [link for link in self.fleet.good if link is not besides]
        if not links and self._vital:
            links = [link for link in self.fleet.usable if link is not besides]
            links = [link for link in links if not link.draining] or links
        return placement.choose(links, self._loop.time())

    def _seated(self, seat: Seat) -> Link | None:
        """Where a sequence goes whose seat is new, or not good. It stays where there is none better that will do."""
        link = seat.link
        if seat.left is not None:  # it was given another place, and has no call in flight at the old one any more
            seat.left.release(seat.sequence)
            seat.forget(seat.left)
            seat.left = None
        if link is not None and link.good:
            return link
        best = self._choose()
        if self._vital and link is not None and link.usable and (best is None or not best.good):
            return link
        if best is not None:
            self._place(seat, best)
        return best

    def _place(self, seat: Seat, link: Link) -> None:
        old = seat.link
        if old is not None and old is not link:
            old.release(seat.sequence)
            seat.forget(old)
            self.moves += 1
        seat.move(link)

    def _elsewhere(self, flight: Flight) -> bool:
        """Send a call to another replica. Returns whether it went, or its twin is on its way anyway."""
        if self._twin(flight) is not None:
            flight.number = 0
            return True
        link: Link | None = flight.seat.link
        if link is None or link is flight.link or not link.good:
            link = self._choose(besides=flight.link)
        if link is None or flight.moves >= MAX_MOVES or flight.seat.ended:
            return False
        flight.moves += 1
        self._place(flight.seat, link)
        link.send(flight)
        return True

    def _twin(self, flight: Flight) -> Flight | None:
        """The same call, where it is on its way to a second replica, or waits for one."""
        twin = flight.twin
        if twin is None or twin in self._parking or (twin.link and twin.link.inflight.get(twin.number) is twin):
            return twin
        return None

    def _go(self, flight: Flight) -> None:
        """Send a call that has waited."""
        link = self._seated(flight.seat)
        if link is None:
            self._park(flight)
        else:
            flight.patience = 0.0
            link.send(flight)
            self._sweep_later()

    def _hedge(self, flight: Flight, waited: float) -> None:
        """Send a late call to a second replica as well, where that may pay."""
        link = self._choose(besides=flight.link)
        if link is None or not link.good or link.odd or flight.seat.ended:
            return
        late = self.hedges.late(flight.drawn, flight.read + max(flight.base - flight.seat.held(link), 0))
        if waited > late and self.hedges.spend():
            flight.twin = Flight(flight.owner, flight.call, flight.patient, flight.seat, twin=flight, second=True)
            link.send(flight.twin)

    # What links say.

    def accept(self, info: pb.DescribeResponse) -> str:
        """See Listener: all replicas, and those that come later, have the same model and take texts as long."""
        known = self.info or info
        if known.model_digest != info.model_digest:
            return f"its model has the digest {info.model_digest[:16]}, before it was {known.model_digest[:16]}"
        if known.max_length > info.max_length:
            return f"it takes {info.max_length} tokens, others {known.max_length}"
        self.info = known
        return ""

    def opened(self, link: Link) -> None:
        """See Listener."""
        self._look(link)

    def lost(self, link: Link, flights: list[Flight], why: str) -> None:
        """See Listener."""
        if not link.draining:  # else it has ended as it should
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
        if outcome == pb.OUTCOME_DONE:
            self._done(flight, reply)
        elif outcome and self._goes_on(flight, reply):
            self._metrics.call_ended(self.name, pb.Outcome.Name(outcome).removeprefix("OUTCOME_").lower())
            return
        flight.owner.replied(flight, reply)

    def _done(self, flight: Flight, reply: pb.ExtendReply) -> None:
        link, now = flight.link, self._loop.time()
        if link is None:
            return
        link.calls += 1
        link.circuit.errors = 0
        if now - link.tempo.at > SAMPLE_S:
            link.tempo.answered(reply.timing, now)
        holding = flight.seat.holdings.get(link)
        if holding is not None:
            holding.confirm()
        self.hedges.answered(flight.drawn, flight.read, now - flight.sent)
        if flight.twin is not None:
            self.hedges.won += flight.second and self._twin(flight) is not None
            self.withdraw(flight.twin)
            if not flight.seat.ended:
                flight.seat.move(link)  # it is up to date here

    def _goes_on(self, flight: Flight, reply: pb.ExtendReply) -> bool:
        """Whether a call that was not done has been sent again, and need not bother its owner."""
        link, outcome = flight.link, reply.outcome
        if link is None or flight.seat.ended:
            return False
        if outcome == pb.OUTCOME_PREFIX_UNKNOWN and flight.holding.correct(reply.held, reply.held_hash):
            link.send(flight)
            return True
        if outcome == pb.OUTCOME_OVERLOADED:
            flight.holding.refused()
            if reply.draining and not link.draining:
                link.draining = True
                self.turned(link)
            return self._elsewhere(flight)
        if outcome in (pb.OUTCOME_INTERNAL, pb.OUTCOME_EXPIRED):
            self._erred(link)
            return self._elsewhere(flight)
        return outcome != pb.OUTCOME_STALE_EPOCH and self._twin(flight) is not None

    def _erred(self, link: Link) -> None:
        """It failed a call. After some in a row it gets none for a while, and those that wait there go elsewhere."""
        if not link.circuit.erred(self._loop.time()):
            return
        log.warning("level %s at %s fails call after call", self.name, link.address)
        self._look(link)
        self._clear(link, "it fails call after call")

    def _clear(self, link: Link, why: str) -> None:
        """Its calls go on elsewhere; where there is nobody, those that are patient wait here, and the others fail."""
        for flight in list(link.inflight.values()):
            if not flight.patient or self._choose(besides=link) is not None:
                link.withdraw(flight)
                self._strand(flight, why)
            elif link.lifeless and not flight.patience:
                flight.patience = self._loop.time() + parking.PATIENCE_S

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
        self._parking.put(flight, self._loop.time())
        self._sweep_later()

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        now = self._loop.time()
        several = self.count > 1
        for flight in self.inflight:
            if flight.link is not None and flight.link.expired(flight, now):
                self._late(flight, "no answer before the call's deadline", gone=False)
            elif 0 < flight.patience <= now:
                self._late(flight, self._parking.in_vain(self.why_down), gone=True)
            elif several:
                waited = now - flight.sent
                late = self.hedges.late(flight.drawn, flight.read)
                if waited > self.hedges.stuck(late) and not flight.moves:
                    self._late(flight, "no answer", gone=False)
                elif waited > late and flight.twin is None:
                    self._hedge(flight, waited)
        for flight in self._parking.expired(now):
            flight.owner.failed(flight, self._parking.in_vain(self.why_down), True)
        if self._parking or self.inflight:
            self._sweep_later()

    def _late(self, flight: Flight, why: str, *, gone: bool) -> None:
        """A call in flight took too long."""
        link = flight.link
        if link is None or link.inflight.get(flight.number) is not flight:  # another's lateness has moved it
            return
        link.withdraw(flight)
        self._erred(link)
        if not self._elsewhere(flight):
            flight.owner.failed(flight, why, gone)

    async def _watch(self) -> None:
        last = self._loop.time()
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._loop.time()
            late, last = now - last - LOOK_S, now
            for link in list(self.fleet.links.values()):
                if late > LATE_S:
                    link.heard = min(link.heard + late, now)
                try:
                    self._check(link, now)
                except Exception:  # whatever it is, the others must be looked at, again and again
                    log.exception("looking at level %s at %s failed", self.name, link.address)
            good = self.fleet.good
            placement.compare(good, now)
            for seat, there in placement.misplaced(good, now):
                self.moves += 1
                seat.leave_for(there, now)

    def _check(self, link: Link, now: float) -> None:
        if why := link.overdue(now, due=link.circuit.due(now) if link.ready else False):
            log.warning("level %s at %s: %s", self.name, link.address, why)
            link.lifeless = why
            link.circuit.failed(now)
            self._look(link)
            self._clear(link, why)
        spare = bool(self.fleet.good) or not self._vital
        if spare and (link.draining or link.leaving):
            self.fleet.empty(link)
        if link.leaving and not (link.ready and (link.seats or link.inflight or not spare)):
            self.fleet.drop(link)
