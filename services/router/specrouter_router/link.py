"""One Extend stream to one replica of a level.

Calls that are sent in one tick of the loop travel in one message; what is sent while a message is being written
travels in the next. Replies are handed to the calls' owners as they come in. Every call has a deadline; when
the stream breaks, all calls in flight are told at once, and the link connects again for as long as it is open.

A call to the target is *patient*: while the link is down it waits for it, up to ``PATIENCE_S``, and is sent again then
(calls may be repeated freely). Any other call fails at once, so that its chain goes on without the level.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from specrouter.v1 import level_pb2 as pb
from specrouter.v1.level_pb2_grpc import LevelServiceStub

log = logging.getLogger(__name__)

CALL_S = 10.0  # a call's deadline: this much, for queueing and the step itself ...
TOKEN_S = 0.05  # ... and this much for every token that the level has to feed or draw (so a prompt gets more)
MAX_DEADLINE_S = 600.0
PATIENCE_S = 5.0
SWEEP_S = 0.05  # how often deadlines are looked at
DESCRIBE_S = 5.0
BACKOFF_S = (0.1, 2.0)  # pause before the next try to connect, first and longest; each is shortened by up to a half
MAX_CALLS = 256  # in one message
OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A peer that hangs without closing is found by the pings' own timeout, not by keepalive_timeout_ms.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


class Owner(Protocol):
    """Who sent a call."""

    def fill(self, flight: Flight, message: pb.ExtendCall) -> None:
        """Write the call into the message, all but its number and deadline."""

    def replied(self, flight: Flight, reply: pb.ExtendReply) -> None:
        """A part of the answer, or the last. After the last the flight is over; it may be sent again."""

    def failed(self, flight: Flight, why: str, gone: bool) -> None:
        """No answer will come. ``gone``: the level can't be reached."""

    def broke(self, error: Exception) -> None:
        """Its own code failed on a reply."""


@dataclass(slots=True, eq=False)
class Flight:
    """A call on its way. ``call`` is its owner's number for it."""

    owner: Owner
    call: int
    patient: bool
    number: int = 0  # on the wire; 0 = not sent
    sent: float = 0.0  # loop time
    deadline: float = 0.0  # loop time
    patience: float = 0.0  # loop time until which it waits for the link; 0 = it never had to


@dataclass(slots=True)
class _Outbox:
    """What the next messages will carry."""

    messages: deque[pb.ExtendRequest] = field(default_factory=deque)

    def last(self) -> pb.ExtendRequest:
        if not self.messages or len(self.messages[-1].calls) >= MAX_CALLS:
            self.messages.append(pb.ExtendRequest())
        return self.messages[-1]


class Link:
    """See the module. ``accept`` judges what a replica says it is: a text says why it can't be used.

    ``on_ready`` is told each time the stream has opened.
    """

    def __init__(
        self,
        name: str,
        address: str,
        accept: Callable[[pb.DescribeResponse], str],
        on_ready: Callable[[Link], None],
    ) -> None:
        self.name = name
        self.address = address
        self.info: pb.DescribeResponse | None = None  # what it said when it was last reached
        self.why_down = "not reached yet"
        self.ready = False
        self.inflight: dict[int, Flight] = {}
        self._parked: list[Flight] = []
        self._outbox = _Outbox()
        self._wake: asyncio.Future[None] | None = None
        self._numbers = 0
        self._accept = accept
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self._sweeping = False
        self._task: asyncio.Task[None] | None = None

    # For owners.

    def send(self, flight: Flight) -> None:
        """Put a call on its way. While the link is down it waits or fails; a failure is told in the next tick."""
        if not self.ready:
            if flight.patient:
                self._park(flight)
            else:
                self._loop.call_soon(flight.owner.failed, flight, self.why_down, True)
            return
        self._numbers += 1
        flight.number = self._numbers
        self.inflight[flight.number] = flight
        message = self._outbox.last().calls.add()
        flight.owner.fill(flight, message)
        tokens = len(message.suffix) + len(message.proposals) + message.more + 1
        allowed = min(CALL_S + TOKEN_S * tokens, MAX_DEADLINE_S)
        message.call = flight.number
        message.deadline_ms = int(allowed * 1000)
        flight.sent = self._loop.time()
        flight.deadline = flight.sent + allowed
        self._sweep_later()
        self._signal()

    def withdraw(self, flight: Flight) -> None:
        """Its answer is of no use any more."""
        if self.inflight.pop(flight.number, None) is not None:
            self._outbox.last().withdrawn.append(flight.number)
            self._signal()
        elif flight in self._parked:
            self._parked.remove(flight)

    def release(self, sequence: str) -> None:
        """The sequence has ended: the level may forget it."""
        if self.ready:
            self._outbox.last().released.append(sequence)
            self._signal()

    # The stream.

    def start(self) -> None:
        """Connect, and stay so until ``close``."""
        self._task = asyncio.create_task(self._run(), name=f"link {self.name}")

    async def close(self) -> None:
        """Break the stream and stop."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        async with grpc.aio.insecure_channel(self.address, options=OPTIONS) as channel:
            stub = LevelServiceStub(channel)
            pause = BACKOFF_S[0]
            while True:
                why = await self._connect(stub)
                if self.ready:
                    pause = BACKOFF_S[0]
                    log.warning("level %s at %s is lost: %s", self.name, self.address, why)
                elif why != self.why_down:
                    log.info("level %s at %s is not there: %s", self.name, self.address, why)
                self._broke(why)
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(pause * 2, BACKOFF_S[1])

    async def _connect(self, stub: Any) -> str:
        """One life of the stream. Returns why it ended, or why it never began."""
        try:
            info = await stub.Describe(pb.DescribeRequest(), timeout=DESCRIBE_S)
            refused = self._accept(info)
            if refused:
                return refused
            self.info = info
            stream = stub.Extend()
            await asyncio.wait_for(stream.wait_for_connection(), DESCRIBE_S)
        except grpc.aio.AioRpcError as error:
            return _explain(error)
        except TimeoutError:
            return f"no stream within {DESCRIBE_S:g} s"
        except Exception as error:  # whatever happens, the link must try again
            log.exception("connecting to level %s at %s failed", self.name, self.address)
            return f"{type(error).__name__}: {error}"
        self.ready, self.why_down = True, ""
        log.info("level %s at %s is connected", self.name, self.address)
        parked, self._parked = self._parked, []
        for flight in parked:
            self.send(flight)
        self._on_ready(self)
        writer = asyncio.create_task(self._write(stream), name=f"writer {self.name}")
        try:
            return await self._read(stream)
        finally:
            writer.cancel()
            stream.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await writer

    async def _write(self, stream: Any) -> None:
        messages = self._outbox.messages
        while True:
            if not messages:
                self._wake = self._loop.create_future()
                await self._wake
            await stream.write(messages.popleft())

    async def _read(self, stream: Any) -> str:
        inflight = self.inflight
        try:
            while (response := await stream.read()) is not grpc.aio.EOF:
                for reply in response.replies:
                    number = reply.call
                    flight = inflight.get(number)
                    if flight is None:
                        continue
                    if reply.outcome:
                        del inflight[number]
                    try:
                        flight.owner.replied(flight, reply)
                    except Exception as error:  # one sequence's fault must not end the stream of all others
                        flight.owner.broke(error)
        except grpc.aio.AioRpcError as error:
            return _explain(error)
        except (grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError) as error:
            return f"the stream broke: {error}"
        return "it closed the stream"

    def _broke(self, why: str) -> None:
        """Tell everybody, or let them wait."""
        self.ready, self.why_down = False, why
        self._outbox.messages.clear()
        flights = list(self.inflight.values())
        self.inflight.clear()
        for flight in flights:
            if flight.patient:
                self._park(flight)
            else:
                flight.owner.failed(flight, why, True)

    def _signal(self) -> None:
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    # Deadlines.

    def _park(self, flight: Flight) -> None:
        flight.number = 0
        flight.patience = flight.patience or self._loop.time() + PATIENCE_S
        self._parked.append(flight)
        self._sweep_later()

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        for flight in [flight for flight in self.inflight.values() if flight.deadline <= now]:
            self.withdraw(flight)
            flight.owner.failed(flight, "no answer before the call's deadline", False)
        for flight in [flight for flight in self._parked if flight.patience <= now]:
            self._parked.remove(flight)
            flight.owner.failed(flight, f"{self.why_down} (waited {PATIENCE_S:g} s)", True)
        self._sweeping = False
        if self.inflight or self._parked:
            self._sweep_later()


def _explain(error: grpc.aio.AioRpcError) -> str:
    """One line for people."""
    details = " ".join((error.details() or "").split())
    return f"{error.code().name}: {details}" if details else error.code().name
