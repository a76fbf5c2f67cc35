"""KV checkpoints in a Redis behind TLS with users, behind sentinels, and in a cluster: all of them real."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from stepped_level import PREFIX, PROMPT, Level

from processes import become
from redis_kinds import cluster, sentinels, tls
from specrouter_level import checkpoint
from specrouter_level.held import BLOCK

BLOCKS = len(PROMPT) // BLOCK


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These servers share two cores with other tests."""
    monkeypatch.setattr(checkpoint, "READ_S", 2.0)
    monkeypatch.setattr(checkpoint, "PAUSE_S", 0.2)


async def passed_on(url: str, first: int) -> None:
    """One level writes the blocks of a text that begins with ``first``, another finds them all."""
    one, two = Level(url), Level(url)
    try:
        text = [first, *PROMPT]
        want = await one.ask("a", text)
        await one.until("written", BLOCKS)
        assert await two.ask("b", text) == want
        assert two.checkpoints.counts["restored_tokens"] == BLOCKS * BLOCK and not two.checkpoints.ignored
    finally:
        await one.close()
        await two.close()


async def found_again(url: str, first: int) -> None:
    """Blocks that were written before are found, sooner or later, and new ones are written."""
    level = Level(url)
    try:
        for n in range(200):
            await level.ask(f"s{n}", [first, *PROMPT])
            if level.checkpoints.counts["restored_tokens"] >= BLOCKS * BLOCK:
                break
            level.scheduler.slots.release(level.held(f"s{n}"))
            await asyncio.sleep(0.1)  # a level asks a Redis that it lost only now and then, and when it is asked itself
        assert level.checkpoints.counts["restored_tokens"] >= BLOCKS * BLOCK, level.checkpoints.ignored
        before = level.checkpoints.counts["written"]
        await level.ask("new", [first + 1, *PROMPT])
        await level.until("written", before + BLOCKS)
    finally:
        await level.close()


async def test_tls_with_certificates_and_a_user(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tls(tmp_path, "level", "specrouter:kv:*") as (where, own):
        await passed_on(f"rediss://level:s3cr%2Ft@{where}?{own}", 1)
        for wrong in (
            f"rediss://level:s3cr%2Ft@{where}?{own.partition('&')[0]}",  # no certificate of its own
            f"rediss://level:s3cret@{where}?{own}",
        ):
            level = Level(wrong)
            await level.ask("a", [1, *PROMPT])  # is computed
            assert level.scheduler.counts.fed == len(PROMPT) + 1
            await level.until("failed", 1)
            await level.close()
        assert "s3cr" not in caplog.text


async def test_behind_sentinels_also_after_a_failover(tmp_path: Path) -> None:
    with sentinels(tmp_path, "p/w") as (asked, master, replica):
        url = asked.replace("p/w", "p%2Fw")
        await passed_on(url, 1)
        there = replica.client()
        await become(lambda: len(there.keys(PREFIX + "*")) == BLOCKS + 1)
        master.process.kill()
        await found_again(url, 1)
        assert replica.role()[0] == "master"


async def test_in_a_cluster_also_when_a_node_dies(tmp_path: Path) -> None:
    with cluster(tmp_path) as (url, servers):
        for first in range(1, 90, 10):
            await passed_on(url, first)
        sizes = [server.client().dbsize() for server in servers]
        assert all(sizes[:3]), "the blocks are spread"
        await become(lambda: servers[3].client().dbsize() == sizes[0])
        servers[0].process.kill()
        await found_again(url, 1)


async def test_a_cluster_that_is_not_there_is_none_of_the_levels_business() -> None:
    level = Level("redis+cluster://127.0.0.1:1")
    assert await level.ask("a", PROMPT)
    await level.until("failed", 1)
    assert level.scheduler.counts.fed == len(PROMPT) and level.checkpoints.counts["written"] == 0
    await level.close()
