"""One Extend stream to one replica of a level.

Calls that are sent in one tick of the loop travel in one message; what is sent while a message is being written
travels in the next. Replies are handed on as they come in. When the stream breaks, all calls in flight are handed
back at once, and the link connects again for as long as it is open.

A replica that closes or resets its stream is noticed at once. One that hangs, or is cut off, says nothing: so a
link that hears nothing for ``BEAT_S`` asks the replica what it is, and is *silent* when it has heard nothing at all
for ``SILENT_S``. A level answers that from its event loop while its engine works in a thread, so a busy replica is
not silent, only slow. HTTP/2's own pings end a connection that is dead, so that another can be made.

Slow is not dead: the answer also says how long the running step has taken. While steps run, a call waits for its turn
and its answer however long that takes, up to ``MAX_CALL_S``. A step that takes longer than ``STEP_S``, and ``STEPS``
times what the replica's largest should, is taken for one that never ends: the engine *hangs*, which counts as silence
does. A call that is left without an answer while no step runs is given up by itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from specrouter.v1 import level_pb2 as pb
from specrouter.v1.level_pb2_grpc import LevelServiceStub
from specrouter_router.circuit import Circuit
from specrouter_router.dial import PLAIN, Dial
from specrouter_router.ending import end
from specrouter_router.flight import Flight
from specrouter_router.tempo import Tempo

if TYPE_CHECKING:
    from specrouter_router.seat import Seat

log = logging.getLogger(__name__)

CALL_S = 10.0  # a call without an answer while no step runs is given up after this much ...
TOKEN_S = 0.05  # ... and this much for every token that the level has to feed or draw (they may be restored meanwhile)
MAX_CALL_S = 600.0  # whatever runs
STEP_S = 30.0
STEPS = 8.0
BEAT_S = 1.0
SILENT_S = 2.5
SILENT, HANGS = "it is silent", "its engine hangs"
DESCRIBE_S = 5.0  # when connecting
BACKOFF_S = (0.1, 2.0)  # pause before the next try to connect, first and longest; each is shortened by up to a half
MAX_CALLS = 256  # in one message
MAX_OWED = 4096  # releases kept for a replica that is away
OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A peer that hangs without closing is found by the pings' own timeout, not by keepalive_timeout_ms.
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.ping_timeout_ms", 4_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


class Listener(Protocol):
    """Who a link works for."""

    def accept(self, info: pb.DescribeResponse) -> str:
        """Judge what a replica says it is. A text says why it can't be used."""

    def opened(self, link: Link) -> None:
        """The stream is open."""

    def lost(self, link: Link, flights: list[Flight], why: str) -> None:
        """The stream broke; these calls will not be answered by it."""

    def asked(self, link: Link, well: bool) -> None:
        """The replica was asked what it is, and said so, or nothing, or that its engine hangs."""

    def turned(self, link: Link) -> None:
        """The replica can be heard again, or is being drained."""

    def replied(self, flight: Flight, reply: pb.ExtendReply) -> None:
        """A part of a call's answer, or the last."""


@dataclass(slots=True)
class _Outbox:
    """What the next messages will carry."""

    messages: deque[pb.ExtendRequest] = field(default_factory=deque)

    def last(self) -> pb.ExtendRequest:
        if not self.messages or len(self.messages[-1].calls) >= MAX_CALLS:
            self.messages.append(pb.ExtendRequest())
        return self.messages[-1]

    def after(self, sequence: str) -> pb.ExtendRequest:
        """The last message, or a new one where that has a call of this sequence: a replica reads the calls last."""
        message = self.last()
        if any(call.sequence == sequence for call in message.calls):
            message = pb.ExtendRequest()
            self.messages.append(message)
        return message


class Link:
    """See the module. ``name`` is the level's, ``address`` an IP address and port."""

    def __init__(self, name: str, address: str, listener: Listener, dial: Dial = PLAIN) -> None:
        self.name = name
        self._dial = dial
        self.address = address
        self.info: pb.DescribeResponse | None = None  # what it said when it was last reached
        self.why_down = "not reached yet"
        self.ready = False  # the stream is open
        self.lifeless = ""  # SILENT, HANGS, or "": it is neither
        self.draining = False
        self.leaving = False  # its address is no longer one of the level's
        self.odd = False  # much slower than others of the level
        self.circuit = Circuit()
        self.tempo = Tempo()
        self.good = False  # the level's own summary of the above: it may be given sequences
        self.seats: set[Seat] = set()
        self.inflight: dict[int, Flight] = {}
        self.heard = 0.0  # loop time of the last sign of life
        self._beat = 0.0  # loop time when it last said what it is
        self._worked = 0.0  # loop time when it last said that a step runs, and none too long
        self._step = 0.0  # seconds that the step had taken which ran then
        self.calls = 0  # answered in full
        self._outbox = _Outbox()
        self._owed: dict[str, None] = {}  # sequences to be released
        self._wake: asyncio.Future[None] | None = None
        self._numbers = 0
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._stub: Any = None
        self._asking: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # For the level.

    def send(self, flight: Flight) -> None:
        """Put a call on its way; the stream must be open."""
        self._numbers += 1
        flight.link, flight.number = self, self._numbers
        self.inflight[flight.number] = flight
        message = self._outbox.last().calls.add()
        flight.owner.fill(flight, message)
        flight.base = message.base
        flight.read = len(message.suffix) + len(message.proposals)
        flight.drawn = message.more + 1
        flight.allowed = CALL_S + TOKEN_S * (flight.read + flight.drawn)
        message.call = flight.number
        message.deadline_ms = int(MAX_CALL_S * 1000)
        flight.sent = self._loop.time()
        self._signal()

    def withdraw(self, flight: Flight) -> None:
        """Its answer is of no use any more."""
        if self.inflight.pop(flight.number, None) is not None and self.ready:
            self._outbox.after(flight.seat.sequence).withdrawn.append(flight.number)
            self._signal()

    def release(self, sequence: str) -> None:
        """The replica may forget the sequence: told at once, or when it is there again."""
        if self.ready:
            self._outbox.after(sequence).released.append(sequence)
            self._signal()
        elif self.info is not None and len(self._owed) < MAX_OWED:
            self._owed[sequence] = None

    @property
    def usable(self) -> bool:
        """Whether it would answer."""
        return self.ready and not self.lifeless

    @property
    def trouble(self) -> str:
        """Why it is not used, in words; "" = it is."""
        if not self.ready:
            return self.why_down
        if self.lifeless:
            return self.lifeless
        if self.draining or self.leaving:
            return "it is being drained"
        return "" if self.circuit.state == "closed" else "it failed a moment ago"

    def overdue(self, now: float, *, due: bool) -> str:
        """Why it has become lifeless; "" = it has not. To be called often: it is asked when needed, or ``due``."""
        if not self.ready:
            return ""
        quiet = now - self.heard
        unsure = self.inflight and now - self._beat > BEAT_S  # a level that refuses calls is heard, and may hang
        if (due or unsure or quiet > BEAT_S) and self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name=f"beat {self.name}")
        if self.lifeless:
            return ""
        return SILENT if quiet > SILENT_S else HANGS if self._hanging else ""

    def expired(self, flight: Flight, now: float) -> bool:
        """Whether it has left a call in flight without an answer for too long.

        As of its last beat: what this process slept through is not the replica's fault.
        """
        idle = self._beat - max(flight.sent, self._worked)
        return idle > flight.allowed or now - flight.sent > MAX_CALL_S

    @property
    def _hanging(self) -> bool:
        """Whether the step that runs, or did when it was last asked, takes too long."""
        rows = self.info.max_rows if self.info is not None else 0
        return self._step > min(max(STEP_S, STEPS * self.tempo.step_of(rows)), MAX_CALL_S)

    # The stream.

    def start(self) -> None:
        """Connect, and stay so until ``close``."""
        self._task = asyncio.create_task(self._run(), name=f"link {self.name}")

    async def close(self) -> None:
        """Break the stream and stop."""
        if self._asking is not None:
            self._asking.cancel()
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        async with self._dial.aio(self.address, OPTIONS) as channel:
            self._stub = LevelServiceStub(channel)
            pause = BACKOFF_S[0]
            while True:
                why = await self._connect(self._stub)
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
            refused = self._listener.accept(info)
            if refused:
                return refused
            self.info = info
            self.tempo.begin(info)
            stream = stub.Extend()
            async with asyncio.timeout(DESCRIBE_S):
                await stream.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            return _explain(error)
        except TimeoutError:
            return f"no stream within {DESCRIBE_S:g} s"
        except Exception as error:  # whatever happens, the link must try again
            log.exception("connecting to level %s at %s failed", self.name, self.address)
            return f"{type(error).__name__}: {error}"
        self.ready, self.lifeless, self.draining, self.why_down = True, "", info.draining, ""
        self._said(info)
        log.info("level %s at %s is connected", self.name, self.address)
        owed, self._owed = self._owed, {}
        if owed:
            self._outbox.last().released.extend(owed)
        self._listener.opened(self)
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
        inflight, listener, now = self.inflight, self._listener, self._loop.time
        try:
            while (response := await stream.read()) is not grpc.aio.EOF:
                self.heard = now()
                if self.lifeless == SILENT or response.draining is not self.draining:
                    self._turn(response.draining)
                for reply in response.replies:
                    number = reply.call
                    flight = inflight.get(number)
                    if flight is None:
                        continue
                    if reply.sequence_us:  # not said where the level did not work on the call
                        flight.seat.said(self, reply.sequence_us)
                    if reply.outcome:
                        del inflight[number]
                    try:
                        listener.replied(flight, reply)
                    except Exception as error:  # one sequence's fault must not end the stream of all others
                        flight.owner.broke(error)
        except grpc.aio.AioRpcError as error:
            return _explain(error)
        except (grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError) as error:
            return f"the stream broke: {error}"
        return "it closed the stream"

    def _broke(self, why: str) -> None:
        """Hand everything back."""
        was, self.ready, self.lifeless, self.why_down = self.ready, False, "", why
        for message in self._outbox.messages:
            self._owed.update(dict.fromkeys(message.released))
        self._outbox.messages.clear()
        flights = list(self.inflight.values())
        self.inflight.clear()
        if was:
            self._listener.lost(self, flights, why)

    def _signal(self) -> None:
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    # Signs of life.

    async def _ask(self) -> None:
        well = False
        try:
            info = await self._stub.Describe(pb.DescribeRequest(), timeout=SILENT_S)
            self._said(info)
            well = not self._hanging
            if self.ready and ((self.lifeless and well) or info.draining is not self.draining):
                self._turn(info.draining)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError):
            pass  # silence says enough
        finally:
            self._asking = None
        self._listener.asked(self, well)

    def _said(self, info: pb.DescribeResponse) -> None:
        """It has said what it is, and how its engine fares."""
        self.heard = self._beat = self._loop.time()
        self._step = info.step_ms / 1000
        if self._step and not self._hanging:
            self._worked = self._beat

    def _turn(self, draining: bool) -> None:
        """It is heard again, or is being drained (which never ends but with the process)."""
        turned = bool(self.lifeless) or (draining and not self.draining)
        self.lifeless, self.draining = "", self.draining or draining
        if turned:
            self._listener.turned(self)


def _explain(error: grpc.aio.AioRpcError) -> str:
    """One line for people."""
    details = " ".join((error.details() or "").split())
    return f"{error.code().name}: {details}" if details else error.code().name
