"""Where recovery records are written: Redis.

Every write is a compare-and-set on epoch, owner and round, done by a small script (record_scripts.py); all that is due
in one tick of the loop goes in one batch. When Redis is lost, streams go on without it: the records stay due, and when
it is back the whole missing part of each is written. So is what a Redis has lost that comes back with less than it had
(a replica that became the master, a snapshot): the answer to the next write shows it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from redis.exceptions import NoScriptError, ResponseError

from specrouter.v1 import router_pb2, state_pb2
from specrouter_core.record import TOKEN_BYTES, pack
from specrouter_family import redis_url
from specrouter_router.ending import end
from specrouter_router.metrics import Metrics
from specrouter_router.record_scripts import APPEND, TTL_S, keys
from specrouter_router.records import FINISHES, Records, StoreError
from specrouter_router.redis_wire import LOST, SOCKET_S, Command, RedisEnd, line

log = logging.getLogger(__name__)

PAUSE_S = (0.1, 2.0)  # between tries while it is lost, first and longest
LOG_S = 30.0  # between two log lines about a loss that lasts
MAX_BATCH = 256  # records in one batch
BROKEN = ("WRONGTYPE", "attempt to")  # said of keys that hold something else; the latter by Lua
SURE_S = 5.0  # after its end a record is written once more: a Redis that lost its last writes may have lost the end
MAX_ENDED = 1024  # records of ended sequences that wait for a lost Redis; older ones are given up


class Listener(Protocol):
    """Whose record it is."""

    def written(self, tokens: int, ended: bool) -> None:
        """The first ``tokens`` are safe, or as safe as they can be; ``ended``: so is the end."""

    def refused(self, why: str, finish: router_pb2.Finish.ValueType) -> None:
        """The record belongs to somebody else now, or was ended by somebody: nothing can be written any more."""


@dataclass(slots=True, eq=False)
class Record:
    """What is to be kept of one sequence. ``tokens`` is shared with the sequence and only grows."""

    spec: state_pb2.SequenceSpec
    tokens: list[int]
    listener: Listener
    owner: str = ""  # this router
    index: str = ""  # key of the set in which the owner's sequences are listed; "" = none
    epoch: int = 1
    round: int = 0  # counts the commits
    ended: bool = False
    finish: router_pb2.Finish.ValueType = router_pb2.FINISH_UNSPECIFIED
    free: bool = False  # ended here, but not at its end: any router may take it up
    moving: bool = False  # with ``free``: somebody should
    kept_round: int = 0  # of what Redis is known to have
    kept_tokens: int = 0
    kept_spec: bool = False
    listed: bool = False
    fenced: str = ""  # why nothing can be written any more
    broken: bool = False  # it can't be written, and goes on without
    sure: bool = False  # its end will be looked at again
    tried: float = 0.0  # loop time of the last write


class Store(Protocol):
    """Where records are kept."""

    records: Records

    @property
    def lost_s(self) -> float:
        """For so long it could not be used; 0 = it can be."""

    def write(self, record: Record) -> None:
        """Bring it up to date soon; its listener hears when that is done."""


@dataclass(frozen=True, slots=True)
class _Write:
    """One record's part of a batch."""

    record: Record
    tokens: int
    round: int
    ended: bool


class RedisStore:
    """See the module. Raises ValueError when the URL can't be used."""

    def __init__(self, url: str, metrics: Metrics) -> None:
        self._metrics = metrics
        self.redis = RedisEnd(redis_url.parse(url))
        self.address = self.redis.address
        self.records = Records(self.redis.shared, self.address)
        self._lost_since: float | None = None
        self._due: dict[Record, None] = {}
        self._wake: asyncio.Future[None] | None = None
        self._empty = asyncio.Event()
        self._sha = ""
        self._logged = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def lost(self) -> bool:
        """Whether Redis can't be used now."""
        return self._lost_since is not None

    @property
    def lost_s(self) -> float:
        """See Store."""
        return 0.0 if self._lost_since is None else max(time.monotonic() - self._lost_since, 1e-9)

    async def open(self) -> None:
        """Connect. Raises StoreError."""
        try:
            self._sha = await self.redis.load(APPEND)
        except LOST as error:
            raise StoreError(f"cannot use Redis at {self.address}: {line(error)}") from error
        self._task = asyncio.create_task(self._run(), name="store")
        self._task.add_done_callback(self._stopped)

    async def close(self) -> None:
        """Write what is due, if that takes no longer than a second, and disconnect."""
        if self._task is not None:
            if self._due and not self.lost:
                with suppress(TimeoutError):
                    async with asyncio.timeout(SOCKET_S):
                        await self._empty.wait()
            await end(self._task)
        await self.redis.close()

    def write(self, record: Record) -> None:
        """See Store."""
        if record.fenced:
            record.listener.refused(record.fenced, router_pb2.FINISH_UNSPECIFIED)
            return
        if record.broken:
            record.listener.written(len(record.tokens), record.ended)
            return
        self._due[record] = None
        if self.lost:
            self._let_through(record)
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # The loop that writes.

    async def _run(self) -> None:
        pause = PAUSE_S[0]
        while True:
            if not self._due:
                self._empty.set()
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                self._empty.clear()
            batch = [_Write(r, len(r.tokens), r.round, r.ended) for r in islice(self._due, MAX_BATCH)]
            try:
                await self._flush(batch)
            except LOST as error:
                self._lose(error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_S[1])
                continue
            pause = PAUSE_S[0]

    async def _flush(self, batch: list[_Write]) -> None:
        commands: list[Command] = []
        places: list[int] = []  # of each write's answer
        now = time.monotonic()
        for write in batch:
            record = write.record
            record.tried = now
            names = keys(record.spec.sequence)
            if not record.kept_spec:
                commands.append(("SET", names[2], record.spec.SerializeToString(), "EX", TTL_S))
            commands += self._listing(write)
            places.append(len(commands))
            expected = (record.epoch, record.owner, record.kept_round, record.kept_tokens * TOKEN_BYTES)
            news = pack(record.tokens[record.kept_tokens : write.tokens])
            next_owner = "" if write.ended else record.owner
            rest = (write.round, news, int(record.finish), TTL_S, next_owner)
            commands.append(("EVALSHA", self._sha, 3, *names, *expected, *rest))
        results = await self.redis.quick.exchange(commands)
        for write, place in zip(batch, places, strict=True):
            result = results[place]
            if not isinstance(result, Exception):
                self._settle(write, result)
            elif type(result) is ResponseError and any(word in str(result) for word in BROKEN):
                results[place] = None
                self._give_up(write.record, result)
        faults = [result for result in results if isinstance(result, Exception)]
        if faults and all(isinstance(fault, NoScriptError) for fault in faults):
            await self.redis.load(APPEND)
        elif faults:
            raise faults[0]
        elif self.lost:
            self._lost_since = None
            log.warning("Redis at %s is back; %d records are due", self.address, len(self._due))

    def _listing(self, write: _Write) -> list[Command]:
        """The owner's list is for finding what a dead one left: what is moving stays on it."""
        record = write.record
        if not record.index:
            return []
        if write.ended:
            return [] if record.moving else [("SREM", record.index, record.spec.sequence)]
        return [] if record.listed else [("SADD", record.index, record.spec.sequence)]

    def _settle(self, write: _Write, result: Any) -> None:
        """What Redis said to one write."""
        record = write.record
        if result in (1, 2):
            self._kept(write, spec=result == 1)
        elif result == 0:  # it has been emptied, or shows an older owner: write all of it anew
            self._heal(record, 0, 0)
        else:
            epoch, round_, size, owner, finish = result
            tokens = size // TOKEN_BYTES
            if [epoch, round_, tokens, owner] == [record.epoch, write.round, write.tokens, b""] and write.ended:
                self._kept(write, spec=True)  # an earlier try had arrived after all
            elif (
                [epoch, owner, finish] == [record.epoch, record.owner.encode(), 0]
                and round_ <= record.round
                and tokens <= len(record.tokens)
            ):
                self._heal(record, round_, tokens)
            else:
                self._fence(record, epoch, round_, finish)

    def _kept(self, write: _Write, *, spec: bool) -> None:
        record = write.record
        record.kept_spec, record.listed = spec, True
        record.kept_round, record.kept_tokens = write.round, write.tokens
        if spec and (record.round, record.ended) == (write.round, write.ended):
            self._due.pop(record, None)
            if record.finish and not record.sure:  # nobody would notice its loss later, and it would seem to run
                record.sure = True
                asyncio.get_running_loop().call_later(SURE_S, self.write, record)
        record.listener.written(write.tokens, write.ended)

    def _heal(self, record: Record, round_: int, tokens: int) -> None:
        """Redis has less than it said it has, or more, because an answer got lost: go on from what there is."""
        if record.kept_round > round_ or record.kept_tokens > tokens:
            self._metrics.redis_healed.inc()
            log.warning(
                "sequence %s: Redis has lost what it had: %d of %d tokens are left; writing the rest again",
                record.spec.sequence,
                tokens,
                record.kept_tokens,
            )
        record.kept_round, record.kept_tokens = round_, tokens
        if round_ == 0:
            record.kept_spec = record.listed = False

    def _give_up(self, record: Record, error: Exception) -> None:
        """Something else is where its keys should be: its fault must not keep the others from being written."""
        self._due.pop(record, None)
        record.broken = True
        self._metrics.redis_dropped.inc()
        log.error("sequence %s: its record can't be written: %s", record.spec.sequence, line(error))
        record.listener.written(len(record.tokens), record.ended)

    def _fence(self, record: Record, epoch: int, round_: int, finish: int) -> None:
        self._due.pop(record, None)
        record.fenced = f"the record is at epoch {epoch}, round {round_}: another router owns it"
        record.listener.refused(record.fenced, FINISHES.get(finish, router_pb2.FINISH_UNSPECIFIED))

    # Without Redis.

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """The loop that writes must never end by itself; if it does, streams go on without records."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            log.error("the store has failed", exc_info=error)
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        now = time.monotonic()
        if self._lost_since is None:
            self._lost_since = now
            self._metrics.redis_losses.inc()
        if now - self._logged > LOG_S:
            self._logged = now
            log.error("Redis at %s is lost, streams go on without it: %s", self.address, line(error))
        for record in list(self._due):
            self._let_through(record)

    def _let_through(self, record: Record) -> None:
        record.listener.written(len(record.tokens), record.ended)
        if record.ended and len(self._due) > MAX_ENDED:
            ended = next(due for due in self._due if due.ended)
            del self._due[ended]
            self._metrics.redis_dropped.inc()
