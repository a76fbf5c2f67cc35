"""Links and what sequences make of a level's answers, with a level that answers as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from fake_level import Answer, FakeLevel, a_router, run, serve, wanted

from processes import become
from specrouter.v1 import level_pb2 as pb
from specrouter_core.prefix import Text
from specrouter_router import link, parking, replicas
from specrouter_router.flight import Flight
from specrouter_router.router import Router
from specrouter_router.seat import Seat
from specrouter_router.story import End


class Stand:
    """Two fake levels and a router in this process."""

    def __init__(self) -> None:
        self.draft, self.target = FakeLevel(), FakeLevel()
        self.ports: list[int] = []
        self.servers: list[Any] = []
        self.router: Router

    @asynccontextmanager
    async def opened(self, redis_url: str) -> AsyncIterator[Stand]:
        for level in (self.draft, self.target):
            server, port = await serve(level)
            self.servers.append(server)
            self.ports.append(port)
        levels = [
            f'{{name: {name}, engine: stub, address: "127.0.0.1:{port}"}}'
            for name, port in zip(("draft", "target"), self.ports, strict=True)
        ]
        text = f"name: f\ntokenizer: bytes\nlevels: [{', '.join(levels)}]\n"
        text += "chain: {policy: fixed, mode: lockstep, classes: {chat: {priority: 80}}}"
        try:
            async with a_router(text, redis_url) as self.router:
                yield self
        finally:
            for server in self.servers:
                await server.stop(0)

    async def run(self, count: int = 30) -> tuple[list[int], End]:
        return await run(self.router, count)


@pytest.fixture
async def stand(redis_url: str) -> AsyncIterator[Stand]:
    async with Stand().opened(redis_url) as made:
        yield made


def times(count: int, answer: Answer, rest: Answer = lambda _call: None) -> Answer:
    """Says ``answer`` to the first calls."""
    left = count

    def odd(call: pb.ExtendCall) -> pb.ExtendReply | None:
        nonlocal left
        left -= 1
        return answer(call) if left >= 0 else rest(call)

    return odd


def ending(outcome: pb.Outcome.ValueType, **fields: Any) -> Answer:
    return lambda call: pb.ExtendReply(call=call.call, outcome=outcome, **fields)


def released(level: FakeLevel) -> bool:
    return any(message.released for message in level.messages)


async def test_only_what_a_level_lacks_is_sent(stand: Stand) -> None:
    tokens, _ = await stand.run()
    assert tokens == wanted()
    calls = [call for message in stand.target.messages for call in message.calls]
    assert list(calls[0].suffix) == [1, 2, 3] and calls[0].params.prompt_length == 3
    for before, call in pairwise(calls):
        assert call.base == before.base + len(before.suffix) and not call.HasField("params")
        assert call.call > before.call
    for level in (stand.target, stand.draft):
        await become(partial(released, level))


async def test_calls_carry_the_priority_of_their_class(stand: Stand) -> None:
    for traffic, priority in (("chat", 80), ("", 50)):
        assert (await run(stand.router, 9, traffic))[0] == wanted(9)
        calls = [call for level in (stand.draft, stand.target) for message in level.messages for call in message.calls]
        assert {call.priority for call in calls if call.HasField("priority")} == {priority}
        stand.draft.messages.clear()
        stand.target.messages.clear()


async def test_the_calls_of_one_tick_are_one_message(stand: Stand) -> None:
    both = await asyncio.gather(*(stand.run() for _ in range(20)))
    assert all(tokens == wanted() for tokens, _ in both)
    assert len(stand.draft.messages[0].calls) == 20


async def test_a_level_that_forgot_is_sent_the_rest(stand: Stand) -> None:
    def forget(call: pb.ExtendCall) -> None:
        if call.call % 3 == 0:
            stand.target.texts.clear()
        if call.call % 5 == 0 and call.sequence in stand.target.texts:
            stand.target.texts[call.sequence].truncate(4)

    stand.target.odd = forget
    tokens, end = await stand.run()
    assert tokens == wanted() and end.account.lost == []


async def test_a_level_that_never_knows_its_own_prefix_is_left_out(stand: Stand) -> None:
    stand.draft.odd = ending(pb.OUTCOME_PREFIX_UNKNOWN, held=7, held_hash=7)
    tokens, end = await stand.run()
    assert tokens == wanted() and end.account.lost == ["draft"]


@pytest.mark.parametrize(
    "outcome", [pb.OUTCOME_INTERNAL, pb.OUTCOME_INVALID, pb.OUTCOME_EXPIRED, pb.OUTCOME_OVERLOADED]
)
async def test_a_draft_that_keeps_failing_is_left_out(stand: Stand, outcome: pb.Outcome.ValueType) -> None:
    stand.draft.odd = ending(outcome, message="no", retry_ms=1)
    tokens, end = await stand.run()
    assert tokens == wanted() and end.account.lost == ["draft"]


async def test_a_target_that_fails_now_and_then_is_asked_again(stand: Stand) -> None:
    stand.target.odd = times(2, ending(pb.OUTCOME_INTERNAL, message="no"))
    assert (await stand.run())[0] == wanted()
    stand.target.odd = times(20, ending(pb.OUTCOME_OVERLOADED, retry_ms=1))
    assert (await stand.run())[0] == wanted()


async def test_a_target_that_keeps_failing_is_the_error(stand: Stand) -> None:
    stand.target.odd = times(1, lambda _call: None, ending(pb.OUTCOME_INTERNAL, message="out of memory"))
    tokens, end = await stand.run()
    assert tokens == wanted()[: len(tokens)] and 0 < len(tokens) < 30
    assert end.refusal is not None and end.refusal.message == "level target: out of memory"


async def test_an_answer_that_does_not_come_in_time_is_a_failure(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CALL_S", 0.05)
    monkeypatch.setattr(link, "TOKEN_S", 0.001)
    monkeypatch.setattr(link, "BEAT_S", 0.02)
    monkeypatch.setattr(replicas, "LOOK_S", 0.01)
    stand.draft.silent = True
    tokens, end = await stand.run()
    assert tokens == wanted() and end.account.lost == ["draft"]
    await become(lambda: sum(len(message.withdrawn) for message in stand.draft.messages) == 3)
    assert not stand.router.links["draft"].inflight


async def test_a_target_whose_stream_breaks_is_waited_for(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "PATIENCE_S", 0.5)
    running = asyncio.create_task(stand.run(400))
    await become(lambda: stand.target.messages)
    await stand.servers[1].stop(0)
    second = FakeLevel()
    again, _ = await serve(second, f"127.0.0.1:{stand.ports[1]}")
    assert (await running)[0] == wanted(400)
    second.messages.clear()
    running = asyncio.create_task(stand.run(400))
    await become(lambda: second.messages)
    await again.stop(0)
    _, end = await running
    assert end.refusal is not None and "waited 0.5 s" in end.refusal.message


async def test_another_model_at_the_same_address_is_not_used(stand: Stand) -> None:
    await stand.servers[0].stop(0)

    class Other(FakeLevel):
        async def Describe(self, request: Any, context: Any) -> pb.DescribeResponse:  # noqa: N802  # as in the contract
            return pb.DescribeResponse(name="x", model_digest="other", max_length=1000)

    again, _ = await serve(Other(), f"127.0.0.1:{stand.ports[0]}")
    await become(lambda: "digest" in stand.router.links["draft"].why_down)
    assert not stand.router.links["draft"].ready
    assert (await stand.run())[0] == wanted()
    await again.stop(0)


class Heard:
    """Owns one call about a sequence, and notes what it is told."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.outcomes: list[int] = []
        self.told = asyncio.Event()

    def fill(self, flight: Flight, message: pb.ExtendCall) -> None:
        message.sequence, message.epoch = self.seat.sequence, 1
        flight.holding.name_prefix(message, 3, ())

    def replied(self, flight: Flight, reply: pb.ExtendReply) -> None:
        self.outcomes.append(reply.outcome)
        self.told.set()

    def failed(self, flight: Flight, why: str, gone: bool) -> None:
        self.outcomes.append(-1)

    def broke(self, error: Exception) -> None:
        raise error


async def test_a_released_sequence_is_not_sent_again(stand: Stand) -> None:
    """A call that judges for a sequence outlives it: sent after the release, its level would hold it for ever."""
    stand.draft.odd = ending(pb.OUTCOME_PREFIX_UNKNOWN)
    seat = Seat("gone", Text([1, 2, 3]), pb.SequenceParams(prompt_length=3))
    owner, replicas = Heard(seat), stand.router.links["draft"]
    replicas.send(Flight(owner, 0, False, seat))
    replicas.release(seat)  # in the same tick
    await asyncio.wait_for(owner.told.wait(), 5)
    stand.draft.odd = lambda _call: None
    assert (await stand.run())[0] == wanted()  # whatever else was to be sent of it was sent before
    assert owner.outcomes == [pb.OUTCOME_PREFIX_UNKNOWN]
    mine = [message for message in stand.draft.messages if "gone" in str(message)]
    assert [(len(message.calls), list(message.released)) for message in mine] == [(1, []), (0, ["gone"])]
