"""Slow is not dead: levels with steps of many times a call's deadline are waited for, one whose step never ends is not.

The levels are real, over real gRPC; only their engines' steps end when a test says.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from fake_level import FakeLevel, a_router, run, serve

from processes import become
from specrouter.v1 import level_pb2 as pb
from specrouter_core.sampling import Sampling
from specrouter_level.driver import Driver
from specrouter_level.engine import Drawn, Memory, Params, Span
from specrouter_level.scheduler import Scheduler
from specrouter_level.server import LevelServer
from specrouter_level.stub import StubEngine
from specrouter_level.worker import Worker
from specrouter_router import link, parking, replicas
from specrouter_router.link import HANGS, Link
from specrouter_router.request import Request
from specrouter_router.router import Router
from specrouter_router.story import End, Reader

CALL_S, STEP_S = 0.1, 0.5
SOON_S = 3.0  # what hangs is given up by then, on a busy machine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds, made small."""
    monkeypatch.setattr(link, "CALL_S", CALL_S)
    monkeypatch.setattr(link, "TOKEN_S", 0.0)
    monkeypatch.setattr(link, "STEP_S", STEP_S)
    monkeypatch.setattr(link, "BEAT_S", 0.02)
    monkeypatch.setattr(replicas, "LOOK_S", 0.01)
    monkeypatch.setattr(parking, "PATIENCE_S", 0.2)


class Heavy:
    """A stub's draws by steps that take ``seconds``, and that do not end while ``gate`` is closed."""

    inline = False

    def __init__(self, name: str, agreement: float = 1.0, max_rows: int = 64) -> None:
        self.stub = StubEngine(name=name, agreement=agreement, costs=(), max_length=1000, slots=8, max_rows=max_rows)
        self.info = self.stub.info
        self.memory: Memory | None = None
        self.seconds = 0.0
        self.steps = 0  # begun
        self.gate = threading.Event()
        self.gate.set()

    def step(self, spans: Sequence[Span]) -> list[Drawn]:
        self.steps += 1
        time.sleep(self.seconds)
        self.gate.wait(60)
        return self.stub.step(spans)


def words(count: int, prompt: Sequence[int] = (1, 2, 3)) -> list[int]:
    """The target's own text."""
    engine, text = Heavy("target").stub, list(prompt)
    params = Params(Sampling(), prompt_length=len(prompt))
    for _ in range(count):
        text += engine.step([Span(slot=0, start=0, text=text, draws=1, params=params)])[0].tokens
    return text[len(prompt) :]


@asynccontextmanager
async def meshed(redis_url: str, **engines: list[Heavy]) -> AsyncIterator[Router]:
    """A router over levels by name, each with one replica for each of its engines."""
    async with AsyncExitStack() as stack:
        levels = []
        for name, copies in engines.items():
            addresses = []
            for engine in copies:
                scheduler = Scheduler(engine.info)
                driver = Driver(engine, scheduler, lambda *_: None, Worker())
                server = LevelServer(name, engine.info, scheduler, driver)
                addresses.append(f'"127.0.0.1:{await server.start("127.0.0.1:0")}"')
                stack.push_async_callback(server.stop)
                stack.callback(engine.gate.set)
            levels.append(f"{{name: {name}, engine: stub, addresses: [{', '.join(addresses)}]}}")
        text = f"name: f\ntokenizer: bytes\nlevels: [{', '.join(levels)}]\nchain: {{policy: fixed, mode: lockstep}}"
        async with a_router(text, redis_url) as router:
            yield router


def at(router: Router, level: str) -> list[Link]:
    """The links to a level's replicas."""
    return list(router.links[level].fleet.links.values())


async def ask(router: Router, prompt: list[int], count: int) -> list[int]:
    sequence = router.submit(Request(prompt=prompt, max_tokens=count, sampling=Sampling()))
    reader = Reader(sequence.story)
    while not isinstance(event := await reader.next(), End):
        pass
    assert event.refusal is None
    return sequence.story.tokens


async def test_steps_longer_than_a_calls_deadline_are_waited_for(redis_url: str) -> None:
    target = Heavy("target")
    target.seconds = 4 * CALL_S
    async with meshed(redis_url, target=[target]) as router:
        tokens, end = await run(router, 3)
        assert tokens == words(3) and end.refusal is None
        assert target.steps == 3  # no call was given up and sent again
        assert at(router, "target")[0].circuit.losses == 0


async def test_a_call_of_many_steps_is_waited_for(redis_url: str) -> None:
    """A target alone draws several tokens in one call: steps a few times longer than usual must not make it late."""
    target = Heavy("target")
    target.seconds = CALL_S / 2
    async with meshed(redis_url, target=[target]) as router:
        tokens, end = await run(router, 12)
        assert tokens == words(12) and end.refusal is None and target.steps == 12
        assert end.account.levels[0].calls == 2


async def test_calls_that_wait_for_others_long_prompts_are_not_late(redis_url: str) -> None:
    target = Heavy("target", max_rows=32)
    target.seconds = CALL_S
    prompts = [[i + 1] * 60 for i in range(4)]  # 8 steps in all, before the last of them has an answer
    async with meshed(redis_url, target=[target]) as router:
        texts = await asyncio.gather(*(ask(router, prompt, 2) for prompt in prompts))
        assert texts == [words(2, prompt) for prompt in prompts]
        assert at(router, "target")[0].circuit.losses == 0


async def test_a_draft_with_long_steps_stays_in_the_chain(redis_url: str) -> None:
    draft, target = Heavy("draft", 0.7), Heavy("target")
    draft.seconds = 4 * CALL_S
    async with meshed(redis_url, draft=[draft], target=[target]) as router:
        tokens, end = await run(router, 4)
        assert tokens == words(4) and end.account.lost == []


async def test_a_target_whose_engine_hangs_is_an_error_and_comes_back(redis_url: str) -> None:
    target = Heavy("target")
    async with meshed(redis_url, target=[target]) as router:
        assert (await run(router, 3))[0] == words(3)
        target.gate.clear()
        begin = time.monotonic()
        _, end = await run(router, 3)
        assert STEP_S < time.monotonic() - begin < STEP_S + SOON_S
        assert end.refusal is not None and f"target: {HANGS}" in end.refusal.message
        assert at(router, "target")[0].trouble == HANGS and not router.links["target"].ready
        target.gate.set()
        await become(lambda: router.links["target"].ready)
        assert (await run(router, 3))[0] == words(3)


async def test_a_draft_whose_engine_hangs_leaves_the_chain(redis_url: str) -> None:
    draft, target = Heavy("draft", 0.7), Heavy("target")
    async with meshed(redis_url, draft=[draft], target=[target]) as router:
        draft.gate.clear()
        begin = time.monotonic()
        tokens, end = await run(router, 9)
        assert tokens == words(9) and end.account.lost == ["draft"]
        assert time.monotonic() - begin < STEP_S + SOON_S
        assert draft.steps == 1  # not tried again and again


async def test_a_sequence_moves_away_from_an_engine_that_hangs(redis_url: str) -> None:
    targets = [Heavy("target"), Heavy("target")]
    async with meshed(redis_url, target=targets) as router:
        await become(lambda: router.links["target"].count == 2)
        running = asyncio.create_task(run(router, 300))
        await become(lambda: any(target.steps > 10 for target in targets))
        hung = max(targets, key=lambda target: target.steps)
        hung.gate.clear()
        begin = time.monotonic()
        tokens, end = await running
        assert tokens == words(300) and end.refusal is None
        assert time.monotonic() - begin < STEP_S + SOON_S
        await become(lambda: sorted(each.lifeless for each in at(router, "target")) == ["", HANGS])
        steps = hung.steps
        assert (await run(router, 9))[0] == words(9) and hung.steps == steps  # it is given nothing more
        hung.gate.set()
        await become(lambda: router.links["target"].count == 2)


async def test_a_level_that_hangs_and_refuses_calls_is_noticed(redis_url: str) -> None:
    """It is heard all the time, so nobody would ask it."""
    level = FakeLevel()
    level.odd = lambda call: pb.ExtendReply(call=call.call, outcome=pb.OUTCOME_OVERLOADED, retry_ms=1)
    server, port = await serve(level)
    text = f'name: f\ntokenizer: bytes\nlevels: [{{name: target, engine: stub, address: "127.0.0.1:{port}"}}]'
    try:
        async with a_router(text, redis_url) as router:
            running = asyncio.create_task(run(router, 3))
            await become(lambda: level.messages)
            level.step_ms = int(STEP_S * 1000) + 1
            _, end = await running
            assert end.refusal is not None and HANGS in end.refusal.message
    finally:
        await server.stop(0)
