"""The recovery records, in Redis.

A sequence has three keys under one hash tag, so that they live on one node of a cluster:

    specrouter:{ID}:spec     SequenceSpec, serialized; written once
    specrouter:{ID}:state    hash of epoch, round, finish
    specrouter:{ID}:tokens   committed tokens, 4 bytes each, appended to

Every write is a compare-and-set on epoch and round, done by a small script; all that is due in one tick of the loop
goes in one pipeline. When Redis is lost, streams go on without it: the records stay due, and when it is back the
whole missing part of each is written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from specrouter.v1 import router_pb2, state_pb2
from specrouter_core.record import TOKEN_BYTES, pack, unpack
from specrouter_router.metrics import Metrics

log = logging.getLogger(__name__)

TTL_S = 3600  # after the last write
SOCKET_S = 1.0  # for one answer of Redis; a stream may stall so long when it is lost
PAUSE_S = (0.1, 2.0)  # between tries while it is lost, first and longest
LOG_S = 30.0  # between two log lines about a loss that lasts
MAX_BATCH = 256  # records in one pipeline
MAX_ENDED = 1024  # records of ended sequences that wait for a lost Redis; older ones are given up

# KEYS: state, tokens, spec. ARGV: epoch, round expected (0: none), round, tokens, finish, TTL.
# Answers 1: written. 0: there is no such record. Else [epoch, round, bytes of tokens]: what there is instead.
APPEND = """
local state = redis.call('HMGET', KEYS[1], 'epoch', 'round')
if not state[1] then
  if ARGV[2] ~= '0' then return 0 end
  redis.call('DEL', KEYS[2])
elseif state[1] ~= ARGV[1] or state[2] ~= ARGV[2] then
  return {tonumber(state[1]), tonumber(state[2]), redis.call('STRLEN', KEYS[2])}
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'round', ARGV[3], 'finish', ARGV[5])
if ARGV[4] ~= '' then redis.call('APPEND', KEYS[2], ARGV[4]) end
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[6]) end
return 1
"""


_FINISHES = {int(value): value for value in router_pb2.Finish.values()}


class Listener(Protocol):
    """Whose record it is."""

    def written(self, tokens: int, ended: bool) -> None:
        """The first ``tokens`` are safe, or as safe as they can be; ``ended``: so is the end."""

    def refused(self, why: str) -> None:
        """The record belongs to somebody else now."""


class StoreError(Exception):
    """Redis can't be used."""


@dataclass(slots=True, eq=False)
class Record:
    """What is to be kept of one sequence. ``tokens`` is shared with the sequence and only grows."""

    spec: state_pb2.SequenceSpec
    tokens: list[int]
    listener: Listener
    epoch: int = 1
    round: int = 0  # counts the commits
    ended: bool = False
    finish: router_pb2.Finish.ValueType = router_pb2.FINISH_UNSPECIFIED
    kept_round: int = 0  # of what Redis is known to have
    kept_tokens: int = 0


class Store(Protocol):
    """Where records are kept."""

    lost: bool

    def write(self, record: Record) -> None:
        """Bring it up to date soon; its listener hears when that is done."""

    async def read(self, sequence: str) -> state_pb2.SequenceRecord | None:
        """A record, None where there is none. Raises StoreError."""


@dataclass(frozen=True, slots=True)
class _Write:
    """One record's part of a pipeline."""

    record: Record
    tokens: int
    round: int
    ended: bool


class RedisStore:
    """See the module."""

    def __init__(self, url: str, metrics: Metrics) -> None:
        self.lost = False
        self.address = _without_secrets(url)
        self._metrics = metrics
        self._redis: Any = Redis.from_url(
            url,
            socket_timeout=SOCKET_S,
            socket_connect_timeout=SOCKET_S,
            retry=Retry(NoBackoff(), 0),  # the store's own loop tries again
            max_connections=8,
        )
        self._connection: Any = self._redis.connection_pool.make_connection()
        self._due: dict[Record, None] = {}
        self._wake: asyncio.Future[None] | None = None
        self._empty = asyncio.Event()
        self._sha = ""
        self._logged = 0.0
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect. Raises StoreError."""
        try:
            self._sha = await self._redis.script_load(APPEND)
        except (RedisError, OSError) as error:
            raise StoreError(f"cannot use Redis at {self.address}: {_line(error)}") from error
        self._task = asyncio.create_task(self._run(), name="store")
        self._task.add_done_callback(self._stopped)

    async def close(self) -> None:
        """Write what is due, if that takes no longer than a second, and disconnect."""
        if self._task is not None:
            if self._due and not self.lost:
                with suppress(TimeoutError):
                    async with asyncio.timeout(SOCKET_S):
                        await self._empty.wait()
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._connection.disconnect(nowait=True)
        await self._redis.aclose()

    def write(self, record: Record) -> None:
        """See Store."""
        self._due[record] = None
        if self.lost:
            self._let_through(record)
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def read(self, sequence: str) -> state_pb2.SequenceRecord | None:
        """See Store."""
        state, tokens, spec = _keys(sequence)
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(spec)
                pipe.hmget(state, "epoch", "round", "finish")
                pipe.get(tokens)
                blob, (epoch, round_, finish), packed = await pipe.execute()
            if blob is None or epoch is None:
                return None
            return state_pb2.SequenceRecord(
                spec=state_pb2.SequenceSpec.FromString(blob),
                epoch=int(epoch),
                round=int(round_),
                tokens=unpack(packed or b""),
                finish=_FINISHES[int(finish)],
            )
        except (RedisError, OSError, DecodeError, ValueError, KeyError) as error:
            raise StoreError(f"cannot read from Redis at {self.address}: {_line(error)}") from error

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
            except (RedisError, OSError) as error:
                self._lose(error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_S[1])
                continue
            pause = PAUSE_S[0]

    async def _flush(self, batch: list[_Write]) -> None:
        commands: list[tuple[Any, ...]] = []
        for write in batch:
            record = write.record
            state, tokens, spec = _keys(record.spec.sequence)
            if record.kept_round == 0:
                commands.append(("SET", spec, record.spec.SerializeToString(), "EX", TTL_S))
            news = pack(record.tokens[record.kept_tokens : write.tokens])
            expected = (record.epoch, record.kept_round)
            rest = (write.round, news, int(record.finish), TTL_S)
            commands.append(("EVALSHA", self._sha, 3, state, tokens, spec, *expected, *rest))
        results = iter(await self._exchange(commands))
        if self.lost:
            self.lost = False
            log.warning("Redis at %s is back; writing %d records", self.address, len(self._due))
        faults: list[Exception] = []
        for write in batch:
            if write.record.kept_round == 0:
                next(results)
            result = next(results)
            if isinstance(result, Exception):
                faults.append(result)
            else:
                self._settle(write, result)
        if faults and all(isinstance(fault, NoScriptError) for fault in faults):
            await self._redis.script_load(APPEND)
        elif faults:
            raise faults[0]

    async def _exchange(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """One pipeline on the store's own connection: at one sequence, half the time of a pooled one.

        Errors of single commands are among the results; whatever else goes wrong breaks the connection.
        """
        connection = self._connection
        results: list[Any] = []
        try:
            await connection.connect()  # does nothing while it is connected
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            for _ in commands:
                try:
                    results.append(await connection.read_response())
                except ResponseError as error:
                    results.append(error)
        except BaseException:  # answers may be on their way: they must not be taken for the next ones
            await connection.disconnect(nowait=True)
            raise
        return results

    def _settle(self, write: _Write, result: Any) -> None:
        """What Redis said to one write."""
        record = write.record
        if result == 1:
            record.kept_round, record.kept_tokens = write.round, write.tokens
            if (record.round, record.ended) == (write.round, write.ended):
                self._due.pop(record, None)
            record.listener.written(write.tokens, write.ended)
        elif result == 0:  # it has been emptied: write all of it anew
            record.kept_round = record.kept_tokens = 0
        else:
            epoch, round_, size = result
            tokens = size // TOKEN_BYTES
            if epoch == record.epoch and record.kept_round < round_ <= record.round and tokens <= len(record.tokens):
                record.kept_round, record.kept_tokens = round_, tokens  # an earlier write had arrived after all
            else:
                self._due.pop(record, None)
                record.listener.refused(f"the record is at epoch {epoch}, round {round_}: another router owns it")

    # Without Redis.

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """The loop that writes must never end by itself; if it does, streams go on without records."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            log.error("the store has failed", exc_info=error)
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        if not self.lost:
            self.lost = True
            self._metrics.redis_losses.inc()
        now = time.monotonic()
        if now - self._logged > LOG_S:
            self._logged = now
            log.error("Redis at %s is lost, streams go on without it: %s", self.address, _line(error))
        for record in list(self._due):
            self._let_through(record)

    def _let_through(self, record: Record) -> None:
        record.listener.written(len(record.tokens), record.ended)
        if record.ended and len(self._due) > MAX_ENDED:
            ended = next(due for due in self._due if due.ended)
            del self._due[ended]
            self._metrics.redis_dropped.inc()


def _keys(sequence: str) -> tuple[str, str, str]:
    tag = f"specrouter:{{{sequence}}}"
    return f"{tag}:state", f"{tag}:tokens", f"{tag}:spec"


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
