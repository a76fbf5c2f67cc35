"""The proxy's faults, on an echo server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from proxy import Proxy, Way

SOON = 0.2  # seconds in which a good network answers; only used to see that a bad one does not
LIMIT = 5.0


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b"end")
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    made = Proxy("echo", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await made.start()
    yield made
    await made.close()
    server.close()


class Client:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, proxy: Proxy) -> Client:
        host, _, port = proxy.address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def ask(self, data: bytes = b"hello") -> bytes:
        self.writer.write(data)
        return await self.hear(len(data))

    async def hear(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), LIMIT)

    async def hears_nothing(self) -> bool:
        try:
            await asyncio.wait_for(self.reader.readexactly(1), SOON)
        except TimeoutError:
            return True
        return False


async def test_it_forwards_and_passes_the_end_on(proxy: Proxy) -> None:
    client = await Client.to(proxy)
    assert await client.ask(b"x" * 200_000) == b"x" * 200_000
    client.writer.write_eof()
    assert await client.hear(3) == b"end"
    assert await client.reader.read() == b""


async def test_latency_holds_every_byte_back(proxy: Proxy) -> None:
    client = await Client.to(proxy)
    await client.ask()
    proxy.latency(0.1, "up")
    begin = asyncio.get_running_loop().time()
    await client.ask()
    assert 0.1 <= asyncio.get_running_loop().time() - begin < LIMIT
    proxy.heal()
    assert await client.ask() == b"hello"


@pytest.mark.parametrize("ways", [(), ("up",), ("down",)])
async def test_a_black_hole_loses_nothing_when_it_is_healed(proxy: Proxy, ways: tuple[Way, ...]) -> None:
    client = await Client.to(proxy)
    await client.ask()
    proxy.blackhole(*ways)
    client.writer.write(b"hello")
    assert await client.hears_nothing()
    late = await Client.to(proxy)
    late.writer.write(b"later")
    assert await late.hears_nothing()
    proxy.heal()
    assert await client.hear(5) == b"hello"
    assert await late.hear(5) == b"later"


async def test_one_direction_only(proxy: Proxy) -> None:
    client = await Client.to(proxy)
    seen: list[str] = []
    proxy.blackhole("down")
    proxy.after(1, "down", lambda: seen.append("the server got it and answered"))
    client.writer.write(b"hello")
    assert await client.hears_nothing()
    assert seen


async def test_a_reset_is_a_reset(proxy: Proxy) -> None:
    client = await Client.to(proxy)
    await client.ask()
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(client.reader.read(1), LIMIT)
    again = await Client.to(proxy)
    assert await again.ask() == b"hello"


async def test_a_server_that_is_gone_is_a_reset() -> None:
    proxy = Proxy("nobody", "127.0.0.1:1")
    await proxy.start()
    client = await Client.to(proxy)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(client.reader.read(1), LIMIT)
    await proxy.close()


async def test_half_close_ends_one_direction(proxy: Proxy) -> None:
    client = await Client.to(proxy)
    await client.ask()
    proxy.half_close("up")
    assert await client.hear(3) == b"end"


async def test_a_slow_network_keeps_its_rate(proxy: Proxy) -> None:
    client = await Client.to(proxy)
    await client.ask()
    proxy.slow(10_000, "up")
    begin = asyncio.get_running_loop().time()
    assert await client.ask(b"x" * 2000) == b"x" * 2000
    assert asyncio.get_running_loop().time() - begin > 0.1  # the chunk it was waiting for went at full speed
    proxy.heal()


async def test_the_nth_chunk_is_announced_before_it_passes(proxy: Proxy) -> None:
    client = await Client.to(proxy)
    proxy.after(3, "up", proxy.blackhole)
    assert await client.ask() == b"hello"
    assert await client.ask() == b"hello"
    client.writer.write(b"third")
    assert await client.hears_nothing()
    proxy.heal()
    assert await client.hear(5) == b"third"
