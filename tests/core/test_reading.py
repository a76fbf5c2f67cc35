"""A level that has not read a sequence's text must be worth the reading, where levels take turns."""

from __future__ import annotations

import pytest

from specrouter_core.adaptive import ANSWER, ENDLESS, Adaptive
from specrouter_core.event import Commit
from specrouter_core.tables import Member

COSTS = {"mid": {1: 0.010, 512: 1.0}, "target": {1: 0.060, 16: 0.065, 512: 2.0}}  # seconds of a step by its tokens


def made(*, overlapped: bool = False) -> Adaptive:
    """A middle level that is nearly always right, and slow to read: 0.4 s for 200 tokens."""
    adaptive = Adaptive([Member(n, c) for n, c in COSTS.items()], modes=(overlapped,), explore=0.0)
    for i in range(400):
        adaptive.agreement.observe("mid", "target", i % 8, i % 20 > 0)
    return adaptive


def rounds(adaptive: Adaptive, sequence: str, count: int, drawn: int | None, start: float) -> tuple[str, ...]:
    """So many tokens are committed one by one, 60 ms each; the levels at the end."""
    for n in range(count):
        draws: dict[str, int] = {} if drawn is None else {"mid": drawn}
        adaptive.committed(sequence, Commit(n, (1,), ("target",), (draws,)), start + 0.06 * (n + 1))
    return adaptive.running[sequence].plan.levels


@pytest.mark.parametrize(
    ("prompt", "limit", "levels"),
    [
        (4, 100, ("mid", "target")),
        (400, 100, ("mid", "target")),
        (400, 10, ("target",)),
        (4000, 100, ("target",)),
        (4000, ENDLESS, ("target",)),
        (400, ENDLESS, ("mid", "target")),
    ],
)
def test_what_must_be_read_counts_against_what_is_left(prompt: int, limit: int, levels: tuple[str, ...]) -> None:
    assert made().begin("a", 0.0, prompt=prompt, limit=limit).levels == levels


def test_levels_that_overlap_read_while_others_go_on() -> None:
    assert made(overlapped=True).begin("a", 0.0, prompt=4000, limit=100).levels == ("mid", "target")


def test_answers_are_expected_to_be_as_long_as_those_before() -> None:
    adaptive = made()
    assert ANSWER > 100 and adaptive.begin("first", 0.0, prompt=400).levels == ("mid", "target")
    for n in range(60):
        adaptive.begin(f"short{n}", 0.0, prompt=400)
        rounds(adaptive, f"short{n}", 4, None, 0.0)
        adaptive.end(f"short{n}")
    assert adaptive.begin("next", 10.0, prompt=400).levels == ("target",)


def test_a_running_sequence_takes_a_level_up_only_while_enough_is_left() -> None:
    for limit, levels in ((200, ("mid", "target")), (12, ("target",))):
        adaptive = made()
        adaptive.without({"mid"})
        adaptive.begin("a", 0.0, prompt=400, limit=limit)
        adaptive.without(())
        assert rounds(adaptive, "a", 8, None, 0.0) == levels


def test_the_round_in_which_a_level_reads_says_nothing_of_the_chain() -> None:
    adaptive = made()
    plan = adaptive.begin("a", 0.0, prompt=400, limit=100)
    assert plan.levels == ("mid", "target")
    times = (1.0, 3.0)  # the target reads, the middle level reads
    for n, now in enumerate(times):
        adaptive.committed("a", Commit(n, (1,), ("target",), ({"mid": 1},)), now)
    follower = adaptive.running["a"]
    assert (follower.measured, follower.since) == (0, 3.0)
    adaptive.committed("a", Commit(2, (1,), ("target",), ({"mid": 1},)), 3.06)
    assert (follower.measured, follower.tokens) == (1, 1)
