"""One router's stream: the calls that live on it, and the answers that wait to be written."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from specrouter.v1 import level_pb2 as pb
from specrouter_level.call import Call

MAX_REPLIES = 256  # in one message
FULL = 256  # waiting replies at which the reader must stop reading


class Stream:
    """Collects replies until the writer takes them.

    A call's draws are put together until then, so a slow reader gets fewer messages, not a longer queue.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.calls: dict[int, Call] = {}
        self._growing: dict[int, Call] = {}  # calls with draws the router has not seen
        self._ended: list[pb.ExtendReply] = []
        self._wake = wake
        self._draining = False  # set in every message once it is
        self._news = False  # the router has not been told yet

    def drain(self) -> None:
        """Tell the router that the level is being drained: at once, and in every message from now on."""
        if not self._draining:
            self._draining = self._news = True
            self._wake()

    @property
    def waiting(self) -> int:
        """Replies that wait to be written."""
        return len(self._growing) + len(self._ended)

    @property
    def full(self) -> bool:
        """Whether no more calls should be read until some replies are written."""
        return len(self._ended) >= FULL

    def grew(self, call: Call) -> None:
        """The call has new draws."""
        self._growing[call.number] = call
        self._wake()

    def end(self, reply: pb.ExtendReply) -> None:
        """The call's last reply."""
        self.calls.pop(reply.call, None)
        self._growing.pop(reply.call, None)
        self._ended.append(reply)
        self._wake()

    def refuse(self, reply: pb.ExtendReply) -> None:
        """A reply to something that never became a call of this stream."""
        self._ended.append(reply)
        self._wake()

    def take(self) -> pb.ExtendResponse | None:
        """The next message, or None."""
        if not self._growing and not self._ended and not self._news:
            return None
        self._news = False
        replies = self._ended[:MAX_REPLIES]
        del self._ended[:MAX_REPLIES]
        for number in list(islice(self._growing, MAX_REPLIES - len(replies))):
            replies.append(self._growing.pop(number).part())
        return pb.ExtendResponse(replies=replies, draining=self._draining)
