"""A stub engine that checks what it is fed, and a router's stream to a scheduler over it; stepped by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specrouter.v1 import level_pb2 as pb
from specrouter_core.prefix import Text
from specrouter_core.sampling import Sampling
from specrouter_level.engine import Drawn, Params, Span
from specrouter_level.scheduler import Scheduler
from specrouter_level.stream import Stream
from specrouter_level.stub import StubEngine

SAMPLING: dict[str, Any] = {"seed": 7, "temperature": 0.8}
STOP = ord("c")  # the reference text after PROMPT draws it only at its 70th place
PROMPT = list(b"the quick brown fox")


class StrictEngine:
    """A stub that remembers what each slot was fed, and refuses spans that build on anything else."""

    inline = True

    def __init__(self, *, slots: int = 3, max_rows: int = 16, max_length: int = 120, agreement: float = 0.7) -> None:
        self.stub = StubEngine(
            name="mid", agreement=agreement, costs=(), max_length=max_length, slots=slots, max_rows=max_rows
        )
        self.info = self.stub.info
        self.fed: list[list[int]] = [[] for _ in range(slots)]
        self.steps: list[list[Span]] = []

    def step(self, spans: Sequence[Span]) -> list[Drawn]:
        assert len({span.slot for span in spans}) == len(spans)
        assert 0 < sum(len(span.text) - span.start for span in spans) <= self.info.max_rows
        for span in spans:
            assert 0 <= span.draws <= len(span.text) - span.start
            assert self.fed[span.slot][: span.start] == list(span.text[: span.start])
            self.fed[span.slot] = list(span.text)
        self.steps.append(list(spans))
        return self.stub.step(spans)


def reference(engine: StrictEngine, prefix: Sequence[int], count: int, stops: Sequence[int] = (STOP,)) -> list[int]:
    """The level's text after ``prefix``, one draw at a time."""
    text = list(prefix)
    drawn: list[int] = []
    params = Params(sampling=Sampling(**SAMPLING), prompt_length=1)
    while len(drawn) < count and len(text) < engine.info.max_length:
        drawn += engine.stub.step([Span(slot=0, start=0, text=text, draws=1, params=params)])[0].tokens
        text.append(drawn[-1])
        if drawn[-1] in stops:
            break
    return drawn


class Router:
    """One stream and the replies it got."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.stream = Stream(lambda: None)
        self.replies: dict[int, pb.ExtendReply] = {}
        self.number = 0

    def ask(self, sequence: str, prefix: Sequence[int], *, base: int = 0, **fields: Any) -> int:
        self.number += 1
        call = pb.ExtendCall(call=self.number, sequence=sequence, suffix=prefix[base:], base=base, deadline_ms=60_000)
        if base:
            call.base_hash = Text(prefix[:base]).hashes[-1]
        else:
            call.params.CopyFrom(pb.SequenceParams(sampling=pb.Sampling(**SAMPLING), prompt_length=1, stop_ids=[STOP]))
        call.MergeFrom(pb.ExtendCall(**fields))
        self.scheduler.receive(self.stream, pb.ExtendRequest(calls=[call]))
        return self.number

    def read(self) -> None:
        while (response := self.stream.take()) is not None:
            for reply in response.replies:
                earlier = self.replies.get(reply.call)
                if earlier is not None:
                    assert earlier.outcome == pb.OUTCOME_UNSPECIFIED, "a reply after the last"
                    assert list(reply.tokens[: len(earlier.tokens)]) == list(earlier.tokens)
                self.replies[reply.call] = reply

    def answer(self, engine: StrictEngine, number: int) -> pb.ExtendReply:
        run(self.scheduler, engine)
        self.read()
        return self.replies[number]


def run(scheduler: Scheduler, engine: StrictEngine) -> None:
    while spans := scheduler.form():
        scheduler.finish(engine.step(spans), 0.001)


def world(**options: Any) -> tuple[StrictEngine, Scheduler, Router]:
    engine = StrictEngine(**options)
    scheduler = Scheduler(engine.info)
    return engine, scheduler, Router(scheduler)
