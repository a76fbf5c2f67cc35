"""A client that comes back, at any router, gets exactly the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from random import Random
from threading import Barrier
from typing import Any

import grpc
import httpx
import psutil
import pytest
from sse import Stream

from processes import until
from specrouter.v1 import level_pb2, router_pb2
from specrouter.v1.router_pb2_grpc import RouterServiceStub
from stub_mesh import Level, Mesh, Router

FREED_S = 1.0  # after a client has left
LONG: dict[str, Any] = {"max_tokens": 400, "temperature": 0.8, "seed": 11}


class GoneError(Exception):
    """The client breaks the connection."""


def leave() -> None:
    raise GoneError


def left(router: Router, after: int = 20, **body: Any) -> Stream:
    """A stream that its client left."""
    stream = Stream()
    with pytest.raises(GoneError):
        stream.start(router, leave, after, **body)
    return stream


@pytest.fixture(scope="module")
def one(fragile: Mesh) -> Router:
    return fragile.router("lockstep")


@pytest.fixture(scope="module")
def other(fragile: Mesh) -> Router:
    return fragile.router("overlapped")


@pytest.fixture
def stub(one: Router) -> Iterator[Any]:
    with grpc.insecure_channel(one.grpc) as channel:
        yield RouterServiceStub(channel)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    "body", [{}, {"stream_options": {"include_usage": True}}, {"specrouter": {"report": False}}], ids=str
)
def test_an_ended_stream_goes_on_from_any_event(
    router: Router, overlapped: Router, chat: bool, body: dict[str, Any]
) -> None:
    whole = Stream().start(router, chat=chat, max_tokens=40, seed=3, **body)
    assert whole.done and whole.finish == "length"
    assert whole.ids[-1] == ("40.2" if whole.usage else "40.1")
    for name in whole.ids:
        for where in (router, overlapped):
            part = whole.since(name).resume(where)
            if name == whole.ids[-1]:
                assert part.statuses == [204]
                continue
            assert part.text == whole.text and part.ids[-1] == whole.ids[-1] and part.done
            assert part.usage == whole.usage and part.tokens == whole.tokens
            assert part.roles == 0
    anew = Stream(whole.sequence).resume(overlapped)
    assert anew.text == whole.text and anew.roles == whole.roles


def test_a_stop_text_is_held_back_in_the_same_way(router: Router, overlapped: Router) -> None:
    text = Stream().start(router, max_tokens=60, seed=5).text
    stop = text[30:33]
    whole = Stream().start(router, max_tokens=60, seed=5, stop=[stop])
    assert whole.finish == "stop" and whole.text == text[: text.index(stop)]
    for name in whole.ids[:-1]:
        assert whole.since(name).resume(overlapped).text == whole.text


def test_a_running_one_is_followed_at_another_router_and_its_owner_not_disturbed(one: Router, other: Router) -> None:
    followed = Stream()
    stream = Stream()

    def follow() -> None:
        followed.sequence = stream.sequence
        followed.resume(other)

    stream.start(one, follow, 20, **LONG)
    assert followed.done and followed.tokens == stream.tokens and followed.text == stream.text
    assert stream.done and len(stream.tokens) == 400
    assert other.metric("specrouter_taken_over_total") == 0


def test_who_leaves_frees_everything_and_may_come_back_anywhere(fragile: Mesh, one: Router, other: Router) -> None:
    whole = Stream().start(other, **LONG)
    taken = other.metric("specrouter_taken_over_total")
    stream = left(one, **LONG)
    assert until(lambda: one.metric("specrouter_sequences") == 0, 1.0)
    assert until(lambda: all(level.gauge("specrouter_level_calls_running") == 0 for level in fragile.levels.values()))
    assert until(lambda: all(level.gauge("specrouter_level_sequences_held") == 0 for level in fragile.levels.values()))
    kept = fragile.valkey.client().hgetall(f"specrouter:{{{stream.sequence}}}:state")
    assert (kept[b"owner"], kept[b"finish"], kept[b"epoch"]) == (b"", b"0", b"1")
    with pytest.raises(GoneError):
        stream.resume(other, leave, 200)
    stream.resume(one)
    assert stream.done and stream.tokens == whole.tokens and stream.text == whole.text
    assert other.metric("specrouter_taken_over_total") == taken + 1
    assert fragile.valkey.client().hget(f"specrouter:{{{stream.sequence}}}:state", "epoch") == b"3"


def connected(ports: list[int]) -> int:
    """Connections that a router with these ports has not closed."""
    there = psutil.net_connections("tcp")
    return sum(one.status in ("ESTABLISHED", "CLOSE_WAIT") and one.laddr.port in ports for one in there)


def test_many_who_leave_at_any_moment_leave_nothing(fragile: Mesh, one: Router) -> None:
    client = fragile.valkey.client()
    before = set(client.keys("specrouter:{*"))
    chance = Random(5)

    def whole(_: int) -> None:
        body = {"model": "test", "prompt": "x", "max_tokens": 1500}
        with suppress(httpx.TimeoutException):
            httpx.post(f"{one.url}/v1/completions", json=body, timeout=chance.random() / 2, trust_env=False)

    def streamed(_: int) -> None:
        left(one, chance.randrange(60), max_tokens=1500)

    def in_grpc(_: int) -> None:
        with grpc.insecure_channel(one.grpc) as channel, suppress(grpc.RpcError):
            request = router_pb2.GenerateRequest(model="test", text="x", max_tokens=1500)
            list(RouterServiceStub(channel).Generate(request, timeout=chance.random() / 2))

    def idle(level: Level, what: str) -> bool:
        return level.gauge(f"specrouter_level_{what}") == 0

    with ThreadPoolExecutor(6) as pool:
        for kind in (whole, streamed, in_grpc):
            list(pool.map(kind, range(8)))
    limit = time.monotonic() + FREED_S
    assert until(lambda: one.metric("specrouter_sequences") == 0, FREED_S)
    for level in fragile.levels.values():
        for what in ("calls_running", "rows_running", "sequences_held", "positions_held"):
            rest = max(limit - time.monotonic(), 0.01)
            assert until(partial(idle, level, what), rest), what
    assert until(lambda: not connected(one.ports), max(limit - time.monotonic(), 0.01))
    states = [client.hmget(key, "owner", "finish") for key in set(client.keys("specrouter:{*:state")) - before]
    assert states and all(state in ([b"", b"0"], [b"", b"2"]) for state in states), states  # free, or at its end
    left_over = set(client.keys("specrouter:{*")) - before
    assert left_over and all(0 < client.ttl(key) <= 3600 for key in left_over)
    assert client.keys("specrouter:family:{test}:owned:*") == []


def test_a_client_that_comes_back_before_it_was_missed(one: Router, other: Router) -> None:
    """Its old connection is still open: the owner goes on until that closes, then the other router does."""
    whole = Stream().start(other, **LONG)
    stream = Stream()
    again = Stream()

    def come_back() -> None:
        again.sequence = stream.sequence
        with pytest.raises(GoneError):
            again.resume(other, leave, 40)
        raise GoneError

    with pytest.raises(GoneError):
        stream.start(one, come_back, 20, **LONG)
    again.resume(other)
    assert again.tokens == whole.tokens and again.text == whole.text


def test_a_repeated_request_is_the_same_sequence(one: Router, other: Router) -> None:
    headers = {"idempotency-key": "order-1:a.b_c"}
    first = left(one, headers=headers, max_tokens=300)
    assert first.sequence == "order-1:a.b_c"
    again = Stream().start(other, headers=headers, max_tokens=300)  # no seed: the first one's holds
    assert again.done and again.tokens[: len(first.tokens)] == first.tokens
    once_more = Stream().start(one, headers=headers, max_tokens=300)
    assert once_more.tokens == again.tokens and once_more.text == again.text
    different = Stream().start(one, headers=headers, max_tokens=301)
    assert different.statuses == [409] and "another request" in different.error["message"]
    for bad in ("", "a b", "x" * 65, "é"):
        refused = Stream().start(one, headers={"idempotency-key": bad.encode()})
        assert refused.statuses == [400], bad


def test_the_same_in_grpc(stub: Any, other: Router) -> None:
    sampling = level_pb2.Sampling(seed=4, temperature=0.9)
    fields: dict[str, Any] = {"model": "test", "text": "once upon", "max_tokens": 200, "sampling": sampling}
    request = router_pb2.GenerateRequest(**fields, sequence="mine")
    call = stub.Generate(request, timeout=30)
    metadata = dict(call.initial_metadata())
    assert metadata["specrouter-sequence"] == "mine" and metadata["specrouter-protected"] == "true"
    got = list(next(call).tokens)
    call.cancel()
    with grpc.insecure_channel(other.grpc) as channel:
        elsewhere = RouterServiceStub(channel)
        attach = router_pb2.AttachRequest(sequence="mine", offset=len(got))
        events = [answer.event for answer in elsewhere.Attach(attach, timeout=30)]
        got += [token for event in events for token in event.tokens]
        assert events[-1].seed == 4 and events[-1].usage.prompt_tokens == 9
        assert events[-1].finish == router_pb2.FINISH_LENGTH
        again = list(elsewhere.Generate(request, timeout=30))
        assert [token for event in again for token in event.tokens] == got and len(got) == 200
        with pytest.raises(grpc.RpcError) as caught:
            list(elsewhere.Generate(router_pb2.GenerateRequest(**fields, sequence="mine", ignore_eos=True), timeout=30))
        assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS


def test_cancel_works_at_any_router(one: Router, other: Router) -> None:
    answers = []
    stream = Stream()

    def cancel() -> None:
        answers.append(httpx.post(f"{other.url}/v1/sequences/cmpl-{stream.sequence}/cancel", trust_env=False).json())

    stream.start(one, cancel, 20, max_tokens=1500)
    assert answers == [{"sequence": stream.sequence, "cancelled": True}]
    assert stream.done and 20 <= len(stream.tokens) < 1500
    again = Stream(stream.sequence).resume(other)
    assert again.done and again.tokens == stream.tokens
    cancel()
    assert answers[-1]["cancelled"] is False
    parked = left(one, max_tokens=1500)
    with grpc.insecure_channel(other.grpc) as channel:
        request = router_pb2.CancelRequest(sequence=parked.sequence)
        assert RouterServiceStub(channel).Cancel(request, timeout=5).cancelled
    assert parked.resume(one).done and len(parked.tokens) < 1500


@pytest.mark.parametrize(
    ("path", "last", "status", "named"),
    [
        ("nobody", None, 404, "sequence"),
        ("x" * 65, None, 400, "name"),
        ("a b", None, 400, "name"),
        ("{}", "x", 400, "Last-Event-ID"),
        ("{}", "-1", 400, "Last-Event-ID"),
        ("{}", "5.3", 400, "Last-Event-ID"),
        ("{}", "9999999999999", 400, "Last-Event-ID"),
        ("{}", "31", 400, "offset"),
    ],
)
def test_what_can_not_be_followed_is_a_clear_error(
    router: Router, path: str, last: str | None, status: int, named: str
) -> None:
    ended = Stream().start(router, max_tokens=30)
    headers = {} if last is None else {"last-event-id": last}
    url = f"{router.url}/v1/sequences/{path.format(ended.sequence)}/stream"
    response = httpx.get(url, headers=headers, trust_env=False)
    assert response.status_code == status
    assert response.json()["error"]["message"].startswith(named)


def test_one_name_at_two_routers_at_the_same_moment_is_one_sequence(one: Router, other: Router) -> None:
    """No seed is given, so two sequences would be two texts."""
    together = Barrier(4)

    def ask(router: Router, name: str) -> Stream:
        together.wait(30)
        return Stream().start(router, headers={"idempotency-key": name}, max_tokens=6, temperature=1.5)

    with ThreadPoolExecutor(4) as pool:
        for number in range(40):
            name = f"race-{number}"
            streams = list(pool.map(ask, (one, other, one, other), [name] * 4))
            assert [stream.statuses for stream in streams] == [[200]] * 4, [stream.error for stream in streams]
            assert all(stream.done and stream.tokens == streams[0].tokens for stream in streams), number


def test_two_requests_of_one_name_at_the_same_moment(one: Router, other: Router) -> None:
    together = Barrier(2)

    def ask(router: Router, name: str, tokens: int) -> Stream:
        together.wait(30)
        return Stream().start(router, headers={"idempotency-key": name}, max_tokens=tokens)

    with ThreadPoolExecutor(2) as pool:
        for number in range(10):
            streams = list(pool.map(ask, (one, other), [f"clash-{number}"] * 2, (6, 7)))
            assert sorted(stream.statuses[0] for stream in streams) == [200, 409]
            (refused,) = [stream for stream in streams if stream.error]
            assert "another request" in refused.error["message"]
