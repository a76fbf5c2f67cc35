"""Prompt lookup: the index stays right under rollback, and the draws are those of the plain rule."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from specrouter.v1 import level_pb2 as pb
from specrouter_core.sampling import Sampling
from specrouter_level.engine import Drawn, Params, Span
from specrouter_level.ngram import Index, NgramEngine
from specrouter_level.scheduler import Scheduler
from specrouter_level.stream import Stream

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def rule(text: Sequence[int]) -> int | None:
    """The rule as one would write it: search backwards for the last 3, then the last 2 ids."""
    for size in (3, 2):
        for end in range(len(text) - 1, size - 1, -1):
            if list(text[end - size : end]) == list(text[-size:]) and len(text) > size:
                return text[end]
    return None


def going_on(text: Sequence[int], count: int, stops: frozenset[int] = frozenset()) -> list[int]:
    text = list(text)
    drawn: list[int] = []
    while len(drawn) < count and (token := rule(text)) is not None:
        drawn.append(token)
        text.append(token)
        if token in stops:
            break
    return drawn


def engine(slots: int = 1) -> NgramEngine:
    return NgramEngine(max_length=10_000, slots=slots, max_rows=10_000)


def ask(ngram: NgramEngine, text: Sequence[int], *, start: int = 0, draws: int = 1, more: int = 0) -> Drawn:
    params = Params(Sampling(), prompt_length=1, stop_ids=frozenset({9}))
    return ngram.step([Span(slot=0, start=start, text=text, draws=draws, params=params, more=more)])[0]


@given(st.lists(st.tuples(TOKENS, st.integers(0, 40)), max_size=12))
def test_the_index_is_right_after_any_rollbacks(changes: list[tuple[list[int], int]]) -> None:
    index, text = Index(), list[int]()
    for added, keep in changes:
        index.truncate(keep)
        del text[keep:]
        index.push(added)
        text += added
        assert index.tokens == text
        assert index.guess() == rule(text)
    fresh = Index()
    fresh.push(text)
    assert (fresh._last, fresh._before) == (index._last, index._before)


@given(TOKENS.filter(bool), TOKENS, st.integers(0, 8), st.data())
def test_draws_are_those_of_the_rule(prefix: list[int], proposals: list[int], more: int, data: st.DataObject) -> None:
    ngram = engine()
    ask(ngram, prefix + data.draw(TOKENS), draws=1, more=3)  # something else before, with draws of its own
    start = data.draw(st.integers(0, len(prefix) - 1))
    drawn = ask(ngram, prefix + proposals, start=start, draws=len(proposals) + 1, more=more)
    expected: list[int] = []
    for i in range(len(proposals) + 1):
        token = rule(prefix + proposals[:i])
        if token is None:
            break
        expected.append(token)
    else:
        expected += going_on([*prefix, *proposals, expected[-1]], more)
    assert drawn.tokens == expected and len(drawn.confidence) == len(expected)


def test_it_goes_on_past_the_end_of_the_text_and_stops_at_a_stop_id() -> None:
    assert ask(engine(), [1, 2, 3, 1, 2, 3], more=6).tokens == [1, 2, 3, 1, 2, 3, 1]
    assert ask(engine(), [1, 2, 9, 4, 1, 2], more=6).tokens == [9]
    assert ask(engine(), [1, 2, 3, 4], more=6).tokens == []


def test_a_call_gets_all_its_draws_in_one_step() -> None:
    ngram = engine(slots=2)
    scheduler, stream = Scheduler(ngram.info), Stream(lambda: None)
    text = [5, 6, 7, 8, 5, 6, 7]
    params = pb.SequenceParams(prompt_length=7)
    call = pb.ExtendCall(call=1, sequence="a", suffix=text, more=4, deadline_ms=1000, params=params)
    nothing = pb.ExtendCall(call=2, sequence="b", suffix=[1, 2, 3], more=4, deadline_ms=1000, params=params)
    nothing.params.prompt_length = 3
    scheduler.receive(stream, pb.ExtendRequest(calls=[call, nothing]))
    scheduler.finish(ngram.step(scheduler.form()), 0.0)
    response = stream.take()
    assert response is not None and scheduler.form() == []
    replies = {reply.call: reply for reply in response.replies}
    assert list(replies[1].tokens) == [8, 5, 6, 7, 8] and list(replies[2].tokens) == []
    assert {reply.outcome for reply in replies.values()} == {pb.OUTCOME_DONE}


def test_a_draw_after_a_long_text_is_quick() -> None:
    ngram = engine()
    text = [(i * i) % 5003 for i in range(8000)]
    ask(ngram, text)
    best = 1.0
    for i in range(20):
        text += [i, i + 1]
        start = time.perf_counter()
        ask(ngram, text, start=len(text) - 2, more=8)
        best = min(best, time.perf_counter() - start)
    assert best < 0.0003
