"""Calls as they come: what is out of bounds is named and refused."""

from __future__ import annotations

from typing import Any

import pytest
from strict_engine import PROMPT, run, world

from specrouter.v1 import level_pb2 as pb

BAD: list[tuple[str, dict[str, Any]]] = [
    ("proposals", {"proposals": [1] * 65}),
    ("more", {"more": 65}),
    ("suffix", {"suffix": [256]}),
    ("proposals", {"proposals": [256]}),
    ("sequence", {"name": "x" * 65}),
    ("sequence", {"name": "é" * 33}),
    ("confidence", {"confidence": float("nan")}),
    ("probe", {"probe": 33}),
    ("deadline_ms", {"deadline_ms": 600_001}),
    ("score", {"score": True}),
    ("suffix", {"suffix": [1] * 120}),
    ("priority", {"priority": 101}),
    ("params.prompt_length", {"params": pb.SequenceParams(prompt_length=100)}),
    ("params.stop_ids", {"params": pb.SequenceParams(stop_ids=range(17))}),
    ("params.sampling.temperature", {"params": pb.SequenceParams(sampling=pb.Sampling(temperature=float("nan")))}),
    ("params.sampling.top_p", {"params": pb.SequenceParams(sampling=pb.Sampling(top_p=0))}),
    ("params.sampling.repetition_penalty", {"params": pb.SequenceParams(sampling=pb.Sampling(repetition_penalty=0))}),
]


@pytest.mark.parametrize(("field", "change"), BAD)
def test_bounds_are_named(field: str, change: dict[str, Any]) -> None:
    engine, scheduler, router = world()
    reply = router.answer(engine, router.ask(change.pop("name", "a"), PROMPT, **change))
    assert reply.outcome == pb.OUTCOME_INVALID and reply.message.startswith(field)
    assert scheduler.busy == 0 and len(scheduler.slots) == 0


def test_missing_fields_are_named() -> None:
    _, scheduler, router = world()
    params = pb.SequenceParams(prompt_length=1)
    cases = {
        "sequence": pb.ExtendCall(call=1, suffix=[1], deadline_ms=9, params=params),
        "suffix": pb.ExtendCall(call=2, sequence="a", deadline_ms=9, params=params),
        "deadline_ms": pb.ExtendCall(call=3, sequence="a", suffix=[1], params=params),
        "params": pb.ExtendCall(call=4, sequence="a", suffix=[1], deadline_ms=9),
    }
    scheduler.receive(router.stream, pb.ExtendRequest(calls=cases.values()))
    router.read()
    for field, call in cases.items():
        reply = router.replies[call.call]
        assert reply.outcome == pb.OUTCOME_INVALID and reply.message.startswith(field)


def test_a_number_in_use_is_refused_and_its_call_goes_on() -> None:
    engine, scheduler, router = world()
    number = router.ask("a", PROMPT[:4])
    router.number -= 1
    router.ask("b", PROMPT[:4])
    response = router.stream.take()
    assert response is not None and response.replies[0].outcome == pb.OUTCOME_INVALID
    assert response.replies[0].message.startswith("call")
    assert router.answer(engine, number).outcome == pb.OUTCOME_DONE and len(scheduler.slots) == 1


def test_a_message_takes_at_most_256_calls() -> None:
    engine, scheduler, router = world(slots=300)
    params = pb.SequenceParams(prompt_length=1)
    many = [
        pb.ExtendCall(call=i + 1, sequence=f"s{i}", suffix=[1], deadline_ms=9000, params=params) for i in range(258)
    ]
    scheduler.receive(router.stream, pb.ExtendRequest(calls=many))
    run(scheduler, engine)
    messages = [router.stream.take(), router.stream.take(), router.stream.take()]
    sizes = [len(message.replies) if message else 0 for message in messages]
    assert sizes == [256, 2, 0]
    ends = {reply.call: reply.outcome for message in messages if message for reply in message.replies}
    assert len(ends) == 258
    assert [ends[i] for i in (256, 257, 258)] == [pb.OUTCOME_DONE, pb.OUTCOME_INVALID, pb.OUTCOME_INVALID]
