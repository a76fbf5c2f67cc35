"""A client that gets its text whatever happens to routers and connections on the way, and notes all it sees.

It names its sequence itself. Whenever a stream breaks, ends with an error that passes, or is silent for too long, it
attaches at the next router and asks for what it has not got yet; where there is no such sequence (any more), it sends
its request again under the same name, which is the same sequence where that exists.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from specrouter.v1 import level_pb2, router_pb2
from specrouter.v1.router_pb2_grpc import RouterServiceStub

SILENCE_S = 4.0  # without a token, after which a client looks for another router; a hung level is noticed in 3
PAUSE_S = 0.05  # before it asks again
MODES = {
    "": router_pb2.MODE_UNSPECIFIED,
    "overlapped": router_pb2.MODE_OVERLAPPED,
    "lockstep": router_pb2.MODE_LOCKSTEP,
}
GONE = grpc.StatusCode.NOT_FOUND
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.enable_retries", 0),  # a repeated request is to be seen
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class Ask:
    """One request. ``cancel_after`` tokens the client ends it; 0 = never."""

    name: str
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    temperature: float
    mode: str = ""
    chain: tuple[str, ...] = ()
    stop: str = ""
    cancel_after: int = 0


@dataclass(frozen=True)
class Event:
    """Something that happened to a sequence, as its client saw it. ``stream`` counts its connections."""

    at: float  # seconds of time.monotonic
    sequence: str
    stream: int


@dataclass(frozen=True)
class Opened(Event):
    """A stream was asked for: the rest from ``offset`` on. ``anew``: by the request itself."""

    router: int
    offset: int
    anew: bool


@dataclass(frozen=True)
class Got(Event):
    """Tokens came, the first of them with this index."""

    offset: int
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Ended(Event):
    """The router said that the text has ended. ``text`` had been held back till then."""

    finish: str
    tokens: int
    text: str


@dataclass(frozen=True)
class Broke(Event):
    """The stream ended otherwise."""

    code: str
    why: str


@dataclass(frozen=True)
class GaveUp(Event):
    """The client's patience was over."""

    seconds: float


@dataclass
class _Course:
    """Where one sequence's client stands."""

    ask: Ask
    stream: int = 0
    got: int = 0
    known: bool = False  # a router has answered for it
    cancelled: bool = False
    done: bool = False


@dataclass
class Follower:
    """Clients of some routers (host:port of their gRPC). ``note`` gets every event, in order. To be closed."""

    routers: Sequence[str]
    note: Callable[[Event], None]
    silence: float = SILENCE_S
    model: str = "test"
    _channels: list[grpc.aio.Channel] = field(default_factory=list)
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    async def __aenter__(self) -> Follower:
        self._channels = [grpc.aio.insecure_channel(router, options=OPTIONS) for router in self.routers]
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def follow(self, ask: Ask, patience: float) -> None:
        """To its end, or for so many seconds at most."""
        course = _Course(ask)
        begin = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                for turn in itertools.count(next(self._turn)):
                    await self._one(course, turn % len(self._channels))
                    if course.done:
                        return
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            self.note(GaveUp(time.monotonic(), ask.name, course.stream, time.monotonic() - begin))

    async def _one(self, course: _Course, router: int) -> None:
        """One connection."""
        name, course.stream = course.ask.name, course.stream + 1
        anew = not course.known
        offset = 0 if anew else course.got
        stub: Any = RouterServiceStub(self._channels[router])
        self.note(Opened(time.monotonic(), name, course.stream, router, offset, anew))
        if anew:
            call = stub.Generate(request(course.ask, self.model), timeout=600)
        else:
            call = stub.Attach(router_pb2.AttachRequest(sequence=name, offset=offset), timeout=600)
        try:
            async for message in _patiently(call, self.silence):
                course.known = True
                self._take(course, message if anew else message.event)
                if course.ask.cancel_after and course.got >= course.ask.cancel_after and not course.cancelled:
                    course.cancelled = True
                    await self._cancel(stub, name)
            if not course.done:
                self.note(Broke(time.monotonic(), name, course.stream, "OK", "the stream ended without an end"))
        except grpc.aio.AioRpcError as error:
            if error.code() is GONE:
                course.known = False
            why = " ".join((error.details() or "").split())
            self.note(Broke(time.monotonic(), name, course.stream, error.code().name, why))
        except TimeoutError:
            self.note(Broke(time.monotonic(), name, course.stream, "SILENT", f"nothing for {self.silence:g} s"))
        finally:
            call.cancel()

    def _take(self, course: _Course, message: router_pb2.GenerateResponse) -> None:
        now, name = time.monotonic(), course.ask.name
        if message.finish:
            finish = router_pb2.Finish.Name(message.finish).removeprefix("FINISH_").lower()
            self.note(Ended(now, name, course.stream, finish, message.usage.completion_tokens, message.text))
            course.done = True
            return
        self.note(Got(now, name, course.stream, message.offset, tuple(message.tokens), message.text))
        course.got = max(course.got, message.offset + len(message.tokens))

    async def _cancel(self, stub: Any, name: str) -> None:
        with suppress(grpc.aio.AioRpcError):  # then the text goes on to its end
            await stub.Cancel(router_pb2.CancelRequest(sequence=name), timeout=1)


async def _patiently(call: Any, silence: float) -> AsyncIterator[Any]:
    """The messages of a stream. Raises TimeoutError when none comes for so long."""
    while True:
        async with asyncio.timeout(silence):
            message = await call.read()
        if message is grpc.aio.EOF:
            return
        yield message


def request(ask: Ask, model: str) -> router_pb2.GenerateRequest:
    """On the wire."""
    return router_pb2.GenerateRequest(
        model=model,
        tokens=router_pb2.TokenPrompt(ids=ask.prompt),
        max_tokens=ask.max_tokens,
        sampling=level_pb2.Sampling(seed=ask.seed, temperature=ask.temperature),
        mode=MODES[ask.mode],
        chain=ask.chain,
        stop=[ask.stop] if ask.stop else [],
        sequence=ask.name,
    )
