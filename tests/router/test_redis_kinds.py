"""Records in a Redis behind TLS, with users, behind sentinels, and in a cluster: all of them real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from owner import Owner

from processes import become
from redis_kinds import Server, cluster, sentinels, tls
from specrouter.v1 import router_pb2
from specrouter_router.lease import Lease
from specrouter_router.metrics import Metrics
from specrouter_router.records import StoreError
from specrouter_router.store import RedisStore

BOUND_S = 30.0


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, Metrics())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def all_works(store: RedisStore, count: int = 40) -> list[Owner]:
    """Many sequences, of all slots: written, read, taken, ended; and leases. Returns them, running."""
    owners = [Owner(f"s{i}") for i in range(count)]
    for owner in owners:
        owner.record.index = "specrouter:family:{f}:owned:me"
        owner.commit(store, 1, 2)
    for owner in owners:
        await owner.hears((2, False))
        owner.commit(store, 3)
        await owner.hears((3, False))
    progress = await store.records.progress([(owner.record.spec.sequence, 1) for owner in owners])
    assert [found.news for found in progress if found is not None] == [[2, 3]] * count
    taken = await store.records.take("s0", 1, "me", "you")
    assert taken is not None and (taken.epoch, taken.owner, list(taken.tokens)) == (2, "you", [1, 2, 3])
    assert await store.records.take("s0", 1, "me", "she") is None
    owners[0].commit(store, 4)
    await owners[0].hears("the record is at epoch 2, round 2: another router owns it")
    assert await store.records.end("s1", router_pb2.FINISH_CANCELLED)
    assert not await store.records.end("s1", router_pb2.FINISH_CANCELLED)
    renewed = asyncio.Event()
    lease = Lease(store.records, "f", "here:1", lambda lapsed: renewed.set())
    lease.start()
    await asyncio.wait_for(renewed.wait(), BOUND_S)
    assert (await lease.routers())[lease.id]["address"] == "here:1"
    assert await lease.living([lease.id, "nobody"]) == {lease.id, "nobody"}, "not before a whole lease"
    await lease.stop(False)
    assert lease.id not in await lease.routers()
    return owners[2:]


async def test_tls_with_certificates_and_a_user(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tls(tmp_path, "router", "specrouter:*") as (where, own):
        async with opened(f"rediss://router:s3cr%2Ft@{where}?{own}") as store:
            await all_works(store, 5)
        for url in (
            f"rediss://router:s3cr%2Ft@{where}?{own.partition('&')[0]}",  # no certificate of its own
            f"rediss://router:s3cr%2Ft@{where}",  # does not know the authority
            f"rediss://router:s3cret@{where}?{own}",
            f"rediss://:s3cr%2Ft@{where}?{own}",
            f"redis://router:s3cr%2Ft@{where}",
        ):
            with pytest.raises(StoreError, match=f"cannot use Redis at {where}") as caught:
                async with opened(url):
                    pass
            assert "s3cr" not in str(caught.value) and "\n" not in str(caught.value)
        assert "s3cr" not in caplog.text


async def test_behind_sentinels_a_failover_loses_nothing(tmp_path: Path) -> None:
    with sentinels(tmp_path, "p/w") as (url, master, replica):
        async with opened(url.replace("p/w", "p%2Fw")) as store:
            owners = await all_works(store, 10)
            master.process.kill()
            for n in range(3):
                for owner in owners:
                    owner.commit(store, 10 + n)
                await asyncio.sleep(0.05)  # commits go on while the replica takes over
            await all_kept(owners, 6)
            assert replica.role()[0] == "master"
            kept = await store.records.read("s5")
            assert kept is not None and list(kept.tokens) == [1, 2, 3, 10, 11, 12]
            assert store.redis.address.startswith("sentinel ") and "p/w" not in store.redis.address


async def test_in_a_cluster_also_when_a_node_dies(tmp_path: Path) -> None:
    with cluster(tmp_path) as (url, servers):
        async with opened(url) as store:
            owners = await all_works(store)
            assert all(_size(server) > 0 for server in servers[:3]), "the records are spread"
            servers[0].process.kill()
            for owner in owners:
                owner.commit(store, 10)
            await all_kept(owners, 4)
            for owner in owners:
                kept = await store.records.read(owner.record.spec.sequence)
                assert kept is not None and list(kept.tokens) == [1, 2, 3, 10]


async def all_kept(owners: list[Owner], tokens: int) -> None:
    def kept() -> list[int]:
        return [owner.record.kept_tokens for owner in owners]

    await become(lambda: set(kept()) == {tokens}, BOUND_S, kept)


def _size(server: Server) -> int:
    found = server.client().execute_command("DBSIZE")
    assert isinstance(found, int)
    return found
