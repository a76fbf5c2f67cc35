"""A TCP proxy that can be told to behave like a bad network, one direction at a time.

No fault loses or changes bytes of a connection that goes on: TCP would not either. A black hole holds them until it is
healed (what a partition looks like to both ends), a reset ends the connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

HOST = "127.0.0.1"
CHUNK = 1 << 16
SLOW_CHUNK = 256  # bytes let through at once where the bandwidth is limited

LATE_S = 0.001  # after a chunk was passed on, somebody works on it

Way = Literal["up", "down"]  # up: from the one who connects to the server
WAYS: tuple[Way, Way] = ("up", "down")


Sort = Callable[["Way", bytes], str]  # what a chunk is: the step of the protocol that it makes, "" for none


@dataclass(slots=True, eq=False)
class Alarm:
    """Somebody is told of the ``left``-th chunk from now on that makes ``step`` ("" = of any): before or after it is
    passed on.
    """

    left: int
    act: Callable[[], None]
    step: str = ""
    late: bool = False


@dataclass(slots=True)
class _Direction:
    """What happens to bytes that go this way, on all connections."""

    delay: float = 0.0  # seconds
    rate: float = 0.0  # bytes per second; 0 = no limit
    open: asyncio.Event = field(default_factory=asyncio.Event)
    alarms: list[Alarm] = field(default_factory=list)

    def count(self, step: str) -> list[Alarm]:
        """A chunk came, and nothing of it has been passed on yet. Returns who is to be told afterwards."""
        due = []
        for alarm in list(self.alarms):
            if alarm.step in ("", step):
                alarm.left -= 1
                if alarm.left <= 0:
                    self.alarms.remove(alarm)
                    due.append(alarm)
        for alarm in due:
            if not alarm.late:
                alarm.act()
        return [alarm for alarm in due if alarm.late]


class Proxy:
    """Forwards its port to ``address`` (host:port). ``sort`` says what a chunk is."""

    def __init__(self, name: str, address: str, sort: Sort = lambda _way, _data: "") -> None:
        self._sort = sort
        self.name = name
        self.address = ""  # its own, once it has started
        self.connections = 0  # so far
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._ways: dict[Way, _Direction] = {way: _Direction() for way in WAYS}
        for direction in self._ways.values():
            direction.open.set()
        self._pairs: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> str:
        """Listen; returns the address."""
        self._server = await asyncio.start_server(self._accept, HOST, port)
        self.address = f"{HOST}:{self._server.sockets[0].getsockname()[1]}"
        return self.address

    async def close(self) -> None:
        """Break all connections and listen no more."""
        if self._server is not None:
            self._server.close()
        self.heal()
        self.reset()
        for task in list(self._pairs):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # Faults. Each holds until ``heal``, but for reset and half_close, which are over when they happened.

    def heal(self) -> None:
        """A good network again: what was held goes on."""
        for direction in self._ways.values():
            direction.delay = direction.rate = 0.0
            direction.open.set()

    def latency(self, seconds: float, *ways: Way) -> None:
        """All bytes come later by ``seconds``, those read together together."""
        for way in ways or WAYS:
            self._ways[way].delay = seconds

    def slow(self, rate: float, *ways: Way) -> None:
        """Not more than ``rate`` bytes per second of one connection pass."""
        for way in ways or WAYS:
            self._ways[way].rate = rate

    def blackhole(self, *ways: Way) -> None:
        """Nothing passes, new connections get no answer, nobody is told."""
        for way in ways or WAYS:
            self._ways[way].open.clear()

    def reset(self) -> None:
        """All connections end with a TCP reset on both sides."""
        for writers in self._pairs.values():
            for writer in writers:
                _abort(writer)

    def half_close(self, way: Way) -> None:
        """On all connections, the receiving end of this direction sees the end of the stream; the other goes on."""
        for writers in self._pairs.values():
            with suppress(OSError, RuntimeError):
                writers[WAYS.index(way)].write_eof()

    def after(self, chunks: int, way: Way, act: Callable[[], None], step: str = "", *, late: bool = False) -> Alarm:
        """``act`` is called when so many more chunks (of this step) have come this way: before the last of them is
        passed on, or, ``late``, a millisecond after that.
        """
        alarm = Alarm(chunks, act, step, late)
        self._ways[way].alarms.append(alarm)
        return alarm

    def forget(self, alarm: Alarm) -> None:
        """Nobody is told any more."""
        for direction in self._ways.values():
            if alarm in direction.alarms:
                direction.alarms.remove(alarm)

    # Forwarding.

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._connection(reader, writer))
        self._pairs[task] = (writer, writer)
        task.add_done_callback(lambda done: self._pairs.pop(done, None))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        for way in WAYS:  # a handshake needs both
            await self._ways[way].open.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            _abort(writer)
            return
        for one in (writer, far_writer):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs[task] = (far_writer, writer)  # in the order of WAYS: who gets what goes this way
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward("up", reader, far_writer))
                both.create_task(self._forward("down", far_reader, writer))
        except* (OSError, RuntimeError):  # one end is gone, or was told that the stream ended
            pass
        finally:
            for one in (writer, far_writer):
                _abort(one)

    async def _forward(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        direction = self._ways[way]
        while data := await reader.read(SLOW_CHUNK if direction.rate else CHUNK):
            late = direction.count(self._sort(way, data))
            if direction.delay:
                await asyncio.sleep(direction.delay)  # the fault
            if direction.rate:
                await asyncio.sleep(len(data) / direction.rate)  # the fault
            await direction.open.wait()
            writer.write(data)
            for alarm in late:
                asyncio.get_running_loop().call_later(LATE_S, alarm.act)
            await writer.drain()
        await direction.open.wait()
        writer.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection by a reset, not by an orderly close."""
    with suppress(OSError):
        connection = writer.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
