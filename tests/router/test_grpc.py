"""RouterService over a real channel."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from processes import until
from specrouter.v1 import level_pb2, router_pb2
from specrouter.v1.router_pb2_grpc import RouterServiceStub
from stub_mesh import Mesh, Router


@pytest.fixture
def stub(router: Router) -> Iterator[Any]:
    with grpc.insecure_channel(router.grpc) as channel:
        yield RouterServiceStub(channel)


def request(**fields: Any) -> router_pb2.GenerateRequest:
    usual: dict[str, Any] = {"model": "test", "text": "once upon", "max_tokens": 30}
    return router_pb2.GenerateRequest(**(usual | fields))


def test_generate_is_the_rest_interface_token_by_token(stub: Any, router: Router) -> None:
    sampling = level_pb2.Sampling(seed=7, temperature=0.8, top_p=0.9)
    *parts, last = stub.Generate(request(sampling=sampling, report=True), timeout=30)
    rest = router.complete(max_tokens=30, seed=7, temperature=0.8, top_p=0.9)
    tokens = [token for part in parts for token in part.tokens]
    assert tokens == rest["specrouter"]["tokens"]
    assert "".join(part.text for part in [*parts, last]) == rest["choices"][0]["text"]
    assert [part.offset for part in parts] == [sum(len(p.tokens) for p in parts[:i]) for i in range(len(parts))]
    assert last.finish == router_pb2.FINISH_LENGTH and last.seed == 7
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (9, 30)
    names = [level.level for level in last.report.levels]
    origins = [names[origin] for part in parts for origin in part.origins]
    assert names == ["draft", "mid", "target"] and set(origins) <= set(names) and len(origins) == 30
    assert sum(level.committed for level in last.report.levels) == 30


def test_chat_and_ids(stub: Any) -> None:
    messages = [router_pb2.ChatMessage(role="user", content="hi")]
    chat = router_pb2.GenerateRequest(model="test", max_tokens=9, chat=router_pb2.ChatPrompt(messages=messages))
    assert list(stub.Generate(chat, timeout=30))[-1].usage.completion_tokens == 9
    ids = router_pb2.GenerateRequest(model="test", max_tokens=9, tokens=router_pb2.TokenPrompt(ids=b"once upon"))
    greedy = level_pb2.Sampling()
    ids.sampling.CopyFrom(greedy)
    text = request(max_tokens=9, sampling=greedy)
    assert all_text(stub.Generate(ids, timeout=30)) == all_text(stub.Generate(text, timeout=30))


def all_text(parts: Any) -> str:
    return "".join(part.text for part in parts)


def test_attach_replays_from_any_token(stub: Any) -> None:
    *parts, last = stub.Generate(request(), timeout=30)
    tokens = [token for part in parts for token in part.tokens]
    for offset in (0, 11, 30):
        events = [
            a.event for a in stub.Attach(router_pb2.AttachRequest(sequence=last.sequence, offset=offset), timeout=9)
        ]
        assert [token for event in events for token in event.tokens] == tokens[offset:]
        assert events[-1].finish == router_pb2.FINISH_LENGTH
        assert all_text(events) == all_text(parts)[offset:]


def test_attach_reads_what_another_router_finished(stub: Any, overlapped: Router) -> None:
    *parts, last = stub.Generate(request(), timeout=30)
    with grpc.insecure_channel(overlapped.grpc) as channel:
        attach = router_pb2.AttachRequest(sequence=last.sequence, offset=3)
        events = [a.event for a in RouterServiceStub(channel).Attach(attach, timeout=9)]
    assert all_text(events) == all_text(parts)[3:]
    assert events[-1].finish == router_pb2.FINISH_LENGTH


def test_attach_follows_a_running_sequence(stub: Any) -> None:
    generating = stub.Generate(request(max_tokens=1500), timeout=30)
    first = next(generating)
    attached = stub.Attach(router_pb2.AttachRequest(sequence=first.sequence), timeout=30)
    tokens = [token for part in [first, *generating] for token in part.tokens]
    assert [token for answer in attached for token in answer.event.tokens] == tokens and len(tokens) == 1500


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": "x"}, "model"),
        ({"text": ""}, "text"),
        ({"text": "x" * 3000}, "text"),
        ({"max_tokens": 4_000_000_000}, "max_tokens"),
        ({"sampling": level_pb2.Sampling(temperature=float("nan"))}, "sampling.temperature"),
        ({"sampling": level_pb2.Sampling(temperature=-1)}, "sampling.temperature"),
        ({"sampling": level_pb2.Sampling(top_p=0)}, "sampling.top_p"),
        ({"sampling": level_pb2.Sampling(logit_bias={1: 500})}, "sampling.logit_bias"),
        ({"stop": ["x"] * 300}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"chain": ["draft"]}, "chain"),
        ({"chain": ["nobody", "target"]}, "chain"),
    ],
)
def test_bad_input_names_the_field(stub: Any, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request(**fields), timeout=10))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").startswith(f"{named}:")


def test_bad_prompts_name_the_field(stub: Any) -> None:
    bad = {
        "prompt": router_pb2.GenerateRequest(model="test"),
        "tokens": router_pb2.GenerateRequest(model="test", tokens=router_pb2.TokenPrompt(ids=[70000])),
        "chat.messages": router_pb2.GenerateRequest(model="test", chat=router_pb2.ChatPrompt()),
        "chat.messages.0.role": router_pb2.GenerateRequest(
            model="test", chat=router_pb2.ChatPrompt(messages=[router_pb2.ChatMessage(role="tool", content="x")])
        ),
    }
    for named, message in bad.items():
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(message, timeout=10))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert (caught.value.details() or "").startswith(f"{named}:")


def test_unknown_sequences(stub: Any) -> None:
    assert not stub.Cancel(router_pb2.CancelRequest(sequence="nobody"), timeout=5).cancelled
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Attach(router_pb2.AttachRequest(sequence="nobody"), timeout=5))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        stub.Cancel(router_pb2.CancelRequest(), timeout=5)
    assert (caught.value.details() or "").startswith("sequence:")


def test_cancel_and_a_gone_client_free_the_levels(mesh: Mesh, stub: Any, router: Router) -> None:
    generating = stub.Generate(request(max_tokens=2000), timeout=30)
    first = next(generating)
    assert stub.Cancel(router_pb2.CancelRequest(sequence=first.sequence), timeout=5).cancelled
    assert list(generating)[-1].finish == router_pb2.FINISH_CANCELLED
    gone = stub.Generate(request(max_tokens=2000), timeout=30)
    next(gone)
    gone.cancel()
    events = router.events(max_tokens=2000)
    next(events)
    events.close()  # closes the connection
    assert until(lambda: router.metric("specrouter_sequences") == 0)
    assert until(lambda: all(level.gauge("specrouter_level_calls_running") == 0 for level in mesh.levels.values()))
    assert until(lambda: all(level.gauge("specrouter_level_sequences_held") == 0 for level in mesh.levels.values()))


def test_garbage_leaves_the_server_serving(stub: Any, router: Router) -> None:
    host, port = router.grpc.split(":")
    for garbage in (b"\x00" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000):
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(garbage)
            connection.settimeout(0.2)
            with suppress(OSError):
                connection.recv(100)
    with grpc.insecure_channel(router.grpc) as channel:
        call: grpc.UnaryStreamMultiCallable[bytes, bytes]
        call = channel.unary_stream("/specrouter.v1.RouterService/Generate")
        with pytest.raises(grpc.RpcError) as caught:
            list(call(b"\xff\xff\xff\xff", timeout=5))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert list(stub.Generate(request(), timeout=30))[-1].usage.completion_tokens == 30
