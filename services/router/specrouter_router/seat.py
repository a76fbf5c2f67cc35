"""Where one sequence sits at one level: the replica with its KV, what each replica holds of it and computed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specrouter.v1 import level_pb2 as pb
from specrouter_core.prefix import Text
from specrouter_router.holding import Holding

if TYPE_CHECKING:
    from specrouter_router.link import Link


class Seat:
    """See the module. ``text`` is the sequence's committed text, which only grows."""

    __slots__ = ("_computed", "_earlier", "_params", "_text", "ended", "holdings", "left", "link", "moved", "sequence")

    def __init__(self, sequence: str, text: Text, params: pb.SequenceParams) -> None:
        self.sequence = sequence
        self.link: Link | None = None  # where its next call goes
        self.left: Link | None = None  # what it is to be released from before its next call
        self.ended = False  # its replicas were told to forget it: no call may reach them any more
        self.moved = 0.0  # loop time when it last left a replica that worked
        self.holdings: dict[Link, Holding] = {}  # of every replica that may hold something of it
        self._text = text
        self._params = params
        self._computed: dict[Link, int] = {}  # microseconds of the steps it took part in, as each replica said last
        self._earlier = 0  # and of those that replicas had forgotten when they began to count anew

    @property
    def computed_us(self) -> int:
        """Microseconds of the steps that it took part in, on all replicas, as far as they have said."""
        return self._earlier + sum(self._computed.values())

    def said(self, link: Link, sequence_us: int) -> None:
        """A replica's reply: see ExtendReply.sequence_us."""
        before = self._computed.get(link, 0)
        if sequence_us < before:
            self._earlier += before
        self._computed[link] = sequence_us

    def held(self, link: Link | None) -> int:
        """Tokens that the replica is believed to hold."""
        holding = self.holdings.get(link) if link is not None else None
        return holding.held if holding is not None else 0

    def at(self, link: Link) -> Holding:
        """What the replica is believed to hold."""
        holding = self.holdings.get(link)
        if holding is None:
            holding = self.holdings[link] = Holding(self._text, self._params)
        return holding

    def move(self, link: Link | None) -> None:
        """Its next call goes there."""
        if link is self.left:
            self.left = None
        if self.link is not None:
            self.link.seats.discard(self)
        self.link = link
        if link is not None:
            link.seats.add(self)

    def leave_for(self, link: Link, now: float) -> None:
        """Its next call goes there; the one in flight, if any, is not disturbed."""
        self.left, self.moved = self.link, now
        self.move(link)

    def forget(self, link: Link) -> None:
        """The replica holds nothing of it any more."""
        self.holdings.pop(link, None)
        if self.link is link:
            self.move(None)
