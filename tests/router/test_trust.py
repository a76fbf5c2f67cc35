"""What replicas are trusted with, by pure decisions: circuits, hedges, places."""

from __future__ import annotations

import random
from typing import Any

import pytest

from specrouter.v1 import level_pb2 as pb
from specrouter_core.prefix import Text
from specrouter_router import circuit as circuits
from specrouter_router import hedges as hedging
from specrouter_router import placement
from specrouter_router.circuit import Circuit
from specrouter_router.hedges import Hedges
from specrouter_router.link import Link
from specrouter_router.seat import Seat


def open_for(circuit: Circuit, now: float) -> float:
    """Seconds until the replica is asked again."""
    for step in range(1, 4000):
        if circuit.due(now + step / 100):
            return step / 100
    raise AssertionError("it never is")


def state(circuit: Circuit) -> str:
    """As it is now, whatever it was found to be before."""
    return circuit.state


def test_a_circuit_stays_open_longer_with_each_failure_and_forgets() -> None:
    circuit, now = Circuit(), 100.0
    assert state(circuit) == "closed" and not circuit.due(now)
    for n in range(10):
        circuit.failed(now)
        longest = min(circuits.FIRST_S * 2**n, circuits.LAST_S)
        waited = open_for(circuit, now)
        assert longest / 2 <= waited <= longest + 0.02 and state(circuit) == "half-open"
        now += waited
        circuit.tried(True, now)
        assert state(circuit) == "closed"
    circuit.failed(now + circuits.FORGET_S + 1)
    assert circuit.failures == 1 and circuit.losses == 11


def test_an_open_circuit_counts_a_failure_once_and_a_failed_trial_again() -> None:
    circuit = Circuit()
    circuit.failed(1.0)
    circuit.failed(1.1)
    assert circuit.losses == 1
    assert circuit.due(3.0)
    circuit.tried(False, 3.0)
    assert state(circuit) == "open" and circuit.losses == 2


def test_only_errors_in_a_row_open_a_circuit() -> None:
    circuit = Circuit()
    for _ in range(5):
        assert not circuit.erred(1.0) and not circuit.erred(1.0)
        circuit.errors = 0
    assert state(circuit) == "closed"
    assert [circuit.erred(1.0) for _ in range(circuits.ERRORS)] == [False] * (circuits.ERRORS - 1) + [True]
    assert state(circuit) == "open"


def test_late_is_what_one_call_in_a_hundred_is() -> None:
    hedges, chance = Hedges(), random.Random(5)
    assert hedges.late(5, 5) == float("inf")
    late = 0
    for n in range(20_000):
        seconds = 0.05 * chance.lognormvariate(0, 0.3)
        late += n > 2000 and seconds > hedges.late(5, 5)
        hedges.answered(5, 5, seconds)
    assert 0.005 < late / 18_000 < 0.02
    assert hedges.late(5, 5) < hedges.late(9, 5) < hedges.late(9, 900)


def test_second_calls_are_a_small_share() -> None:
    hedges = Hedges()
    assert sum(hedges.spend() for _ in range(100)) == hedging.SAVED
    sent = 0
    for _ in range(1000):
        hedges.answered(1, 1, 0.01)
        sent += hedges.spend()
    assert sent == pytest.approx(1000 * hedging.SHARE, abs=1)


class Nobody:
    """Hears nothing."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def link(seats: int, step: float, queue: float = 0.0) -> Link:
    made = Link("level", "127.0.0.1:1", Nobody())
    made.tempo.begin(pb.DescribeResponse(costs=[pb.StepCost(rows=1, microseconds=int(step * 1e6))] if step else []))
    made.tempo.queue, made.tempo.at = queue, 10.0
    for n in range(seats):
        Seat(f"s{n}", Text([1]), pb.SequenceParams()).move(made)
    return made


async def test_a_sequence_gets_the_least_wait() -> None:
    full, slow, queued, best = link(3, 0.01), link(0, 0.08), link(0, 0.01, queue=0.06), link(1, 0.01)
    assert placement.choose([full, slow, queued, best], 10.0) is best
    assert placement.choose([slow], 10.0) is slow and placement.choose([], 10.0) is None
    unknown = link(0, 0.0)
    assert placement.choose([best, unknown], 10.0) is unknown  # taken for as fast as the fastest
    both = [link(0, 0.01), link(0, 0.01)]
    assert {placement.choose(both, 10.0) for _ in range(60)} == set(both)


async def test_a_replica_that_was_slow_is_given_another_try() -> None:
    slow, best = link(0, 0.08), link(2, 0.01)
    assert placement.choose([slow, best], 10.0) is best
    assert placement.choose([slow, best], 10.0 + 200) is slow


async def test_sequences_move_where_they_wait_much_less_and_only_then() -> None:
    assert placement.misplaced([link(3, 0.01), link(2, 0.01)], 10.0) == []
    assert placement.misplaced([link(1, 0.01), link(0, 0.01)], 10.0) == []
    crowded, empty = link(20, 0.01), link(0, 0.01)
    moves = placement.misplaced([crowded, empty], 10.0)
    assert len(moves) == 2 and all(seat.link is crowded and there is empty for seat, there in moves)
    for seat, there in moves:
        seat.leave_for(there, 10.0)
    assert len(crowded.seats) == 18 and len(empty.seats) == 2
    slow, fast = link(1, 0.1), link(1, 0.01)
    assert [there for _, there in placement.misplaced([slow, fast], 10.0)] == [fast]


async def test_a_long_text_is_moved_only_where_that_pays() -> None:
    slow, fast = link(1, 0.02), link(0, 0.01)
    (seat,) = slow.seats
    text = Text([1] * 100_000)
    long = Seat("long", text, pb.SequenceParams())
    slow.seats.discard(seat)
    long.move(slow)
    long.at(slow).name_prefix(pb.ExtendCall(), 100_000, ())
    assert placement.misplaced([slow, fast], 10.0) == []
    long.at(slow).correct(10_000, text.hashes[10_000])
    assert placement.misplaced([slow, fast], 10.0) == [(long, fast)]


async def test_the_times_of_a_slow_replica_are_not_the_levels() -> None:
    slow, fast = link(0, 0.1), link(0, 0.02)
    placement.compare([slow, fast], 10.0)
    assert slow.odd and not fast.odd
    instant = [link(0, 0.00002), link(0, 0.0001)]  # less than a hop: no difference
    placement.compare(instant, 10.0)
    assert not any(each.odd for each in instant)
