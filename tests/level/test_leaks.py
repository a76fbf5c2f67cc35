"""Whatever becomes of sequences and streams, nothing of them stays: the level's own gauges count."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from live_level import PROMPT, SECONDS, Level, Router, alone, serving, stub
from redis import Redis
from remembering import Remembering
from stepped_level import url

from processes import become
from specrouter.v1 import level_pb2 as pb
from specrouter_level import server
from specrouter_level.block_store import TTL_S
from specrouter_level.checkpoint import Checkpoints
from specrouter_level.checkpoint_settings import Settings, where
from specrouter_level.held import Held

ALL = ("sequences_held", "sequences_attached", "calls_running", "rows_running", "positions_held")
COUNT = 200


async def emptied(level: Level, names: tuple[str, ...] = ALL) -> None:
    """All gauges are 0 within the second that is promised."""

    def left() -> dict[str, float]:
        return {name: value for name in names if (value := level.gauge(name))}

    await become(lambda: not left(), 1.0, left)


async def some(router: Router, first: int, count: int, rng: random.Random) -> list[str]:
    """Sequences that are drawing."""
    names = [f"s{first + i}" for i in range(count)]
    await router.send(
        *(router.call(name, [*PROMPT, rng.randrange(1, 200)], more=rng.randrange(1, 64)) for name in names)
    )
    return names


async def test_released_sequences_leave_nothing() -> None:
    rng = random.Random(1)
    async with serving(stub(step_ms="1:3", slots=24)) as level, level.connect() as service:
        router = Router(service)
        for first in range(0, COUNT, 20):
            names = await some(router, first, 20, rng)
            for name in names[:10]:  # while they draw
                await router.send(released=[name])
            await router.ends(*range(router.number - 9, router.number + 1))
            await router.send(released=names[10:])
            await become(lambda: len(level.scheduler.slots._free) == 24)
        await emptied(level)
        assert len(level.scheduler.slots._free) == 24
        assert not router.stream.done() and level.gauge("slots") == 24


async def test_broken_streams_leave_nothing_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)
    rng = random.Random(2)
    async with serving(stub(step_ms="1:3", slots=64)) as level:
        for first in range(0, COUNT, 20):
            async with level.connect() as service:
                router = Router(service)
                await some(router, first, 20, rng)
                if rng.random() < 0.5:
                    await router.message()
                router.stream.cancel()
        await emptied(level, ("sequences_attached", "calls_running", "rows_running"))
        await emptied(level)
        assert len(level.scheduler.slots._free) == 64 and not level.drain.streams


async def test_sequences_of_broken_streams_are_in_nobodys_way() -> None:
    async with serving(stub(slots=8)) as level, level.connect() as living:
        stays = Router(living)
        assert (await stays.ask("stays", PROMPT)).outcome == pb.OUTCOME_DONE
        for turn in range(5):
            async with level.connect() as service:
                router = Router(service)
                for i in range(7):
                    assert (await router.ask(f"{turn}-{i}", PROMPT)).outcome == pb.OUTCOME_DONE
            await become(lambda: len(level.drain.streams) == 1)
        reply = await stays.ask("stays", [*PROMPT, 1], len(PROMPT))
        assert reply.outcome == pb.OUTCOME_DONE  # those of broken streams made room, though they were used later
        assert level.gauge("sequences_attached") == 1


async def test_a_sequence_that_has_moved_away_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its router's stream is open, for others, and nobody released it."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.4)
    async with serving(stub(step_ms="1:3", slots=8)) as level, level.connect() as service:
        router = Router(service)
        for name in ("stays", "moved", "hedged"):
            await router.ask(name, PROMPT)
        limit = asyncio.get_running_loop().time() + SECONDS
        while level.gauge("sequences_held") > 1:
            assert asyncio.get_running_loop().time() < limit
            assert (await router.ask("stays", PROMPT, len(PROMPT))).outcome == pb.OUTCOME_DONE
            await asyncio.sleep(0.05)  # it is asked now and then, as by a client that reads
        assert level.gauge("expirations_total") == 2 and level.scheduler.slots.get("stays") is not None
        back = await router.ask("moved", PROMPT, len(PROMPT))
        assert back.outcome == pb.OUTCOME_PREFIX_UNKNOWN and back.held == 0
        assert list((await router.ask("moved", PROMPT, more=7)).tokens) == alone(PROMPT, 8)


async def test_superseded_withdrawn_and_expired_calls_leave_nothing() -> None:
    rng = random.Random(3)
    async with serving(stub(step_ms="1:3", slots=8)) as level, level.connect() as service:
        router = Router(service)
        for _ in range(COUNT // 4):
            name = rng.choice("abcd")
            calls = [router.call(name, PROMPT, more=64, deadline_ms=rng.choice([5, 5000])) for _ in range(4)]
            await router.send(*calls)
            await router.send(withdrawn=[call.call for call in calls])
            await router.ends(*(call.call for call in calls))
        await router.send(released=list("abcd"))
        await emptied(level)
        assert len(level.scheduler.slots._free) == 8


@asynccontextmanager
async def checkpointed(redis: Redis, slots: int) -> AsyncIterator[tuple[Level, Checkpoints]]:
    """A level that computes 100 tokens a second, so that restoring is always worth it."""
    engine = Remembering(slots=slots, max_length=512)
    level = Level(engine)
    settings = Settings("all", where(url(redis)), "exact", 50 * 14_000)
    checkpoints = Checkpoints(settings, engine, engine)
    checkpoints.prices.stepped = lambda rows, seconds: None  # type: ignore[method-assign] # a stub's step costs nothing
    level.scheduler.checkpoints = checkpoints
    level.address = f"127.0.0.1:{await level.server.start('127.0.0.1:0')}"

    def restored(held: Held) -> None:
        level.scheduler.restored(held)
        level.server._driver.kick()

    checkpoints.start(restored)
    try:
        yield level, checkpoints
    finally:
        await level.server.stop()
        await asyncio.wait_for(asyncio.to_thread(checkpoints.stop), SECONDS)
    assert not any(thread.is_alive() for thread in checkpoints._threads)


async def freed(level: Level, checkpoints: Checkpoints, slots: int) -> None:
    """Every slot is free and no restore is counted as under way, within the second that is promised."""
    await become(lambda: len(level.scheduler.slots._free) == slots and checkpoints._waiting < 1e-9, 1.0)
    assert sorted(level.scheduler.slots._free) == list(range(slots))


def passing(redis: Redis) -> bool:
    """Whether nothing in Redis is for ever."""
    return all(0 < redis.ttl(key) <= TTL_S for key in redis.scan_iter())


async def test_checkpoints_leave_nothing_in_queues_and_slots(redis: Redis) -> None:
    rng = random.Random(4)
    async with checkpointed(redis, 8) as (level, checkpoints), level.connect() as service:
        router = Router(service)
        for first in range(0, COUNT, 5):
            texts = [[rng.choice([5, 6])] * rng.randrange(65, 300) for _ in range(5)]
            calls = [router.call(f"s{first + i}", text, more=9) for i, text in enumerate(texts)]
            await router.send(*calls)
            await router.send(released=[call.sequence for call in rng.sample(calls, 3)])
            await router.ends(*(call.call for call in calls))
            await router.send(released=[call.sequence for call in calls])
        await freed(level, checkpoints, 8)
        await emptied(level, (*ALL, "kv_queued", "kv_bytes_held"))
        assert checkpoints.counts["written"] > 0
    assert 0 < redis.dbsize() <= 51 and passing(redis)


async def test_what_ends_while_it_is_restored_is_freed_at_once(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 clients cancel or vanish while a slow Redis is asked for their blocks."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)
    rng = random.Random(5)
    text = [5] * 300
    async with checkpointed(redis, 24) as (level, checkpoints), level.connect() as service:
        router = Router(service)
        await router.ask("first", text)
        await become(lambda: checkpoints.counts["written"] >= 300 // 64)
        await router.send(released=["first"])
        store = checkpoints._stores[0]
        get, asked = store.get, threading.Event()

        def slowly(name: str) -> bytes | None:
            asked.set()
            time.sleep(0.4)  # a slow Redis
            return get(name)

        monkeypatch.setattr(store, "get", slowly)
        clients = [Router(service) for _ in range(24)]
        for i, client in enumerate(clients):
            await client.send(client.call(f"s{i}", text, more=9))
        assert await asyncio.to_thread(asked.wait, SECONDS)
        await become(lambda: level.gauge("calls_running") == 24)
        restoring = [held for held in level.scheduler.slots._held.values() if held.restoring]
        assert len(restoring) > 12
        for i, client in enumerate(clients):
            if rng.random() < 0.5:
                await client.send(released=[f"s{i}"])
            else:
                client.stream.cancel()
        await freed(level, checkpoints, 24)
        await emptied(level, (*ALL, "kv_bytes_held"))
        assert len(level.drain.streams) < 24
        again = await router.ask("again", [7, *text])
        assert again.outcome == pb.OUTCOME_DONE
    assert passing(redis)
