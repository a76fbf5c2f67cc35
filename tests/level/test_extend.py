"""LevelService over real gRPC, in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import grpc
import pytest
from live_level import PROMPT, SECONDS, Level, Router, alone, serving, stub
from prometheus_client import generate_latest

from processes import become
from specrouter.v1 import level_pb2 as pb
from specrouter_level.engine import Drawn, Memory, Span
from specrouter_level.stub import VOCAB_DIGEST


@pytest.mark.parametrize("step_ms", ["", "1:0.2"])
async def test_a_chain_of_levels_writes_the_targets_text(step_ms: str) -> None:
    draft, target = stub("draft", 0.7, step_ms), stub("target", 1.0, step_ms)
    async with serving(draft) as below, serving(target) as above, below.connect() as low, above.connect() as high:
        drafts, checks = Router(low), Router(high)
        text, held, rounds = list(PROMPT), 0, 0
        while len(text) < 200:
            drawn = await drafts.ask("a", text, held, more=4)
            checked = await checks.ask("a", text, held, proposals=drawn.tokens)
            assert checked.outcome == pb.OUTCOME_DONE
            held = len(text)
            text += checked.tokens
            rounds += 1
        assert text[len(PROMPT) :] == alone(PROMPT, len(text) - len(PROMPT))
        assert rounds < 100
        assert checks.number == rounds and above.scheduler.counts.calls[pb.OUTCOME_DONE] == rounds


async def test_draws_arrive_one_by_one() -> None:
    async with serving(stub(step_ms="1:20")) as level, level.connect() as service:
        router = Router(service)
        await router.send(router.call("a", PROMPT, more=3))
        replies = [(await router.message()).replies[0] for _ in range(4)]
        assert [list(reply.tokens) for reply in replies] == [alone(PROMPT, n) for n in (1, 2, 3, 4)]
        assert [reply.outcome for reply in replies] == [0, 0, 0, pb.OUTCOME_DONE]
        timing = replies[-1].timing
        assert timing.steps == 4 and 80_000 <= timing.compute_us < 2_000_000 and timing.tokens == len(PROMPT) + 3


@pytest.mark.parametrize("step_ms", ["", "1:5"])
async def test_answers_that_are_ready_together_travel_together(step_ms: str) -> None:
    async with serving(stub(step_ms=step_ms)) as level, level.connect() as service:
        router = Router(service)
        calls = [router.call(f"s{i}", [i, 1], more=1) for i in range(50)]
        await router.send(*calls)
        replies = await router.ends(*[call.call for call in calls])
        assert all(list(replies[i + 1].tokens) == alone([i, 1], 2) for i in range(50))
        assert router.messages <= 2
        assert {reply.timing.batch for reply in replies.values()} == {50}


async def test_a_newer_call_supersedes_one_in_a_running_step() -> None:
    async with serving(stub(step_ms="1:100")) as level, level.connect() as service:
        router = Router(service)
        right = alone(PROMPT, 3)
        await router.send(router.call("a", PROMPT, more=20))
        await become(lambda: level.gauge("rows_running") > 0)
        call = router.call("a", PROMPT + right[:1], len(PROMPT), more=1)
        await router.send(call)
        replies = await router.ends(1, 2)
        assert replies[1].outcome == pb.OUTCOME_SUPERSEDED
        assert list(replies[2].tokens) == right[1:3] and replies[2].timing.tokens == 2


async def test_withdrawn_and_released() -> None:
    async with serving(stub(step_ms="1:20")) as level, level.connect() as service:
        router = Router(service)
        await router.send(router.call("a", PROMPT, more=64), router.call("b", PROMPT, more=64))
        await router.send(withdrawn=[1], released=["b"])
        replies = await router.ends(1, 2)
        assert {reply.outcome for reply in replies.values()} == {pb.OUTCOME_SUPERSEDED}
        unknown = await router.ask("b", [*PROMPT, 1], len(PROMPT))
        assert unknown.outcome == pb.OUTCOME_PREFIX_UNKNOWN and unknown.held == 0
        assert (await router.ask("a", [*PROMPT, 1], len(PROMPT))).outcome == pb.OUTCOME_DONE


async def test_a_broken_stream_drops_its_calls_and_leaves_its_sequences() -> None:
    async with serving(stub(step_ms="1:20")) as level:
        async with level.connect() as service:
            router = Router(service)
            await router.send(router.call("a", PROMPT, more=64))
            await router.message()
            router.stream.cancel()
            await become(lambda: level.scheduler.busy == 0)
        assert len(level.scheduler.slots) == 1
        async with level.connect() as service:
            reply = await Router(service).ask("a", [*PROMPT, 5], len(PROMPT), epoch=1)
            assert reply.outcome == pb.OUTCOME_DONE and reply.timing.tokens <= 2


async def test_a_half_closed_stream_gets_its_answers_first() -> None:
    async with serving(stub(step_ms="1:10")) as level, level.connect() as service:
        router = Router(service)
        await router.send(router.call("a", PROMPT, more=3))
        await router.stream.done_writing()
        assert list((await router.ends(1))[1].tokens) == alone(PROMPT, 4)
        assert await asyncio.wait_for(router.stream.read(), SECONDS) is grpc.aio.EOF
        assert await router.stream.code() == grpc.StatusCode.OK


async def test_garbage_leaves_the_server_serving(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(stub()) as level:
        host, port = level.address.split(":")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 40, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff" * 3):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            await writer.drain()
            writer.close()
        async with grpc.aio.insecure_channel(level.address) as channel:
            raw: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
            raw = channel.stream_stream("/specrouter.v1.LevelService/Extend")
            call = raw()
            await call.write(b"\xff\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call.read(), SECONDS)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "ExtendRequest" in (caught.value.details() or "")
        async with level.connect() as service:
            assert list((await Router(service).ask("a", PROMPT)).tokens) == alone(PROMPT, 1)
    assert not caplog.records


async def test_streams_broken_off_anyhow_log_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(stub(step_ms="1:2")) as level, level.connect() as service:
        router = Router(service)
        async with grpc.aio.insecure_channel(level.address) as channel:
            extend: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
            extend = channel.stream_stream("/specrouter.v1.LevelService/Extend")
            for number in range(60):
                stream = extend()
                calls = [router.call(f"{number}.{n}", PROMPT, more=number) for n in range(3)]
                await asyncio.wait_for(stream.write(pb.ExtendRequest(calls=calls).SerializeToString()), SECONDS)
                if number % 3:
                    await asyncio.wait_for(stream.read(), SECONDS)
                if number % 2:
                    await stream.write(b"\xff\xff\xff\xff")
                if number % 4 != 1:
                    stream.cancel()
        await become(lambda: len(level.drain.streams) <= 1)  # the router's own
        assert level.scheduler.busy == 0
        assert list((await router.ask("a", PROMPT)).tokens) == alone(PROMPT, 1)
    assert not caplog.records


async def test_a_caller_that_does_not_read_is_not_read_from() -> None:
    small = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))  # bytes in flight at most
    async with serving(stub(slots=1)) as level, level.connect(*small) as service:
        router = Router(service)
        bad = [router.call("a" * 60, PROMPT, more=65) for _ in range(200)]
        writes = asyncio.create_task(_send_often(router, bad, 100))
        refused = [0]
        async with asyncio.timeout(SECONDS):
            while len(refused) < 3 or refused[-1] != refused[-2]:
                await asyncio.sleep(0.2)  # in which nothing comes any more, some time
                refused.append(level.scheduler.counts.calls.get(pb.OUTCOME_INVALID, 0))
        assert 0 < refused[-1] < 20_000
        seen = 0
        while seen < 20_000:
            seen += len((await router.message()).replies)
        await asyncio.wait_for(writes, SECONDS)


async def _send_often(router: Router, calls: list[pb.ExtendCall], times: int) -> None:
    for _ in range(times):
        await router.send(*calls)


async def test_stopping_lets_running_calls_end_and_takes_no_more() -> None:
    async with serving(stub(step_ms="1:50")) as level, level.connect() as service:
        router = Router(service)
        await router.send(router.call("a", PROMPT, more=5))
        await router.message()
        stopping = asyncio.create_task(level.server.stop())
        await become(lambda: level.scheduler.closed)
        await router.send(router.call("b", PROMPT))
        replies = await router.ends(1, 2)
        assert replies[2].outcome == pb.OUTCOME_OVERLOADED and replies[2].retry_ms > 0
        assert list(replies[1].tokens) == alone(PROMPT, 6)
        assert await asyncio.wait_for(router.stream.read(), SECONDS) is grpc.aio.EOF
        await asyncio.wait_for(stopping, SECONDS)


class FailingEngine:
    """Fails in its second step."""

    inline = False
    memory: Memory | None = None

    def __init__(self) -> None:
        self.stub = stub()
        self.info = self.stub.info
        self.steps = 0

    def step(self, spans: Sequence[Span]) -> list[Drawn]:
        self.steps += 1
        if self.steps == 2:
            raise FloatingPointError("secret details")
        return self.stub.step(spans)


async def test_a_failing_engine_fails_the_calls_and_goes_on() -> None:
    async with serving(FailingEngine()) as level, level.connect() as service:
        router = Router(service)
        failed = await router.ask("a", PROMPT, more=3)
        assert failed.outcome == pb.OUTCOME_INTERNAL and failed.message == "the engine failed: FloatingPointError"
        assert list((await router.ask("a", PROMPT, more=3)).tokens) == alone(PROMPT, 4)


async def test_a_port_in_use_is_an_error() -> None:
    async with serving(stub()) as level:
        second = Level(stub())
        with pytest.raises(OSError, match=level.address):
            await second.server.start(level.address)


async def test_describe() -> None:
    async with serving(stub(step_ms="1:2.5,8:3")) as level, level.connect() as service:
        described = await service.Describe(pb.DescribeRequest(), timeout=SECONDS)
    assert (described.name, described.engine, described.vocab_size) == ("mid", "stub", 256)
    assert (described.max_length, described.slots, described.max_rows) == (512, 64, 128)
    assert described.vocab_digest == VOCAB_DIGEST and len(described.model_digest) == 64
    assert (described.dtype, described.device, described.exactness) == ("none", "none", "bitwise")
    assert list(described.stop_ids) == [0]
    assert [(cost.rows, cost.microseconds) for cost in described.costs] == [(1, 2500), (8, 3000)]


async def test_describe_says_how_long_the_running_step_has_taken() -> None:
    engine, begun, gate = stub(step_ms="1:1"), asyncio.Event(), threading.Event()
    step, loop = engine.step, asyncio.get_running_loop()

    def held(spans: Sequence[Span]) -> list[Drawn]:
        loop.call_soon_threadsafe(begun.set)
        gate.wait(SECONDS)
        return step(spans)

    engine.step = held  # type: ignore[method-assign]
    async with serving(engine) as level, level.connect() as service:

        async def taken() -> int:
            return (await service.Describe(pb.DescribeRequest(), timeout=SECONDS)).step_ms

        assert await taken() == 0
        router = Router(service)
        await router.send(router.call("a", PROMPT))
        await asyncio.wait_for(begun.wait(), SECONDS)
        first = await taken()
        assert first > 0
        async with asyncio.timeout(SECONDS):
            while await taken() < first + 2:
                pass
        gate.set()
        await router.ends(1)
        assert await taken() == 0


async def test_metrics_count_what_happened() -> None:
    async with serving(stub(slots=1)) as level, level.connect() as service:
        router = Router(service)
        right = alone(PROMPT, 3)
        await router.ask("a", PROMPT, proposals=[right[0], 1])
        await router.ask("b", PROMPT, more=65)
        await router.ask("c", PROMPT)
        text = generate_latest(level.registry).decode()
    for line in (
        'calls_total{level="mid",outcome="done"} 2.0',
        'calls_total{level="mid",outcome="invalid"} 1.0',
        'tokens_drawn_total{level="mid"} 3.0',
        f'tokens_fed_total{{level="mid"}} {2.0 * len(PROMPT) + 2}',
        'proposals_accepted_total{level="mid"} 1.0',
        'evictions_total{level="mid"} 1.0',
        'sequences_held{level="mid"} 1.0',
        'step_rows_count{level="mid"} 2.0',
    ):
        assert f"specrouter_level_{line}\n" in text
