"""Blocks in Redis: written whole, found by name, the least used ones making room.

    specrouter:kv:TENANT:NAME          one block (``blob``), by SET with a TTL
    specrouter:kv:TENANT:index:LEVEL   sorted set of the names by last use, in milliseconds; LEVEL = model and codec

All blocks of one index have one size, so the budget is a number of names. A name goes into the index before its block
is written, and out of it after the block is gone: whoever is killed in between leaves a name too many, which grows old
and goes, never a block that nobody counts. A block is one SET, so there is never half of one. No scripts: large values
must not pass through them.

Not safe for several threads; each has a store of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from redis.exceptions import RedisClusterException, RedisError

from specrouter_family.redis_url import RedisUrl

TTL_S = 1800  # after the last use; below that of recovery records, so that a full Redis lets go of blocks first
MAX_EVICTED = 64  # names that make room in one go

LOST = (RedisError, RedisClusterException, OSError)  # what a call may raise


class BlockStore:
    """See the module.

    ``seconds``: to wait for one answer. ``most``: blocks that the index may hold. Calls raise what LOST says when Redis
    is not there.
    """

    def __init__(self, where: RedisUrl, seconds: float, tenant: str, level: str, most: int) -> None:
        self._where = where
        self._seconds = seconds
        self._prefix = f"specrouter:kv:{tenant}:"
        self._index = f"{self._prefix}index:{level}"
        self._most = most

    @cached_property
    def _redis(self) -> Any:
        """The client: made by the first call, as that of a cluster asks its nodes at once."""
        return self._where.blocking_client(self._seconds)

    def held(self, names: Sequence[str]) -> int:
        """How many of the names, from the first on, are there without a gap. One round trip."""
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.exists(self._prefix + name)
            found = pipe.execute()
        return next((i for i, there in enumerate(found) if not there), len(names))

    def get(self, name: str) -> bytes | None:
        """The bytes of a block, or None."""
        data: bytes | None = self._redis.get(self._prefix + name)
        return data

    def use(self, names: Sequence[str]) -> None:
        """Note that blocks that are there have been used."""
        now = _now()
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(self._index, dict.fromkeys(names, now))
            pipe.expire(self._index, TTL_S)
            for name in names:
                pipe.expire(self._prefix + name, TTL_S)
            pipe.execute()

    def put(self, name: str, data: bytes) -> int:
        """Write a block; returns how many others made room for it."""
        now = _now()
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(self._index, {name: now})
            pipe.expire(self._index, TTL_S)
            pipe.zremrangebyscore(self._index, "-inf", now - TTL_S * 1000)  # their blocks have expired
            pipe.zcard(self._index)
            count = pipe.execute()[-1]
        evicted = self._evict(count - self._most) if count > self._most else 0
        self._redis.set(self._prefix + name, data, ex=TTL_S)
        return evicted

    def drop(self, name: str) -> None:
        """Remove a block that is not what it should be."""
        self._redis.unlink(self._prefix + name)
        self._redis.zrem(self._index, name)

    def close(self) -> None:
        """Leave."""
        if "_redis" in self.__dict__:
            self._redis.close()

    def _evict(self, count: int) -> int:
        """Remove the least recently used blocks. Two that do so at once may take the same: the next makes up for it."""
        oldest = self._redis.zrange(self._index, 0, min(count, MAX_EVICTED) - 1)
        names = [name.decode() if isinstance(name, bytes) else name for name in oldest]
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.unlink(self._prefix + name)
            pipe.execute()
        return int(self._redis.zrem(self._index, *names))


def _now() -> int:
    return time.time_ns() // 1_000_000
