"""The judge itself: good histories pass, hand-made bad ones don't."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from changes import Commit, Records, commands, transactions
from history import judge, judge_late
from language import asks, expected

from sighting import Ask, Broke, Ended, Event, GaveUp, Got, Opened
from specrouter_core.record import pack

ASK = Ask("s", tuple(b"once"), max_tokens=12, seed=7, temperature=0.8)
WHOLE = expected(ASK)


def got(stream: int, first: int, last: int) -> Got:
    return Got(0.0, "s", stream, first, WHOLE.tokens[first:last], WHOLE.text[first:last])


def opened(stream: int, offset: int, anew: bool = False) -> Opened:
    return Opened(0.0, "s", stream, 0, offset, anew)


END = Ended(0.0, "s", 2, "length", 12, "")
GOOD: list[Event] = [
    opened(1, 0, anew=True),
    got(1, 0, 3),
    got(1, 3, 4),
    Broke(0.0, "s", 1, "UNAVAILABLE", "reset"),
    opened(2, 4),
    got(2, 4, 12),
    END,
]


def commit(epoch: int, round_: int, tokens: int, owner: str = "a", finish: int = 0) -> Commit:
    return Commit("s", epoch, round_, owner, finish, WHOLE.tokens[:tokens])


COMMITS = [commit(1, 1, 3), commit(1, 2, 5), commit(2, 2, 5, "b"), commit(2, 3, 12, "b", 2)]


def kinds(events: list[Event], commits: list[Commit] = COMMITS, ask: Ask = ASK) -> set[str]:
    return {problem.kind for problem in judge([ask], events, commits)}


def test_a_good_history_has_no_problem() -> None:
    assert not kinds(GOOD)
    assert not kinds(GOOD, [COMMITS[0], *COMMITS])  # a repeated write that changes nothing


def other(event: Event) -> Event:
    assert isinstance(event, Got)
    return replace(event, tokens=(event.tokens[0] ^ 1, *event.tokens[1:]))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda e: [*e[:1], other(e[1]), *e[2:]], "wrong"),
        (lambda e: [*e[:5], got(2, 5, 12), END], "lost"),  # one token left out after the break
        (lambda e: [*e[:5], got(2, 4, 8), got(2, 9, 12), END], "lost"),  # and in the middle
        (lambda e: [*e[:5], got(2, 3, 12), END], "doubled"),  # one that the client has already
        (lambda e: [*e[:5], got(2, 4, 8), got(2, 7, 12), END], "doubled"),
        (lambda e: [*e[:5], got(2, 4, 11), replace(END, tokens=11)], "lost"),  # ended too early
        (lambda e: e[:-1], "lost"),
        (lambda e: [*e[:-1], GaveUp(0.0, "s", 2, 60.0)], "lost"),
        (lambda e: [], "lost"),
        (lambda e: [*e, END], "doubled"),
        (lambda e: [*e[:-1], replace(END, finish="stop")], "wrong"),
        (lambda e: [*e[:-1], replace(END, text="?")], "wrong"),
        (lambda e: [*e[:-1], Got(0.0, "s", 2, 12, (97,), "a"), END], "wrong"),  # one more than was asked for
    ],
)
def test_what_a_client_must_not_see(change: Callable[[list[Event]], list[Event]], kind: str) -> None:
    assert kind in kinds(change(GOOD))


@pytest.mark.parametrize(
    ("commits", "kind"),
    [
        ([*COMMITS[:3], commit(1, 3, 8), COMMITS[3]], "fenced"),  # the first owner woke up and wrote
        ([*COMMITS[:3], commit(2, 3, 8, "c")], "fenced"),
        ([commit(1, 2, 5), commit(1, 2, 8)], "rounds"),
        ([commit(1, 2, 5), commit(1, 1, 8)], "rounds"),
        ([commit(1, 2, 5), commit(1, 3, 4)], "rounds"),
        ([replace(commit(1, 1, 3), tokens=(1, 2, 3))], "wrong"),
        ([replace(commit(1, 1, 12), tokens=(*WHOLE.tokens, 97))], "wrong"),
    ],
)
def test_what_a_record_must_not_show(commits: list[Commit], kind: str) -> None:
    assert kind in kinds(GOOD, commits)


def test_a_late_write_of_an_old_owner_is_seen() -> None:
    assert not judge_late({"s": ASK}, [COMMITS[-1], COMMITS[-1]])
    assert {problem.kind for problem in judge_late({"s": ASK}, [COMMITS[-1], commit(1, 9, 12)])} == {"fenced"}


def test_a_record_that_expired_begins_anew() -> None:
    assert kinds(GOOD, [COMMITS[2], commit(1, 1, 3)]) == {"fenced"}
    assert not kinds(GOOD, [COMMITS[2], replace(commit(1, 1, 3), life=1)])


def test_a_cancelled_text_is_a_part_of_the_whole() -> None:
    ask = replace(ASK, cancel_after=2)
    end = Ended(0.0, "s", 1, "cancelled", 4, "")
    assert not kinds([*GOOD[:3], end], [], ask)
    assert not kinds(GOOD, [], ask)  # it had ended before
    assert kinds([GOOD[0], other(GOOD[1]), end], [], ask) == {"wrong"}
    assert kinds([GOOD[0], got(1, 0, 2), got(1, 3, 4), end], [], ask) >= {"lost"}
    assert kinds([*GOOD[:3], end], [], ASK) >= {"lost", "wrong"}  # nobody had cancelled it


def test_a_request_sent_again_begins_again() -> None:
    again = [*GOOD[:4], opened(2, 0, anew=True)]
    assert not kinds([*again, got(2, 0, 12), END])
    assert not kinds([*again, got(2, 0, 2), Broke(0.0, "s", 2, "ABORTED", "moved"), opened(3, 4), got(3, 4, 12), END])
    assert kinds([*again, got(2, 0, 4), opened(3, 2), got(3, 3, 12), END]) >= {"lost", "wrong"}


def test_asks_are_what_their_seed_says() -> None:
    assert asks("7", 40) == asks("7", 40) != asks("8", 40)
    stopped = [ask for ask in asks("7", 200) if ask.stop]
    assert stopped
    for ask in stopped:
        whole = expected(ask)
        assert whole.finish == "stop" and ask.stop not in whole.text
        assert bytes(whole.tokens).decode() == whole.text + ask.stop


def file(*all_: list[bytes]) -> bytes:
    """As Redis writes commands."""
    return b"".join(b"*%d\r\n" % len(c) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in c) for c in all_)


def write(round_: int, tokens: list[int]) -> list[list[bytes]]:
    state, kept = b"specrouter:{s}:state", b"specrouter:{s}:tokens"
    return [
        [b"MULTI"],
        [b"HSET", state, b"epoch", b"1", b"round", b"%d" % round_, b"owner", b"a", b"finish", b"0"],
        [b"APPEND", kept, pack(tokens)],
        [b"PEXPIREAT", state, b"1"],
        [b"EXEC"],
    ]


def test_the_append_only_file_is_read_as_it_was_written() -> None:
    data = file([b"SELECT", b"0"], *write(1, [10, 13]), [b"SET", b"other", b"\r\n*"], *write(2, [7]))
    records = Records()
    made = [commit for lot, _ in transactions(data) for commit in records.apply(lot)]
    assert made == [Commit("s", 1, 1, "a", 0, (10, 13)), Commit("s", 1, 2, "a", 0, (10, 13, 7))]
    whole = len(list(commands(data)))
    assert [len(list(commands(data[:cut]))) for cut in (len(data), len(data) - 1)] == [whole, whole - 1]
    assert all(len(list(commands(data[:cut]))) < whole for cut in range(len(data)))  # torn anywhere


def test_the_last_owner_of_an_ended_record_is_known() -> None:
    end = [[b"HSET", b"specrouter:{s}:state", b"epoch", b"1", b"round", b"2", b"owner", b"", b"finish", b"1"]]
    records = Records()
    for lot, _ in transactions(file(*write(1, [10]))):
        records.apply(lot)
    assert records.ended == {}
    records.apply(end)
    assert records.ended == {"s": "a"}


def test_an_unknown_change_of_a_record_is_an_error() -> None:
    with pytest.raises(ValueError, match="SETRANGE"):
        Records().apply([[b"SETRANGE", b"specrouter:{s}:tokens", b"4", b"x"]])
