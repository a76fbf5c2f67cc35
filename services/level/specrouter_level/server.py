"""The LevelService: Extend streams into the scheduler, the rest from what the level is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError

from specrouter.v1 import level_pb2 as pb
from specrouter_family.tls import Tls
from specrouter_level import tokenizer_files
from specrouter_level.drain import Drain
from specrouter_level.driver import Driver
from specrouter_level.engine import Info
from specrouter_level.scheduler import Scheduler
from specrouter_level.stream import Stream

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[pb.ExtendRequest, pb.ExtendResponse]
Files = grpc.aio.ServicerContext[bytes, pb.TokenizerFile]

SERVICE = "specrouter.v1.LevelService"
END_SECONDS = 3.0  # running calls may take so long to end when the server stops
JOIN_SECONDS = 0.5  # and the engine's last step so long after that
IDLE_SECONDS = 60.0  # a sequence without a call for so long is let go of, if nobody needed the room before
OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.max_concurrent_streams", 64),  # of one connection; a router needs one
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
    # A peer that hangs without closing is found by the pings' own timeout, not by keepalive_timeout_ms.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),  # routers ping too
    # gRPC's own bandwidth probes are pings as well: they were seen to cost an idle router its link.
    ("grpc.http2.max_ping_strikes", 0),
)


class LevelServer:
    """One grpc.aio server for one engine. ``model``: the directory whose tokenizer it may send."""

    def __init__(
        self,
        name: str,
        info: Info,
        scheduler: Scheduler,
        driver: Driver,
        *,
        drain: Drain | None = None,
        model: Path | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._name = name
        self._info = info
        self._scheduler = scheduler
        self._driver = driver
        self._model = model
        self._tls = tls
        self.drain = drain or Drain(scheduler)
        self._closing = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=256)
        handlers = {
            # A message that cannot be parsed is None here, so that it ends its stream with a clear status.
            "Extend": grpc.stream_stream_rpc_method_handler(self._extend, _parse, pb.ExtendResponse.SerializeToString),
            "Describe": grpc.unary_unary_rpc_method_handler(
                self._describe, None, pb.DescribeResponse.SerializeToString
            ),
            "Drain": grpc.unary_unary_rpc_method_handler(self._drain, None, pb.DrainResponse.SerializeToString),
            "Tokenizer": grpc.unary_stream_rpc_method_handler(
                self._tokenizer, None, pb.TokenizerFile.SerializeToString
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self, address: str) -> int:
        """Listen on ``host:port``; returns the port. OSError when it is taken, ValueError for bad certificates."""
        try:
            port: int = (
                self._server.add_insecure_port(address)
                if self._tls is None
                else self._server.add_secure_port(address, self._tls.credentials())
            )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
        self._driver.start()
        await self._server.start()
        self._sweeper = asyncio.create_task(self._sweep(), name="idle sequences")
        return port

    async def stop(self) -> None:
        """Take no more calls, let running ones end, close the streams. At most a few seconds."""
        self._scheduler.draining = self._scheduler.closed = True
        self._closing.set()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._server.stop(END_SECONDS)
        self._driver.stop(JOIN_SECONDS)

    async def _sweep(self) -> None:
        """Who has moved to another replica, or whose router is gone, says nothing: let go of it."""
        while True:
            await asyncio.sleep(IDLE_SECONDS / 4)
            self._scheduler.expire(IDLE_SECONDS)

    async def _describe(self, _request: bytes, _context: object) -> pb.DescribeResponse:
        return describe(self._name, self._info, self._scheduler.draining, self._driver.step_ms)

    async def _drain(self, _request: bytes, _context: object) -> pb.DrainResponse:
        self.drain.begin()
        return pb.DrainResponse(sequences=self.drain.left, grace_ms=round(self.drain.grace * 1000))

    async def _tokenizer(self, _request: bytes, context: Files) -> AsyncIterator[pb.TokenizerFile]:
        if self._model is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this level has no model, and so no tokenizer")
        try:
            for path in await asyncio.to_thread(tokenizer_files.listed, self._model):
                parts = tokenizer_files.chunks(path)
                while (part := await asyncio.to_thread(next, parts, None)) is not None:
                    yield pb.TokenizerFile(name=path.name, chunk=part)
        except (tokenizer_files.TokenizerFilesError, OSError) as error:
            log.warning("tokenizer: %s", error)
            await context.abort(grpc.StatusCode.NOT_FOUND, f"tokenizer: {error}")

    async def _extend(self, _requests: AsyncIterator[pb.ExtendRequest], context: Context) -> None:
        ready, room = asyncio.Event(), asyncio.Event()
        stream = Stream(ready.set)
        self.drain.open(stream)
        reader = asyncio.create_task(self._read(context, stream, room))
        closing = asyncio.create_task(self._closing.wait())
        for task in (reader, closing):
            task.add_done_callback(lambda _: ready.set())
        try:
            while True:
                await ready.wait()
                ready.clear()
                while (response := stream.take()) is not None:
                    room.set()
                    await context.write(response)
                if reader.done() and reader.result():
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, reader.result())
                if (reader.done() or closing.done()) and not stream.calls and not stream.waiting:
                    return
        finally:
            self.drain.streams.discard(stream)
            self._scheduler.close(stream)
            reader.cancel()
            closing.cancel()

    async def _read(self, context: Context, stream: Stream, room: asyncio.Event) -> str:
        """Feed the scheduler until the caller ends the stream. Returns what was wrong with it, "" for nothing."""
        while True:
            request: object = await context.read()
            if request is grpc.aio.EOF:
                return ""
            if not isinstance(request, pb.ExtendRequest):
                return "not an ExtendRequest"
            self._scheduler.receive(stream, request)
            self._driver.kick()
            while stream.full:  # the caller does not read its replies: stop reading its calls
                room.clear()
                await room.wait()


def _parse(data: bytes) -> pb.ExtendRequest | None:
    try:
        return pb.ExtendRequest.FromString(data)
    except DecodeError:
        return None


def describe(name: str, info: Info, draining: bool, step_ms: int) -> pb.DescribeResponse:
    """What the level is, and how it fares, on the wire."""
    return pb.DescribeResponse(
        name=name,
        model_digest=info.model_digest,
        vocab_digest=info.vocab_digest,
        vocab_size=info.vocab_size,
        max_length=info.max_length,
        slots=info.slots,
        max_rows=info.max_rows,
        dtype=info.dtype,
        device=info.device,
        engine=info.engine,
        exactness=info.exactness,
        stop_ids=info.stop_ids,
        costs=[pb.StepCost(rows=cost.rows, microseconds=round(cost.seconds * 1e6)) for cost in info.costs],
        draining=draining,
        step_ms=step_ms,
    )
