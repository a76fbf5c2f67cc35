"""Replicas follow load and plan, within bounds and budget, slowly down, and never on silence."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readings import COSTS, Readings, Run, level_signal

from specrouter_operator import scaling
from specrouter_operator.rules import LevelState, Rules
from specrouter_operator.scaling import Memory, Need
from specrouter_operator.signals import LevelSignal, Pair

OBJECTIVE = {"": 0.030}


@pytest.mark.parametrize(
    ("t_up", "t_down", "lookahead", "servers"),
    [(35, 2.5, 8, 2), (35, 2.5, 16, 1), (35, 9, 4, 1), (35, 1, 5, 7), (10, 10, 1, 1), (35.0, 5.0, 7, 1), (36, 5, 7, 2)],
)
def test_servers_needed_between_neighbours(t_up: float, t_down: float, lookahead: float, servers: int) -> None:
    assert scaling.servers(t_up, t_down, lookahead) == servers


def test_the_law_counts_the_sequences_that_draft() -> None:
    """A target that takes one check a step needs one server for each sequence, by the law for each."""
    above = LevelState("target", slots=1)
    signal = level_signal("target", proposals=8.0)
    for sequences in (1.0, 3.0):
        below = level_signal("draft", busy=1.0, batch=sequences)
        need = scaling.keeps_up(above, signal, LevelState("draft"), below, Rules())
        assert need.count == -(-sequences * 35 // (8 * 2.5))
    idle = level_signal("draft", busy=0.0)
    assert scaling.keeps_up(above, signal, LevelState("draft"), idle, Rules()).count == 1


def test_replicas_by_load() -> None:
    level = LevelState("target")
    most = scaling.carried(level, level_signal("target"))
    assert most is not None and most == pytest.approx(64 / 0.05)  # the last point within twice the step of one row
    signal = level_signal("target", fed=2.5 * most, replicas={"a": 0.0, "b": 0.0})
    assert scaling.utilisation(level, signal) == pytest.approx(1.25)
    assert scaling.needed(level, signal, None, Rules(utilisation=0.8)).count == 4  # 2.5 / 0.8


def test_a_queue_asks_for_one_more() -> None:
    signal = level_signal("target", queue=Pair(0.05, 0.2), fed=1.0)
    assert scaling.needed(LevelState("target"), signal, None, Rules()).count == 2


def follow(
    needs: list[int], *, rules: Rules | None = None, fresh: list[bool] | None = None, have: int = 4
) -> list[int]:
    """Replicas after each need, a second apart."""
    memory, out = Memory(), []
    for i, need in enumerate(needs):
        level = LevelState("mid", have, have, 1, 32)
        now_fresh = fresh is None or fresh[i]
        have = scaling.follow(
            memory, level, Need(need, "test"), rules or Rules(), float(i), fresh=now_fresh, urgent=False
        ).count
        out.append(have)
    return out


def test_more_only_after_the_up_window_less_only_after_the_down_window() -> None:
    rules = Rules(up_window=10, down_window=60)
    up = follow([4] * 20 + [6] * 30, rules=rules)
    assert up.index(6) == 30  # ten seconds of needing them
    down = follow([4] * 20 + [1] * 200, rules=rules)
    first = next(i for i, count in enumerate(down) if count < 4)
    assert first == 80 and down[-1] == 1
    assert all(a - b <= 1 for a, b in pairwise(down))


def test_a_spike_shorter_than_the_window_changes_nothing() -> None:
    assert set(
        follow([4] * 20 + [9] * 9 + [4] * 20 + [1] * 50 + [4] * 20, rules=Rules(up_window=10, down_window=60))
    ) == {4}


def test_steps_are_bounded_but_a_small_level_may_double() -> None:
    path = follow([32] * 60, rules=Rules(up_window=0, up_step=2), have=1)
    assert path[:4] == [3, 6, 12, 24]
    assert max(path) == 32


def test_manual_is_left_alone() -> None:
    assert set(follow([9] * 50 + [1] * 400, rules=Rules(automatic=False), have=3)) == {3}


def test_nothing_goes_down_on_silence_and_history_begins_anew() -> None:
    rules = Rules(up_window=5, down_window=30)
    needs = [4] * 5 + [1] * 20 + [1] * 200 + [1] * 40
    fresh = [True] * 25 + [False] * 200 + [True] * 40
    path = follow(needs, rules=rules, fresh=fresh)
    assert set(path[:225]) == {4} and set(path[225:254]) == {4} and path[-1] < 4


def test_the_familys_bounds_hold_at_once() -> None:
    memory = Memory()
    state = LevelState("mid", 1, 1, 3, 5)
    assert scaling.follow(memory, state, Need(1, ""), Rules(), 0.0, fresh=True, urgent=False).count == 3
    assert scaling.follow(memory, state, Need(1, ""), Rules(), 1.0, fresh=False, urgent=False).count == 3
    state = LevelState("mid", 9, 9, 3, 5)
    assert scaling.follow(memory, state, Need(9, ""), Rules(), 2.0, fresh=True, urgent=False).count == 5


@given(st.lists(st.integers(0, 40), min_size=1, max_size=200), st.integers(0, 20), st.integers(0, 60))
@settings(deadline=None)
def test_replicas_stay_within_bounds_and_follow_only_what_was_needed(needs: list[int], up: int, down: int) -> None:
    path = follow(needs, rules=Rules(up_window=up, down_window=down))
    assert all(1 <= count <= 32 for count in path)
    assert all(min(*needs, 4) <= max(count, 1) <= max(*needs, 4) or count == 1 for count in path)


# The whole of it, over a family.


def test_doubled_load_grows_to_the_plan_and_stays() -> None:
    run = Run(Readings(rate=9.0), Rules(tpot=OBJECTIVE, down_window=120))
    run.until(60)
    before = dict(run.replicas)
    run.readings.rate = 18.0
    decision = run.until(100)
    assert run.replicas["target"] > before["target"]
    assert decision.per_token is not None and decision.per_token <= 1.1 * OBJECTIVE[""]
    grown = dict(run.replicas)
    run.until(200)
    assert run.replicas == grown


def test_a_missed_objective_does_not_wait_for_the_window() -> None:
    slow = Run(Readings(rate=2.0), Rules(tpot=OBJECTIVE, up_window=60))
    urgent = Run(Readings(rate=2.0, tpot=0.2), Rules(tpot=OBJECTIVE, up_window=60))
    slow.until(20)
    urgent.until(20)
    assert sum(slow.replicas.values()) == 3 and sum(urgent.replicas.values()) > 3


def test_silence_of_any_level_or_of_the_routers_freezes_all_replicas() -> None:
    for silent in ("mid", "routers"):
        run = Run(Readings(rate=20.0), Rules(tpot=OBJECTIVE, down_window=20), {"draft": 2, "mid": 3, "target": 7})
        run.until(10)
        before = dict(run.replicas)
        run.readings.silent.add(silent)
        run.readings.rate = 0.01
        decision = run.until(200)
        assert not decision.fresh and silent in decision.stale
        assert run.replicas == before
        run.readings.silent.clear()
        assert run.until(215).replicas == before  # the history begins anew
        assert sum(run.until(400).replicas.values()) < sum(before.values())


def test_a_level_that_does_not_pay_is_switched_off_and_comes_back_when_it_pays() -> None:
    rules = Rules(tpot=OBJECTIVE, down_window=30)
    run = Run(Readings(rate=1.0), rules, least={"draft": 0, "mid": 0})
    run.until(120)
    assert 0 in run.replicas.values() and run.replicas["target"] >= 1
    off = next(name for name, count in run.replicas.items() if count == 0)
    run.readings.rate = 20.0
    run.until(240)
    assert run.replicas[off] > 0


def test_a_level_without_calibration_is_planned_by_what_its_steps_take() -> None:
    """Prompt lookup takes next to nothing: it is worth its place, and one replica is enough."""

    class Lookup(Readings):
        def level(self, family: str, level: str, now: float, window: float) -> LevelSignal:
            if level != "draft":
                return super().level(family, level, now, window)
            return level_signal("draft", costs={}, step=Pair(0.0002, 0.0003), queue=Pair(0.0, 0.0001), busy=0.02)

    run = Run(Lookup(rate=20.0), Rules(tpot=OBJECTIVE, down_window=20), least={"draft": 0, "mid": 0})
    run.until(120)
    assert run.replicas["draft"] == 1 and run.weights["draft"] == 100


def test_the_budget_holds_and_the_least_replicas_go_before_it() -> None:
    run = Run(Readings(rate=40.0, tpot=0.5), Rules(tpot=OBJECTIVE, gpus=5, down_window=20))
    for _ in range(120):
        run.step()
        assert sum(run.replicas.values()) <= 5
    run = Run(Readings(rate=2.0), Rules(tpot=OBJECTIVE, gpus=2, down_window=20))
    run.until(60)
    assert run.replicas == {"draft": 1, "mid": 1, "target": 1}


def test_those_that_hold_the_fewest_sequences_go_first() -> None:
    class Uneven(Readings):
        def level(self, family: str, level: str, now: float, window: float) -> LevelSignal:
            held = {f"{level}-{i}": float(held) for i, held in enumerate((5, 0, 2, 9))}
            return level_signal(level, replicas=held, fed=1.0)

    run = Run(Uneven(rate=0.1), Rules(tpot=OBJECTIVE, down_window=20, down_step=2), {"draft": 4, "mid": 4, "target": 4})
    while not (decision := run.step()).removals:
        assert run.now < 100
    assert all(gone == (f"{name}-1", f"{name}-2") for name, gone in decision.removals.items())


@pytest.mark.parametrize("rate", [0.5, 3.0, 6.3, 12.0])
def test_ten_minutes_of_steady_noise_change_nothing(rate: float) -> None:
    """10 % on every measurement: it settles in the first minutes, and then neither weights nor replicas move."""
    run = Run(Readings(rate=rate, noise=0.10), Rules(tpot=OBJECTIVE, down_window=60))
    run.until(180)
    run.changes.clear()
    run.until(780)
    assert len(run.changes) <= 1, run.changes
    assert set(run.replicas) == set(COSTS)
