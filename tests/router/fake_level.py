"""Levels in this process that answer as a test says, and a router over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from unimplemented import Unimplemented

from specrouter.v1 import level_pb2 as pb
from specrouter.v1 import level_pb2_grpc
from specrouter_core.prefix import Text
from specrouter_core.sampling import Sampling
from specrouter_family import family
from specrouter_router import tokenizer
from specrouter_router.metrics import Metrics
from specrouter_router.request import Request
from specrouter_router.router import Router
from specrouter_router.store import RedisStore
from specrouter_router.story import End, Reader

Answer = Callable[[pb.ExtendCall], pb.ExtendReply | None]


def draw(text: list[int]) -> int:
    """The fake levels' language."""
    return 97 + Text(text).hashes[-1] % 26


class FakeLevel(Unimplemented):
    """Answers by the language, unless ``odd`` has something else to say."""

    def __init__(self) -> None:
        self.odd: Answer = lambda _call: None
        self.texts: dict[str, Text] = {}
        self.messages: list[pb.ExtendRequest] = []
        self.silent = False
        self.step_ms = 0

    async def Describe(self, request: Any, context: Any) -> pb.DescribeResponse:  # noqa: N802  # as in the contract
        return pb.DescribeResponse(name="x", model_digest="d", max_length=1000, engine="stub", step_ms=self.step_ms)

    async def Extend(self, requests: Any, context: Any) -> AsyncIterator[pb.ExtendResponse]:  # noqa: N802  # as in the contract
        async for request in requests:
            self.messages.append(request)
            if not self.silent:
                replies = [self.odd(call) or self.answer(call) for call in request.calls]
                if replies:
                    yield pb.ExtendResponse(replies=replies)

    def answer(self, call: pb.ExtendCall) -> pb.ExtendReply:
        text = self.texts.setdefault(call.sequence, Text())
        if not text.holds(call.base, call.base_hash):
            held = pb.OUTCOME_PREFIX_UNKNOWN
            return pb.ExtendReply(call=call.call, outcome=held, held=len(text), held_hash=text.hashes[-1])
        assert call.base > 0 or call.HasField("params")
        text.truncate(call.base)
        text.extend(call.suffix)
        tokens: list[int] = []
        for proposal in [*call.proposals, *[-1] * (call.more + 1)]:
            tokens.append(draw([*text.tokens, *tokens]))
            if proposal not in (-1, tokens[-1]):
                break
        return pb.ExtendReply(call=call.call, tokens=tokens, outcome=pb.OUTCOME_DONE)


async def serve(level: FakeLevel, address: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, int]:
    """Its server, which has started, and the port."""
    server = grpc.aio.server()
    level_pb2_grpc.add_LevelServiceServicer_to_server(level, server)
    port = server.add_insecure_port(address)
    await server.start()
    return server, port


@asynccontextmanager
async def a_router(text: str, redis_url: str) -> AsyncIterator[Router]:
    """A router that has started; ``text`` is its family file."""
    metrics = Metrics()
    store = RedisStore(redis_url, metrics)
    await store.open()
    made = Router(family.parse(text, "test"), tokenizer.ByteTokenizer(), store, metrics)
    try:
        await asyncio.wait_for(made.start(), 10)
        yield made
    finally:
        for sequence in list(made.running.values()):
            sequence.cancel()
        await made.stop(0)
        await store.close()


async def run(router: Router, count: int, traffic: str = "") -> tuple[list[int], End]:
    """A whole sequence."""
    sequence = router.submit(Request(prompt=[1, 2, 3], max_tokens=count, sampling=Sampling(), traffic=traffic))
    reader = Reader(sequence.story)
    async with asyncio.timeout(20):
        while not isinstance(event := await reader.next(), End):
            pass
    return sequence.story.tokens, event


def wanted(count: int = 30) -> list[int]:
    text = [1, 2, 3]
    while len(text) < 3 + count:
        text.append(draw(text))
    return text[3:]
