"""KV checkpoints over a real Valkey: what is written, for whom, and what makes room."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import writer_run
from redis import Redis
from stepped_level import PREFIX, PROMPT, SECONDS, Level, blobs, url

from processes import Process, become, until
from specrouter.v1 import level_pb2 as pb
from specrouter_level import checkpoint
from specrouter_level.held import BLOCK


async def test_another_level_restores_what_one_has_written(redis: Redis) -> None:
    first, second = Level(redis), Level(redis)
    drawn = await first.ask("a", PROMPT, more=63)
    await first.until("written", 4)
    text = PROMPT + drawn
    assert await second.ask("b", text, prompt=len(PROMPT)) == await first.ask("a", text, prompt=len(PROMPT))
    assert second.checkpoints.counts["restored_tokens"] == 4 * BLOCK
    assert second.scheduler.counts.fed == len(text) - 4 * BLOCK
    assert len(blobs(redis)) == 4
    await first.close()
    await second.close()


async def test_requests_with_one_beginning_share_it(redis: Redis) -> None:
    first, second = Level(redis), Level(redis)
    await first.ask("a", PROMPT)
    await first.until("written", 3)
    other = PROMPT[:150] + [7] * 90
    await second.ask("b", other)
    assert second.checkpoints.counts["restored_tokens"] == 2 * BLOCK
    await second.until("written", 1)  # the third block is another text's
    await first.close()
    await second.close()


async def test_the_prompts_end_decides_what_fits(redis: Redis) -> None:
    """Engine stub says bitwise: a block with generated positions is only for who had the same prompt."""
    first, second = Level(redis), Level(redis)
    drawn = await first.ask("a", PROMPT[:100], more=63)
    await first.until("written", 2)
    text = PROMPT[:100] + drawn
    await second.ask("as a prompt", text)
    assert second.checkpoints.counts["restored_tokens"] == BLOCK
    await second.ask("taken over", text, prompt=100)
    assert second.checkpoints.counts["restored_tokens"] == 3 * BLOCK
    await first.close()
    await second.close()


async def test_a_new_prompt_end_voids_what_was_computed_otherwise(redis: Redis) -> None:
    level = Level(redis)
    text = PROMPT[:100] + await level.ask("a", PROMPT[:100], more=40)
    level.call("a", text, prompt=120)
    assert level.held("a").valid == 100
    await level.close()


async def test_policy_prompts_leaves_out_what_is_generated(redis: Redis) -> None:
    level = Level(redis, "prompts")
    await level.ask("a", PROMPT[:100], more=60)
    await level.until("written", 1)
    await level.ask("b", PROMPT[100:], more=63)
    await level.until("written", 2)
    assert level.checkpoints.queued == 0 and len(blobs(redis)) == 2
    await level.close()


async def test_what_is_there_is_not_written_again(redis: Redis) -> None:
    first, second = Level(redis), Level(redis)
    await first.ask("a", PROMPT)
    await first.until("written", 3)
    second.checkpoints._paused = 1e12  # it does not look
    await second.ask("b", PROMPT)
    second.checkpoints._paused = 0.0
    await second.until("known", 3)
    assert second.checkpoints.counts["written"] == 0
    await first.close()
    await second.close()


async def test_tenants_share_nothing(redis: Redis) -> None:
    first, second = Level(redis), Level(redis, key=b"x" * 32)
    await first.ask("a", PROMPT)
    await first.until("written", 3)
    await second.ask("b", PROMPT)
    assert second.checkpoints.counts["restores"] == 0 and second.checkpoints.counts["lookups"] == 1
    await first.close()
    await second.close()


async def test_the_least_used_make_room(redis: Redis) -> None:
    level = Level(redis)
    size = level.checkpoints._framing.blob_bytes
    await level.close()
    level = Level(redis, budget=4 * size + size // 2)
    for number in range(6):
        await level.ask(f"s{number}", [number + 1] * 70)
        await level.until("written", number + 1)
        if number < 5:
            await level.ask("again", [1] * 70)  # the first one is used again and again
            level.scheduler.receive(level.stream, pb.ExtendRequest(released=["again"]))
            await level.until("restores", number + 1)
    assert len(blobs(redis)) == 4 and level.checkpoints.counts["evicted"] == 2
    names = [level.checkpoints._namer.names([n + 1] * 70, 70)[0] for n in range(6)]
    assert [redis.exists(PREFIX + name) for name in names] == [1, 0, 0, 1, 1, 1]
    assert all(redis.ttl(key) > 0 for key in redis.keys(PREFIX + "*"))
    await level.close()


async def test_blocks_of_a_text_that_was_taken_back_are_offered_anew(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = Level(redis)
    monkeypatch.setattr(level.checkpoints, "wanted", lambda held: None)
    await level.ask("a", PROMPT)
    await level.until("written", 3)
    await level.ask("a", PROMPT[:100] + [6] * 100)
    await level.until("written", 5)
    assert len(blobs(redis)) == 5
    await level.close()


@pytest.mark.parametrize("by", ["step", "restore"])
async def test_what_writes_to_a_block_voids_its_copy(by: str, redis: Redis) -> None:
    level = Level(redis)
    other = [9] * 70
    if by == "restore":
        first = Level(redis)
        await first.ask("a", other)
        await first.until("written", 1)
        await first.close()
    read, going, go = level.engine.read, threading.Event(), threading.Event()

    def slowly(slot: int, begin: int, end: int) -> Any:
        going.set()
        go.wait(SECONDS)
        return read(slot, begin, end)

    level.engine.read = slowly
    await level.ask("a", PROMPT[:70])
    await asyncio.to_thread(going.wait, SECONDS)
    await level.ask("a", other)
    assert level.checkpoints.counts["restores"] == (by == "restore")
    go.set()
    await level.until("void", 1)
    await become(lambda: redis.exists(PREFIX + level.checkpoints._namer.names(other, 70)[0]) == 1)
    assert not redis.exists(PREFIX + level.checkpoints._namer.names(PROMPT[:70], 70)[0])
    await level.close()


async def test_a_full_queue_delays_and_never_waits(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_COPIES", 1)
    level = Level(redis)
    read, go = level.engine.read, threading.Event()
    level.engine.read = lambda *place: (go.wait(SECONDS), read(*place))[1]
    await level.ask("a", PROMPT)
    assert level.checkpoints.counts["delayed"] > 0 and level.held("a").offered < 3
    go.set()
    text = PROMPT
    while level.held("a").offered < 3:
        await level.until("written", level.held("a").offered)  # so that there is room for one more
        text = [*text, 5]
        await level.ask("a", text, prompt=len(PROMPT))
    await level.until("written", 3)
    assert len(blobs(redis)) == 3
    await level.close()


async def test_random_texts_calls_and_releases_never_meet_a_wrong_memory(redis: Redis) -> None:
    """The engine compares what its slots hold with what the text makes, in every step of two levels."""

    def restored_all(level: Level) -> bool:
        return not any(held.restoring for held in level.scheduler.slots._held.values())

    rng = random.Random(8)
    levels = [Level(redis, budget=30 * 7000) for _ in range(2)]
    stems = [[rng.randrange(1, 90) for _ in range(400)] for _ in range(3)]
    for turn in range(300):
        level = rng.choice(levels)
        stem = rng.choice(stems)
        prefix = stem[: rng.randrange(1, 400)] + [rng.randrange(1, 90) for _ in range(rng.randrange(0, 3))]
        name = rng.choice("abcdef")
        if rng.random() < 0.1:
            level.scheduler.receive(level.stream, pb.ExtendRequest(released=[name]))
        level.call(name, prefix, more=rng.randrange(0, 40), prompt=rng.choice([len(prefix), max(1, len(prefix) // 2)]))
        if rng.random() < 0.7:
            level.run()
        if turn % 3 == 0:
            await asyncio.sleep(0.002)  # restores go on
    for level in levels:
        await become(partial(restored_all, level))
        level.run()
        assert level.scheduler.busy == 0
    restored = sum(level.checkpoints.counts["restored_tokens"] for level in levels)
    assert restored > 20 * BLOCK, [level.checkpoints.counts for level in levels]
    for level in levels:
        await level.close()


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_writer_that_is_killed_leaves_whole_blocks(seed: int, redis: Redis, tmp_path: Path) -> None:
    """At a random moment of writing 1.5 MB a block; every block that is there is right, and counted."""
    rng = random.Random(seed)
    argv = [sys.executable, writer_run.__file__, url(redis), str(seed)]
    child = Process(argv, tmp_path / "log")
    try:
        assert until(lambda: len(blobs(redis)) >= 8, 20)
        time.sleep(rng.uniform(0, 0.03))  # the random moment
    finally:
        child.kill()
    _, checkpoints = writer_run.made(url(redis))
    places: dict[bytes, tuple[str, int]] = {}
    for number in range(250):
        names = checkpoints._namer.names(writer_run.text(seed, number), writer_run.BLOCKS * BLOCK)
        places |= {(PREFIX + name).encode(): (name, i * BLOCK) for i, name in enumerate(names)}
    found = blobs(redis)
    assert 8 <= len(found) <= 21
    for key in found:
        data = redis.get(key)
        assert data is not None
        checkpoints._framing.read(data, *places[key])  # raises when in doubt
        assert redis.ttl(key) > 0
    index = next(key for key in redis.keys(PREFIX + "*") if b":index:" in key)
    listed = {PREFIX.encode() + name for name in redis.zrange(index, 0, -1)}
    assert set(found) <= listed and len(listed) <= len(found) + 2  # one that was to come, one that made room for it
