"""A level in this process over real gRPC, and a router's stream to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from prometheus_client import CollectorRegistry, generate_latest

from specrouter.v1 import level_pb2 as pb
from specrouter.v1.level_pb2_grpc import LevelServiceStub
from specrouter_core.prefix import Text
from specrouter_core.sampling import Sampling
from specrouter_level.drain import Drain
from specrouter_level.driver import Driver
from specrouter_level.engine import Engine, Params, Span
from specrouter_level.metrics import Metrics
from specrouter_level.scheduler import Scheduler
from specrouter_level.server import LevelServer
from specrouter_level.stub import StubEngine, curve
from specrouter_level.worker import Worker

if TYPE_CHECKING:
    from specrouter.v1.level_pb2_grpc import LevelServiceAsyncStub

PROMPT = list(b"once upon a time")
SEED = 11
SECONDS = 10.0  # nothing here may take longer


def stub(name: str = "target", agreement: float = 1.0, step_ms: str = "", slots: int = 64) -> StubEngine:
    return StubEngine(name=name, agreement=agreement, costs=curve(step_ms), max_length=512, slots=slots, max_rows=128)


def alone(prefix: Sequence[int], count: int, engine: StubEngine | None = None) -> list[int]:
    """The text of an engine by itself."""
    engine, text = engine or stub(), list(prefix)
    params = Params(Sampling(seed=SEED), prompt_length=1)
    for _ in range(count):
        text += engine.step([Span(slot=0, start=0, text=text, draws=1, params=params)])[0].tokens
    return text[len(prefix) :]


class Level:
    """A running level and how to reach it."""

    def __init__(self, engine: Engine, grace: float = 10.0, model: Path | None = None) -> None:
        self.scheduler = Scheduler(engine.info)
        self.registry = CollectorRegistry()
        self.metrics = Metrics("mid", self.scheduler, self.registry)
        self.drain = Drain(self.scheduler, grace)
        self.server = LevelServer(
            "mid",
            engine.info,
            self.scheduler,
            Driver(engine, self.scheduler, self.metrics.observe, Worker()),
            drain=self.drain,
            model=model,
        )
        self.address = ""

    def gauge(self, name: str) -> float:
        """One of its numbers."""
        lines = generate_latest(self.registry).decode().splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(f"specrouter_level_{name}{{")))

    @asynccontextmanager
    async def connect(self, *options: tuple[str, int]) -> AsyncIterator[LevelServiceAsyncStub]:
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            yield LevelServiceStub(channel)


@asynccontextmanager
async def serving(engine: Engine, **options: Any) -> AsyncIterator[Level]:
    level = Level(engine, **options)
    level.address = f"127.0.0.1:{await level.server.start('127.0.0.1:0')}"
    try:
        yield level
    finally:
        await level.server.stop()


class Router:
    """One Extend stream."""

    def __init__(self, stub: Any) -> None:
        self.stream = stub.Extend()
        self.number = 0
        self.messages = 0

    def call(self, sequence: str, prefix: Sequence[int], base: int = 0, **fields: Any) -> pb.ExtendCall:
        self.number += 1
        call = pb.ExtendCall(call=self.number, sequence=sequence, base=base, suffix=prefix[base:], deadline_ms=5000)
        if base:
            call.base_hash = Text(prefix[:base]).hashes[-1]
        else:
            call.params.sampling.seed = SEED
            call.params.sampling.temperature = 1
            call.params.prompt_length = 1
        call.MergeFrom(pb.ExtendCall(**fields))
        return call

    async def send(self, *calls: pb.ExtendCall, **fields: Any) -> None:
        await asyncio.wait_for(self.stream.write(pb.ExtendRequest(calls=calls, **fields)), SECONDS)

    async def message(self) -> pb.ExtendResponse:
        self.messages += 1
        response = await asyncio.wait_for(self.stream.read(), SECONDS)
        assert isinstance(response, pb.ExtendResponse)
        return response

    async def ends(self, *numbers: int) -> dict[int, pb.ExtendReply]:
        """The last reply of each of these calls, in whatever messages they come."""
        ended: dict[int, pb.ExtendReply] = {}
        while not set(numbers) <= ended.keys():
            for reply in (await self.message()).replies:
                if reply.outcome != pb.OUTCOME_UNSPECIFIED:
                    ended[reply.call] = reply
        return ended

    async def ask(self, sequence: str, prefix: Sequence[int], base: int = 0, **fields: Any) -> pb.ExtendReply:
        call = self.call(sequence, prefix, base, **fields)
        await self.send(call)
        return (await self.ends(call.call))[call.call]
