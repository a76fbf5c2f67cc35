"""A client that gets its text whatever happens to routers and connections on the way, and notes all it sees.

It names its sequence itself. Whenever a stream breaks, ends with an error that passes, or is silent for too long, it
attaches at the next router and asks for what it has not got yet; where there is no such sequence (any more), it sends
its request again under the same name, which is the same sequence where that exists.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

import grpc
import httpx

import grpc_stream
import rest_stream
from sighting import Ask, Course, GaveUp, Note

SILENCE_S = 4.0  # without a token, after which a client looks for another router; a hung level is noticed in 3
PAUSE_S = 0.05  # before it asks again


@dataclass
class Follower:
    """Clients of some routers, by their addresses (host:port). ``note`` gets every event, in order.

    An asynchronous context manager. Requests over REST need the addresses for that.
    """

    over_grpc: Sequence[str]
    over_rest: Sequence[str]
    note: Note
    silence: float = SILENCE_S
    model: str = "test"
    hosts: tuple[str, str] = ("", "")  # names of gRPC and REST at a gateway
    _channels: list[grpc.aio.Channel] = field(default_factory=list)
    _clients: list[httpx.AsyncClient] = field(default_factory=list)
    _turn: itertools.count[int] = field(default_factory=itertools.count)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        self._channels = [
            await self._stack.enter_async_context(grpc_stream.channel(one, self.hosts[0])) for one in self.over_grpc
        ]
        for one in self.over_rest:
            self._clients.append(
                await self._stack.enter_async_context(rest_stream.client(one, self.silence, self.hosts[1]))
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def follow(self, ask: Ask, patience: float) -> None:
        """To its end, or for so many seconds at most."""
        course = Course(ask)
        begin = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                for turn in itertools.count(next(self._turn)):
                    course.stream += 1
                    await self._once(course, turn % len(self.over_grpc))
                    if course.done:
                        return
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            self.note(GaveUp(time.monotonic(), ask.name, course.stream, time.monotonic() - begin))

    async def _once(self, course: Course, router: int) -> None:
        if course.ask.interface == "rest":
            await rest_stream.once(self._clients[router], router, course, self.note, self.model)
        else:
            await grpc_stream.once(self._channels[router], router, course, self.note, self.silence, self.model)
