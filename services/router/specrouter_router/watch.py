"""Sequences that clients follow here while another router runs them, or none does.

All of them are asked for in one batch every ``POLL_S``: what their owners have written is told to whoever follows here.
So a client may attach to any router, and no owner is disturbed by that. When a record becomes free, or its owner
is dead (lease.py, doors.py), it is taken: from then on the sequence runs here, and the same story goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from specrouter.v1 import router_pb2, state_pb2
from specrouter_router.doors import Doors
from specrouter_router.ending import end
from specrouter_router.lease import LEASE_S, Lease
from specrouter_router.records import Progress, Records, StoreError
from specrouter_router.refusal import RefusedError
from specrouter_router.story import Account, Reason, Story

log = logging.getLogger(__name__)

POLL_S = 0.03
ARRIVE_S = 5.0  # so long a watch waits for its first follower
PATIENCE_S = 30.0  # so long nothing may be learnt of a sequence, or nobody be able to run it
MAX_WATCHED = 256

REASONS: dict[router_pb2.Finish.ValueType, Reason] = {
    router_pb2.FINISH_STOP: "stop",
    router_pb2.FINISH_LENGTH: "length",
    router_pb2.FINISH_CANCELLED: "cancelled",
}
ELSEWHERE = ""  # origin of a token whose first proposer is not known here


@dataclass(slots=True, eq=False)
class Watch:
    """One of them."""

    spec: state_pb2.SequenceSpec
    story: Story
    unattended: bool = False  # to be run to its end though nobody may follow
    begun: float = field(default_factory=time.monotonic)
    seen: float = field(default_factory=time.monotonic)  # when it last went on, or was seen with a living owner
    asked: float = field(default_factory=time.monotonic)  # when Redis last answered
    ours_since: float | None = None  # the record names this router, but it does not run here


Adopt = Callable[[state_pb2.SequenceRecord, Story], None]


class Watches:
    """See the module. ``adopt`` runs what was taken; ``why_not`` says why nothing can be run now, "" = it can."""

    def __init__(self, records: Records, lease: Lease, adopt: Adopt, why_not: Callable[[], str]) -> None:
        self._records = records
        self._lease = lease
        self._doors = Doors(lease)
        self._adopt = adopt
        self._why_not = why_not
        self._watched: dict[str, Watch] = {}
        self._task: asyncio.Task[None] | None = None

    def get(self, name: str) -> Watch | None:
        """The watch over a sequence, if there is one."""
        return self._watched.get(name)

    def watch(self, spec: state_pb2.SequenceSpec, story: Story, *, unattended: bool = False) -> Watch:
        """Follow from now on, until it ends, is taken, or is abandoned. Raises RefusedError when too many are."""
        if len(self._watched) >= MAX_WATCHED:
            raise RefusedError(f"{MAX_WATCHED} sequences are watched already; try again", status=429)
        watch = self._watched[spec.sequence] = Watch(spec, story, unattended)
        story.abandoned = None if unattended else lambda: self._drop(watch)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="watch")
        return watch

    async def close(self, refusal: RefusedError) -> None:
        """Tell all followers to go elsewhere."""
        if self._task is not None:
            await end(self._task)
        for watch in list(self._watched.values()):
            self._end(watch, refusal)

    async def _run(self) -> None:
        while self._watched:
            try:
                await self._look()
            except StoreError as error:
                now = time.monotonic()
                for watch in [watch for watch in self._watched.values() if now - watch.asked > PATIENCE_S]:
                    self._end(watch, RefusedError(str(error), status=503, code="store_lost"))
            except Exception as error:  # the others that are watched must not suffer from one
                log.exception("watching failed")
                for watch in list(self._watched.values()):
                    self._end(watch, RefusedError(f"the router failed: {type(error).__name__}", status=500))
            await asyncio.sleep(POLL_S)

    async def _look(self) -> None:
        watches = list(self._watched.values())
        found = await self._records.progress([(watch.spec.sequence, len(watch.story.tokens)) for watch in watches])
        living = await self._lease.living({progress.owner for progress in found if progress is not None})
        living -= await self._doors.closed(living)
        for watch, progress in zip(watches, found, strict=True):
            if self._watched.get(watch.spec.sequence) is not watch:
                continue  # dropped meanwhile
            if not (watch.unattended or watch.story.followers) and time.monotonic() - watch.begun > ARRIVE_S:
                self._drop(watch)
                continue
            watch.asked = time.monotonic()
            if progress is None:
                name = watch.spec.sequence
                self._end(watch, RefusedError(f"sequence: the record of {name!r} is gone", status=404))
            else:
                self._tell(watch, progress)
                if progress.finish in REASONS:
                    self._end(watch, None, REASONS[progress.finish])
                elif self._is_free(watch, progress, living):
                    await self._take(watch, progress)
                elif watch.unattended and progress.owner != self._lease.id:
                    self._drop(watch)  # somebody has come for it

    def _tell(self, watch: Watch, progress: Progress) -> None:
        for token in progress.news:
            if watch.story.matched:
                break
            watch.story.append(token, ELSEWHERE)
        watch.story.deliver(len(watch.story.tokens))

    def _is_free(self, watch: Watch, progress: Progress, living: set[str]) -> bool:
        now = time.monotonic()
        if progress.owner == self._lease.id:  # it has just ended here, and the record will say so; or that got lost
            watch.ours_since = watch.ours_since or now
            return now - watch.ours_since > LEASE_S
        watch.ours_since = None
        if progress.owner in living:
            watch.seen = now
            return False
        return True

    async def _take(self, watch: Watch, progress: Progress) -> None:
        if not (watch.unattended or watch.story.followers):
            return
        why_not = self._why_not()
        if why_not:
            if time.monotonic() - watch.seen > PATIENCE_S:
                self._end(watch, RefusedError(f"nobody can go on with it here: {why_not}", status=503))
            return
        record = await self._records.take(watch.spec.sequence, progress.epoch, progress.owner, self._lease.id)
        if record is None:
            return  # somebody else was faster
        self._watched.pop(watch.spec.sequence, None)
        tokens = watch.story.tokens
        both = min(len(tokens), len(record.tokens))
        if tokens[:both] != record.tokens[:both]:  # Redis has lost what was sent, and got something else
            log.error("sequence %s: the record does not extend what was sent", watch.spec.sequence)
            self._end(watch, RefusedError("the record does not extend what was sent", status=500, code="diverged"))
            return
        for token in record.tokens[both:]:
            watch.story.append(token, ELSEWHERE)
        watch.story.deliver(len(record.tokens))
        log.info("sequence %s is taken from %s", watch.spec.sequence, progress.owner or "nobody")
        self._adopt(record, watch.story)
        if not (watch.unattended or watch.story.followers):  # the last of them left meanwhile
            watch.story.abandon()

    def _end(self, watch: Watch, refusal: RefusedError | None, reason: Reason | None = None) -> None:
        self._drop(watch)
        watch.story.close(reason, Account(), refusal)

    def _drop(self, watch: Watch) -> None:
        if self._watched.get(watch.spec.sequence) is watch:
            del self._watched[watch.spec.sequence]
