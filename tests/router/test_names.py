"""Replicas behind one name, in this process: they come and go with its records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_level import FakeLevel, a_router, run, serve, wanted

from processes import become, free_ports
from specrouter.v1 import level_pb2 as pb
from specrouter_router import endpoints, hedges
from specrouter_router import fleet as fleets
from specrouter_router.router import Router


class Named:
    """Fake levels on addresses of their own behind one name, and a router in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.port = free_ports(1)[0]
        self.hosts: list[str] = []
        self.fakes: dict[str, FakeLevel] = {}
        self.servers: list[Any] = []
        self.router: Router
        monkeypatch.setattr(fleets, "RESOLVE_S", 0.1)
        monkeypatch.setattr(endpoints, "_look_up", lambda _host, port: [f"{host}:{port}" for host in self.hosts])

    async def add(self, host: str) -> None:
        self.fakes[host] = FakeLevel()
        server, _ = await serve(self.fakes[host], f"{host}:{self.port}")
        self.servers.append(server)
        self.hosts.append(host)

    @asynccontextmanager
    async def opened(self, redis_url: str) -> AsyncIterator[Named]:
        await self.add("127.0.0.1")
        text = f'name: f\ntokenizer: bytes\nlevels: [{{name: t, engine: stub, address: "replicas:{self.port}"}}]\n'
        text += "chain: {policy: fixed, windows: {t: 1}}"
        try:
            async with a_router(text, redis_url) as self.router:
                yield self
        finally:
            for server in self.servers:
                await server.stop(0)

    async def run(self, count: int = 30) -> list[int]:
        tokens, end = await run(self.router, count)
        assert end.refusal is None
        return tokens

    def calls(self, host: str) -> int:
        return sum(len(message.calls) for message in self.fakes[host].messages)


@pytest.fixture
async def named(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> AsyncIterator[Named]:
    async with Named(monkeypatch).opened(redis_url) as made:
        yield made


async def test_replicas_come_and_go_with_the_records_of_a_name(named: Named) -> None:
    level = named.router.links["t"]
    assert await named.run() == wanted() and named.calls("127.0.0.1")
    await named.add("127.0.0.2")
    await become(lambda: level.count == 2)
    texts = await asyncio.gather(*(named.run() for _ in range(8)))
    assert all(text == wanted() for text in texts) and named.calls("127.0.0.2")
    before = named.calls("127.0.0.1")
    running = [asyncio.create_task(named.run(600)) for _ in range(4)]
    await become(lambda: named.calls("127.0.0.1") > before)
    named.hosts.remove("127.0.0.1")
    await become(lambda: list(level.fleet.links) == [f"127.0.0.2:{named.port}"])
    assert await asyncio.gather(*running) == [wanted(600)] * 4
    assert named.fakes["127.0.0.1"].messages[-1].released  # what it held is free


async def test_a_name_without_records_leaves_the_last_replica_in_use(named: Named) -> None:
    named.hosts.clear()
    await become(lambda: named.router.links["t"].count == 0)
    assert await named.run() == wanted()


async def test_a_name_that_can_not_be_looked_up_changes_nothing(named: Named, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def fail(_host: str, _port: str) -> list[str]:
        nonlocal asked
        asked += 1
        raise OSError("the name service is away")

    monkeypatch.setattr(endpoints, "_look_up", fail)
    await become(lambda: asked > 2)
    assert named.router.links["t"].count == 1 and await named.run() == wanted()


async def test_a_late_call_goes_on_whatever_becomes_of_its_twin(named: Named, monkeypatch: pytest.MonkeyPatch) -> None:
    """One replica says nothing to a call; the other refuses the second call of it, and answers the third."""
    monkeypatch.setattr(hedges, "STUCK_S", 0.3)
    await named.add("127.0.0.2")
    level = named.router.links["t"]
    await become(lambda: level.count == 2)
    for _ in range(4):
        assert await named.run() == wanted()
    left = {"silent": 1, "refusing": 1}

    def odd(call: pb.ExtendCall) -> pb.ExtendReply | None:
        if left["silent"] and call.base > 10:
            left["silent"] -= 1
            return pb.ExtendReply(call=call.call)  # nothing yet
        if left["refusing"] and not left["silent"]:
            left["refusing"] -= 1
            return pb.ExtendReply(call=call.call, outcome=pb.OUTCOME_INVALID, message="no")
        return None

    for fake in named.fakes.values():
        fake.odd = odd
    assert await named.run() == wanted()
    assert left == {"silent": 0, "refusing": 0}
    assert level.hedges.sent == 1 and level.hedges.won == 0 and not level.inflight
