"""The router object in this process, over the mesh's real levels and store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from processes import become
from specrouter.v1 import level_pb2 as pb
from specrouter_core.sampling import Sampling
from specrouter_family import family
from specrouter_router import tokenizer
from specrouter_router.metrics import Metrics
from specrouter_router.openai_api import make_app
from specrouter_router.refusal import InvalidError, RefusedError
from specrouter_router.request import Request
from specrouter_router.router import Router, StartError
from specrouter_router.store import RedisStore
from specrouter_router.story import End, Reader
from stub_mesh import Level, Mesh, family_file


@asynccontextmanager
async def a_router(mesh: Mesh, levels: Any = None, **kwargs: Any) -> AsyncIterator[Router]:
    metrics = Metrics()
    store = RedisStore(f"redis://127.0.0.1:{mesh.valkey.port}", metrics)
    await store.open()
    text = family_file(levels or mesh.levels.values(), "lockstep", {"draft": 3, "mid": 4, "target": 6})
    made = Router(family.parse(text, "test"), tokenizer.ByteTokenizer(), store, metrics, **kwargs)
    try:
        yield made
    finally:
        for sequence in list(made.running.values()):
            sequence.cancel()  # what is handed over stays in the levels
        await made.stop(0)
        await store.close()


def request(**fields: Any) -> Request:
    usual: dict[str, Any] = {"prompt": [1, 2, 3], "max_tokens": 2000, "sampling": Sampling(seed=1)}
    return Request(**(usual | fields))


async def test_more_than_the_bound_are_told_to_come_again(mesh: Mesh) -> None:
    async with a_router(mesh, max_running=2) as router:
        with pytest.raises(RefusedError, match="starting"):
            router.submit(request())
        await router.start()
        running = [router.submit(request()) for _ in range(2)]
        with pytest.raises(RefusedError) as caught:
            router.submit(request())
        assert caught.value.status == 429
        transport = httpx.ASGITransport(make_app(router))
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
            response = await client.post("/v1/completions", json={"model": "test", "prompt": "x"})
        assert response.status_code == 429 and response.headers["retry-after"]
        assert response.json()["error"]["type"] == "rate_limit_error"
        for sequence in running:
            sequence.cancel()
        await become(lambda: not router.running)
        assert isinstance(await last(router.submit(request(max_tokens=3))), End)


async def last(sequence: Any) -> End:
    reader = Reader(sequence.story)
    async with asyncio.timeout(20):
        while not isinstance(event := await reader.next(), End):
            pass
    return event


async def test_a_family_of_two_vocabularies_is_refused_by_name(mesh: Mesh) -> None:
    async with a_router(mesh) as router:
        router.tokenizer.vocab_digest = "0" * 64
        with pytest.raises(StartError, match=r"the tokenizer and level \w+ at .* have different vocabularies"):
            await asyncio.wait_for(router.start(), 20)


async def test_levels_that_are_too_short_are_left_out(mesh: Mesh, tmp_path: Path) -> None:
    short = Level("mid", 0.8, max_length=100)
    short.start(tmp_path)
    try:
        async with a_router(mesh, [mesh.levels["draft"], short, mesh.levels["target"]]) as router:
            await asyncio.wait_for(router.start(), 40)
            end = await last(router.submit(request(max_tokens=90)))
            assert [level.level for level in end.account.levels] == ["draft", "mid", "target"]
            end = await last(router.submit(request(max_tokens=150)))
            assert [level.level for level in end.account.levels] == ["draft", "target"]
            assert end.reason == "length" and end.refusal is None
            with pytest.raises(InvalidError, match="max_tokens"):
                router.submit(request(max_tokens=2046))
    finally:
        short.kill()


async def test_another_owner_of_the_record_ends_the_sequence(mesh: Mesh) -> None:
    async with a_router(mesh) as router:
        await router.start()
        sequence = router.submit(request())
        reader = Reader(sequence.story)
        await reader.next()
        client = mesh.valkey.client()
        client.hset(f"specrouter:{{{sequence.id}}}:state", "epoch", 9)
        end = await last(sequence)
        assert end.reason is None and end.refusal is not None
        assert "another router owns it" in end.refusal.message
        assert client.hget(f"specrouter:{{{sequence.id}}}:state", "epoch") == b"9"


async def test_a_level_that_has_seen_a_newer_epoch_ends_the_sequence(mesh: Mesh) -> None:
    async with a_router(mesh) as router:
        await router.start()
        sequence = router.submit(request())
        sequence.record.epoch = 0
        await become(lambda: router.links["target"].inflight)
        reply = pb.ExtendReply(outcome=pb.OUTCOME_STALE_EPOCH, message="epoch 3 has been seen")
        flight = router.links["target"].inflight[0]
        sequence.replied(flight, reply)
        end = await last(sequence)
        assert end.refusal is not None and "another router owns the sequence" in end.refusal.message


async def test_the_record_holds_what_was_said(mesh: Mesh) -> None:
    async with a_router(mesh) as router:
        await router.start()
        sequence = router.submit(request(max_tokens=40, stop=("zzz",)))
        await last(sequence)
        record = await router.store.records.read(sequence.id)
        assert record is not None
        assert list(record.tokens) == sequence.story.tokens and len(record.tokens) == 40
        assert record.epoch == 1 and record.round > 1 and record.finish == 2
        assert list(record.spec.prompt) == [1, 2, 3] and list(record.spec.stop) == ["zzz"]
        assert record.spec.params.sampling.seed == 1
        assert await router.store.records.read("nobody") is None
