"""Batches of commands to Redis, whatever it is: one server, the master of sentinels, a cluster.

A batch is sent at once and answered at once; commands of it may go to different nodes. Errors of single
commands are among the results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from specrouter_family.redis_url import RedisUrl

SOCKET_S = 1.0  # for an answer of Redis; a stream may stall so long when it is lost
EXCHANGE_S = 3.0  # to connect, and for all answers of a batch
AT_ONCE = 8  # batches on their way at most, of all that share the pool

Command = tuple[Any, ...]

LOST = (RedisError, OSError)  # what ``exchange`` raises
BROKEN = (RedisClusterException, RuntimeError)  # the latter is uvloop's for a transport that was closed under it


class Wire(Protocol):
    """One way to Redis."""

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The results, in order. Raises RedisError or OSError when they can't be had."""


class PoolWire:
    """For any number of users."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._free = asyncio.Semaphore(AT_ONCE)

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """See Wire. Commands may be sent twice: a connection may have broken since it was last used."""
        async with self._free:
            try:
                return await self._once(commands)
            except RedisConnectionError:
                return await self._once(commands)

    async def _once(self, commands: Sequence[Command]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        try:
            async with asyncio.timeout(EXCHANGE_S):
                results: list[Any] = await pipe.execute(raise_on_error=False)
        except BROKEN as error:
            raise RedisConnectionError(str(error)) from error
        for result in results:  # of a cluster, a node's loss is told by its commands' results
            if isinstance(result, Exception) and not isinstance(result, ResponseError):
                raise RedisConnectionError(str(result)) from result
        return results


class OwnWire:
    """For one user, on a connection of its own: at one sequence, half the time of a pooled one."""

    def __init__(self, client: Any) -> None:
        self._connection = client.connection_pool.make_connection()
        self._connection.socket_timeout = None  # with one, each send is a task of its own

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """See Wire. Whatever goes wrong, but for errors of single commands, breaks the connection."""
        connection = self._connection
        results: list[Any] = []
        try:
            if not connection.is_connected:
                async with asyncio.timeout(EXCHANGE_S):
                    await connection.connect()
            async with asyncio.timeout(SOCKET_S):
                await connection.send_packed_command([_packed(commands)], check_health=False)
                for _ in commands:
                    try:
                        results.append(await connection.read_response())
                    except ResponseError as error:
                        results.append(error)
        except BaseException as error:  # answers may be on their way: they must not be taken for the next ones
            await connection.disconnect(nowait=True)
            if isinstance(error, BROKEN):
                raise RedisConnectionError(str(error)) from error
            raise
        return results

    async def close(self) -> None:
        """Disconnect."""
        await self._connection.disconnect(nowait=True)


class RedisEnd:
    """One router's ways to one Redis."""

    def __init__(self, url: RedisUrl) -> None:
        self.address = url.address
        self._client = url.client(SOCKET_S)
        self.shared = PoolWire(self._client)
        self._own = None if url.kind == "cluster" else OwnWire(self._client)

    @property
    def quick(self) -> Wire:
        """For one user, who sends one batch at a time."""
        return self._own or self.shared

    async def load(self, script: str) -> str:
        """Have every node know a script; returns its SHA-1. Raises RedisError or OSError."""
        try:
            sha = await self._client.script_load(script)
        except BROKEN as error:
            raise RedisConnectionError(str(error)) from error
        return sha.decode() if isinstance(sha, bytes) else str(sha)

    async def close(self) -> None:
        """Disconnect."""
        if self._own is not None:
            await self._own.close()
        with suppress(RedisError, OSError, RedisClusterException):
            await self._client.aclose()


def _packed(commands: Sequence[Command]) -> bytes:
    """In the protocol's form (redis.io/docs/reference/protocol-spec), in a third of the time that redis-py takes."""
    parts = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            data = argument if isinstance(argument, bytes) else str(argument).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
