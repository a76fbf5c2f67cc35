"""One connection of a client to a router, over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc

from sighting import Ask, Broke, Course, Ended, Got, Note, Opened
from specrouter.v1 import level_pb2, router_pb2
from specrouter.v1.router_pb2_grpc import RouterServiceStub

MODES = {
    "": router_pb2.MODE_UNSPECIFIED,
    "overlapped": router_pb2.MODE_OVERLAPPED,
    "lockstep": router_pb2.MODE_LOCKSTEP,
}
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.enable_retries", 0),  # a repeated request is to be seen
    ("grpc.use_local_subchannel_pool", 1),
)


def channel(address: str, host: str = "") -> grpc.aio.Channel:
    """To a router, or to a gateway that tells routers by ``host``."""
    named = (("grpc.default_authority", host),) if host else ()
    return grpc.aio.insecure_channel(address, options=(*OPTIONS, *named))


async def once(over: grpc.aio.Channel, router: int, course: Course, note: Note, silence: float, model: str) -> None:
    """Ask for what is not there yet, and take what comes until the stream ends, somehow."""
    name, anew = course.ask.name, not course.known
    offset = 0 if anew else course.got
    stub: Any = RouterServiceStub(over)
    note(Opened(time.monotonic(), name, course.stream, router, offset, anew))
    if anew:
        call = stub.Generate(request(course.ask, model), timeout=600)
    else:
        call = stub.Attach(router_pb2.AttachRequest(sequence=name, offset=offset), timeout=600)
    try:
        async for message in _patiently(call, silence):
            course.known = True
            _take(course, message if anew else message.event, note)
            if course.ask.cancel_after and course.got >= course.ask.cancel_after and not course.cancelled:
                course.cancelled = True
                await _cancel(stub, name)
        if not course.done:
            note(Broke(time.monotonic(), name, course.stream, "OK", "the stream ended without an end"))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            course.known = False
        why = " ".join((error.details() or "").split())
        note(Broke(time.monotonic(), name, course.stream, error.code().name, why))
    except TimeoutError:
        note(Broke(time.monotonic(), name, course.stream, "SILENT", f"nothing for {silence:g} s"))
    finally:
        call.cancel()


def _take(course: Course, message: router_pb2.GenerateResponse, note: Note) -> None:
    now, name = time.monotonic(), course.ask.name
    if message.finish:
        finish = router_pb2.Finish.Name(message.finish).removeprefix("FINISH_").lower()
        note(Ended(now, name, course.stream, finish, message.usage.completion_tokens, message.text))
        course.done = True
        return
    note(Got(now, name, course.stream, message.offset, tuple(message.tokens), message.text))
    course.got = max(course.got, message.offset + len(message.tokens))


async def _cancel(stub: Any, name: str) -> None:
    with suppress(grpc.aio.AioRpcError):  # then the text goes on to its end
        await stub.Cancel(router_pb2.CancelRequest(sequence=name), timeout=1)


async def _patiently(call: Any, silence: float) -> AsyncIterator[Any]:
    """The messages of a stream. Raises TimeoutError when none comes for so long."""
    while True:
        async with asyncio.timeout(silence):
            message = await call.read()
        if message is grpc.aio.EOF:
            return
        yield message


def request(ask: Ask, model: str) -> router_pb2.GenerateRequest:
    """On the wire."""
    return router_pb2.GenerateRequest(
        model=model,
        tokens=router_pb2.TokenPrompt(ids=ask.prompt),
        max_tokens=ask.max_tokens,
        sampling=level_pb2.Sampling(seed=ask.seed, temperature=ask.temperature),
        mode=MODES[ask.mode],
        chain=ask.chain,
        stop=[ask.stop] if ask.stop else [],
        sequence=ask.name,
    )
