"""A call on its way to a level, and who sent it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from specrouter.v1 import level_pb2 as pb
from specrouter_router.holding import Holding
from specrouter_router.seat import Seat

if TYPE_CHECKING:
    from specrouter_router.link import Link


class Owner(Protocol):
    """Who sent a call."""

    def fill(self, flight: Flight, message: pb.ExtendCall) -> None:
        """Write the call into the message, all but its number and deadline.

        ``flight.holding`` says what the replica that it goes to holds. A call may be filled and sent several times.
        """

    def replied(self, flight: Flight, reply: pb.ExtendReply) -> None:
        """A part of the answer, or the last. After the last the flight is over; it may be sent again."""

    def failed(self, flight: Flight, why: str, gone: bool) -> None:
        """No answer will come. ``gone``: the level can't be reached."""

    def broke(self, error: Exception) -> None:
        """Its own code failed on a reply."""


@dataclass(slots=True, eq=False)
class Flight:
    """A call on its way. ``call`` is its owner's number for it."""

    owner: Owner
    call: int
    patient: bool  # it waits for a level that is down, up to PATIENCE_S
    seat: Seat
    link: Link | None = None  # the replica that it was sent to
    number: int = 0  # on the wire; 0 = not sent
    base: int = 0  # tokens that the replica should hold
    read: int = 0  # tokens that it has to read
    drawn: int = 0  # tokens that it draws at most, beyond those it checks
    sent: float = 0.0  # loop time
    allowed: float = 0.0  # seconds without an answer, while the replica's engine does nothing
    patience: float = 0.0  # loop time until which it waits for a replica; 0 = it need not
    moves: int = 0  # to other replicas
    twin: Flight | None = None  # the same call, sent to another replica as well
    second: bool = False  # it was sent after its twin

    @property
    def odd(self) -> bool:
        """Whether its replica's times are not what the level commonly takes."""
        return self.link is not None and self.link.odd

    @property
    def holding(self) -> Holding:
        """What the replica that it was sent to is believed to hold."""
        if self.link is None:
            raise ValueError("the call was not sent")
        return self.seat.at(self.link)
