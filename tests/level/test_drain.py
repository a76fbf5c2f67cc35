"""A level that is asked to end: routers are told, running sequences go on, new ones do not, the process exits."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
from live_level import PROMPT, SECONDS, Router, alone, serving, stub
from test_level_process import TEXT, Level, running

from specrouter.v1 import level_pb2 as pb
from specrouter.v1.level_pb2_grpc import LevelServiceStub


async def test_streams_are_told_at_once_and_running_sequences_go_on() -> None:
    async with serving(stub()) as level, level.connect() as service:
        router, idle = Router(service), Router(service)
        await router.ask("a", PROMPT)
        await idle.stream.wait_for_connection()
        await idle.send(released=["nothing"])
        answer = await service.Drain(pb.DrainRequest(), timeout=SECONDS)
        assert (answer.sequences, answer.grace_ms) == (1, 10_000)
        for stream in (router, idle):
            told = await stream.message()
            assert told.draining and not told.replies
        assert (await service.Describe(pb.DescribeRequest(), timeout=SECONDS)).draining
        refused = await router.ask("b", PROMPT)
        assert refused.outcome == pb.OUTCOME_OVERLOADED and refused.draining
        text = PROMPT + alone(PROMPT, 1)
        assert list((await router.ask("a", text, len(PROMPT), more=2)).tokens) == alone(text, 3)
        late = Router(service)
        await late.stream.wait_for_connection()
        await late.send(released=["nothing"])
        assert (await late.message()).draining


async def test_it_is_done_when_the_last_sequence_is_released() -> None:
    async with serving(stub()) as level, level.connect() as service:
        router = Router(service)
        await router.ask("a", PROMPT)
        await router.ask("b", PROMPT)
        done = asyncio.create_task(level.drain.done())
        await service.Drain(pb.DrainRequest(), timeout=SECONDS)
        await router.send(released=["a"])
        text = [*PROMPT, *alone(PROMPT, 1)]
        assert (await router.ask("b", text, len(PROMPT))).outcome == pb.OUTCOME_DONE
        assert not done.done()
        await router.send(released=["b"])
        await asyncio.wait_for(done, 1.0)


async def test_sequences_of_broken_streams_do_not_hold_it() -> None:
    async with serving(stub()) as level:
        async with level.connect() as service:
            await Router(service).ask("a", PROMPT)
            level.drain.begin()
            assert level.drain.left == 1
        await asyncio.wait_for(level.drain.done(), 1.0)
        async with level.connect() as service:  # nor are they served to others
            reply = await Router(service).ask("a", PROMPT, epoch=1)
            assert reply.outcome == pb.OUTCOME_OVERLOADED and reply.draining


async def test_it_does_not_wait_longer_than_its_grace_time() -> None:
    async with serving(stub(), grace=0.2) as level, level.connect() as service:
        await Router(service).ask("a", PROMPT)
        level.drain.begin()
        await asyncio.wait_for(level.drain.done(), 2.0)
        assert level.drain.left == 1


def _holding(level: Level, channel: grpc.Channel) -> grpc._CallIterator[pb.ExtendResponse]:
    """A stream that stays open, with a sequence that has been answered."""
    call = pb.ExtendCall(
        call=1, sequence="a", suffix=TEXT, params=pb.SequenceParams(prompt_length=len(TEXT)), deadline_ms=5000
    )
    requests: SimpleQueue[pb.ExtendRequest | None] = SimpleQueue()
    requests.put(pb.ExtendRequest(calls=[call]))
    stream = LevelServiceStub(channel).Extend(iter(requests.get, None), timeout=30)
    stream.add_callback(lambda: requests.put(None))  # the caller has nothing more to say until its stream has ended
    next(stream)
    return stream


@pytest.mark.parametrize("how", ["rpc", "signal"])
def test_the_process_exits_when_its_streams_are_gone(how: str, tmp_path: Path) -> None:
    options = ("--name", "low", "--engine", "stub", "--drain-seconds", "60")
    with running(tmp_path / "log", *options) as level, grpc.insecure_channel(f"127.0.0.1:{level.grpc}") as channel:
        stream = _holding(level, channel)
        if how == "rpc":
            LevelServiceStub(channel).Drain(pb.DrainRequest(), timeout=5)
        else:
            level.process.send_signal(signal.SIGTERM)
        assert next(stream).draining
        assert level.get("/v2/health/ready")[0] == 503 and level.get("/v2/health/live")[0] == 200
        assert level.process.poll() is None
        stream.cancel()
        assert level.process.wait(5) == 0
        assert "Traceback" not in level.log.read_text()


def test_a_second_signal_ends_the_wait(tmp_path: Path) -> None:
    options = ("--name", "low", "--engine", "stub", "--drain-seconds", "60")
    with running(tmp_path / "log", *options) as level, grpc.insecure_channel(f"127.0.0.1:{level.grpc}") as channel:
        stream = _holding(level, channel)
        level.process.send_signal(signal.SIGTERM)
        assert next(stream).draining
        level.process.send_signal(signal.SIGTERM)
        assert level.process.wait(5) == 0
