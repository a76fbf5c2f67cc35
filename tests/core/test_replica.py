"""A simulated replica forms steps as the level's scheduler does."""

from __future__ import annotations

from typing import Any

from specrouter_core.profile import Curve
from specrouter_core.replica import Replica, SimLevel, Work

LINE = Curve.of({n: n / 1000 for n in (1, 2, 3, 4, 8, 16, 64, 512)})  # a millisecond a row


def draw(sequence: int, position: int, before: int) -> int:
    return 100 + position


def replica(**kw: Any) -> Replica:
    return Replica(SimLevel("target", LINE, 1.0, **kw), 0, draw)


def work(
    sequence: int,
    call: int,
    base: int,
    proposals: tuple[int, ...] = (),
    own: int = 1,
    ahead: tuple[int, ...] = (),
    at: float = 0.0,
) -> Work:
    return Work(sequence, call, base, ahead, proposals, own, at, at)


def step(one: Replica, now: float = 0.0) -> tuple[int, list[Work]]:
    """The rows of the next step (a millisecond each), and the calls with news."""
    seconds = one.form(now)
    assert seconds is not None
    return round(seconds * 1000), one.finish()


def test_rows_are_what_the_kv_lacks_and_the_proposals() -> None:
    one = replica()
    one.open(0, 10)
    one.receive(work(0, 1, 10), [1] * 10)
    rows, (done,) = step(one)
    assert rows == 10 and done.out == [110] and done.left == 0
    committed = [1] * 10 + [110]
    one.receive(work(0, 2, 11, proposals=(111, 112, 7, 8)), committed)
    rows, (done,) = step(one)
    assert rows == 5 and done.out == [111, 112, 113], "the last draw and four proposals; the third is wrong"
    one.receive(work(0, 3, 14, proposals=(114,)), [*committed, 111, 112, 113])
    assert step(one)[0] == 2, "the wrong proposals' KV is gone, the right ones' is not"


def test_a_level_that_fell_behind_feeds_what_it_missed() -> None:
    one = replica()
    one.open(0, 4)
    one.receive(work(0, 1, 4), [1] * 4)
    step(one)
    committed = [1] * 4 + list(range(104, 124))
    one.receive(work(0, 2, 24), committed)
    assert step(one)[0] == 20, "all that was committed since, from the first token that was drawn but not fed"


def test_a_newer_call_takes_up_what_the_older_ones_step_found() -> None:
    one = replica()
    one.open(0, 4)
    one.receive(work(0, 1, 4), [1] * 4)
    step(one)
    one.receive(work(0, 2, 5, own=4), [1] * 4 + [104])
    assert one.form(0.0) is not None
    one.receive(work(0, 3, 5, proposals=(105, 106)), [1] * 4 + [104])
    (newer,) = one.finish()
    assert newer.call == 3 and newer.out == [105] and newer.left == 1, "the draw of call 2 answers the first proposal"
    rows, (newer,) = step(one)
    assert rows == 2 and newer.out == [105, 106, 107] and newer.left == 0


def test_prompts_do_not_hold_up_short_calls() -> None:
    one = replica(max_rows=200)
    for sequence, prompt in enumerate((4, 1000, 1000)):
        one.open(sequence, prompt)
    one.receive(work(1, 1, 1000), [1] * 1000)
    one.receive(work(2, 1, 1000, at=0.001), [1] * 1000)
    one.receive(work(0, 1, 4, own=30), [1] * 4)
    steps = []
    while one.form(0.0) is not None:
        steps.append({w.sequence for w in one.finish()})
    assert all(0 in s for s in steps[:10]), "a draw in every step while prompts are fed"
    first = next(i for i, s in enumerate(steps) if 1 in s)
    second = next(i for i, s in enumerate(steps) if 2 in s)
    assert first <= 5 and second <= 10, "one prompt after the other"


def test_a_withdrawn_or_released_call_leaves_nothing_running() -> None:
    one = replica()
    one.open(0, 4)
    one.receive(work(0, 1, 4), [1] * 4)
    one.withdraw(0, 7)
    assert one.form(0.0) is not None
    one.withdraw(0, 1)
    assert one.finish() == [] and one.form(0.0) is None
    one.receive(work(0, 2, 4), [1] * 4)
    assert one.form(0.0) is None, "its draw is known"
    one.release(0)
    assert not one.held
