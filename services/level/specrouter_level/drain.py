"""How a level ends its work: no new sequences, the running ones may move, then the process ends.

Asked by a signal or by ``LevelService.Drain``. Every open stream is told at once, so that routers can move their
sequences to another replica; the level goes on answering calls for those it holds meanwhile. It is empty when no
sequence of an open stream is left, and does not wait for that longer than its grace time. Asked a second time by a
signal, it does not wait at all.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from time import monotonic

from specrouter_level.scheduler import Scheduler
from specrouter_level.stream import Stream

log = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
LOOK_SECONDS = 0.02  # between looks at what is left


class Drain:
    """See the module. ``grace``: seconds that running sequences get at most."""

    def __init__(self, scheduler: Scheduler, grace: float = GRACE_SECONDS) -> None:
        self.grace = grace
        self.streams: set[Stream] = set()  # the open ones; the server keeps them here
        self._scheduler = scheduler
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()
        self._until = 0.0  # monotonic seconds

    @property
    def asked(self) -> bool:
        """Whether it has begun."""
        return self._asked.is_set()

    @property
    def left(self) -> int:
        """Sequences of open streams."""
        return self._scheduler.slots.attached

    def begin(self) -> None:
        """Take no new sequences, and tell every stream. Again: changes nothing."""
        if self.asked:
            return
        self._scheduler.draining = True
        self._until = monotonic() + self.grace
        self._asked.set()
        log.info("draining: %d sequences may go on for %g s", self.left, self.grace)
        for stream in self.streams:
            stream.drain()

    def hurry(self) -> None:
        """Begin, or, when it has begun, wait no longer."""
        if self.asked:
            self._until = 0.0
            self._hurried.set()
        self.begin()

    def open(self, stream: Stream) -> None:
        """A stream has opened."""
        self.streams.add(stream)
        if self.asked:
            stream.drain()

    async def done(self) -> None:
        """Returns when the level was asked to drain and nothing is left, or the grace time is over."""
        await self._asked.wait()
        while self.left and monotonic() < self._until:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), LOOK_SECONDS)
        log.info("drained: %d sequences left", self.left)
