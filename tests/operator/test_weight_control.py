"""Weights follow what is measured: bounded, damped, monotone, and still when nothing happens."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readings import Readings, Run, level_signal

from specrouter_operator import weights
from specrouter_operator.rules import LevelState, Mesh, Rules
from specrouter_operator.signals import LevelSignal, Pair
from specrouter_operator.weights import LevelMemory, Memory

MESH = Mesh("test", tuple(LevelState(name) for name in ("draft", "mid", "target")))


def stepped(
    signals: list[dict[str, LevelSignal]], rules: Rules | None = None, loads: float = 0.0
) -> list[dict[str, int]]:
    """The weights after each of the signals, two seconds apart."""
    memory, out, mesh = Memory(), [], MESH
    for i, seen in enumerate(signals):
        weighed = weights.step(memory, mesh, rules or Rules(), seen, {"mid": loads}, 2.0 * i)
        out.append(weighed.weights)
        mesh = Mesh("test", MESH.levels, weighed.weights)
    return out


def mid(**fields: Any) -> dict[str, LevelSignal]:
    return {"draft": level_signal("draft"), "mid": level_signal("mid", **fields), "target": level_signal("target")}


def test_a_level_slowed_five_times_goes_out_and_returns_when_healed() -> None:
    run = Run(Readings(), Rules())
    run.until(20)
    run.readings.slow["mid"] = 5.0
    out = next(run.now - 20 for _ in range(15) if run.step().weights["mid"] == 0)
    assert out <= 8  # of the 15 s, the rest is measuring and reading
    assert run.weights == {"draft": 100, "mid": 0, "target": 100}
    run.until(60)
    assert run.weights["mid"] == 0
    run.readings.slow["mid"] = 1.0
    back = next(run.now - 60 for _ in range(60) if run.step().weights["mid"] == 100)
    assert weights.HOLD <= back <= 25


def test_down_is_faster_than_up_and_neither_is_at_once() -> None:
    path = [one["mid"] for one in stepped([mid()] * 3 + [mid(slow=9.0)] * 4 + [mid()] * 12)]
    falling, rising = path[3:7], path[7:]
    assert falling[0] not in (0, 100) and falling[-1] == 0
    assert falling == sorted(falling, reverse=True) and rising == sorted(rising) and rising[-1] == 100
    assert rising.count(0) >= weights.HOLD / 2


def test_a_moderate_slowdown_lowers_the_weight_without_putting_the_level_out() -> None:
    path = [one["mid"] for one in stepped([mid(slow=2.5)] * 20)]
    assert 40 < path[-1] < 90


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"errors": 0.3}, "fail"),
        ({"queue": Pair(0.05, 0.9)}, "queue"),
        ({"step": Pair(0.009, 0.2)}, "p95"),
        ({"slow": 6.0}, "p50"),
    ],
)
def test_the_reason_names_what_is_wrong(fields: dict[str, object], word: str) -> None:
    memory = Memory()
    for now in (0.0, 2.0, 4.0, 6.0):
        weighed = weights.step(memory, MESH, Rules(), mid(**fields), {}, now)
    assert weighed.weights["mid"] < 60 and word in weighed.reasons["mid"]


def test_a_level_that_is_asked_for_more_than_it_carries_is_used_less() -> None:
    assert stepped([mid()] * 8, loads=2.0)[-1]["mid"] < 80


def test_prompts_are_not_taken_for_slowness() -> None:
    """A tail of long steps that had many rows to feed is as it should be."""
    prompts = mid(step=Pair(0.009, 0.04), rows=Pair(4.0, 250.0))
    assert stepped([prompts] * 6)[-1]["mid"] == 100


def test_pins_hold_and_the_target_stays() -> None:
    seen = {
        "draft": level_signal("draft", slow=50.0),
        "mid": level_signal("mid"),
        "target": level_signal("target", slow=50.0),
    }
    last = stepped([seen] * 8, Rules(pins={"draft": 70.0, "mid": 0.0}))[-1]
    assert last == {"draft": 70, "mid": 0, "target": 100}


def test_between_two_steps_of_the_interval_nothing_moves() -> None:
    memory, path = Memory(), []
    for i in range(40):
        path.append(weights.step(memory, MESH, Rules(weight_interval=5.0), mid(slow=9.0), {}, i / 2).weights["mid"])
    changes = [i / 2 for i in range(1, 40) if path[i] != path[i - 1]]
    assert changes and all(b - a >= 5 for a, b in pairwise(changes))


def test_stale_signals_freeze_the_weight() -> None:
    stale = {
        "mid": level_signal("mid", slow=9.0, age=11.0),
        "draft": level_signal("draft"),
        "target": level_signal("target"),
    }
    before, after = stepped([mid(slow=9.0)] * 1 + [stale] * 30)[0], stepped([mid(slow=9.0)] + [stale] * 30)[-1]
    assert before == after and after["mid"] not in (0, 100)


def test_a_new_leader_goes_on_from_the_published_weights() -> None:
    mesh = Mesh("test", MESH.levels, {"draft": 100, "mid": 0, "target": 100})
    assert weights.step(Memory(), mesh, Rules(), mid(), {}, 0.0).weights["mid"] == 0


def test_a_level_that_is_out_and_unmeasured_is_tried_again_at_growing_distances() -> None:
    memory, unseen = Memory(), {"mid": LevelSignal(age=0.5, replicas={"mid-0": 0.0})}
    tries = []
    for i in range(2000):
        now = 2.0 * i
        published = memory.levels["mid"].published if "mid" in memory.levels else 100
        seen = mid(slow=9.0) if published else unseen
        if weights.step(memory, MESH, Rules(), seen, {}, now).weights["mid"] == 50:
            tries.append(now)
    gaps = [b - a for a, b in pairwise(tries)]
    assert len(tries) >= 3 and all(b > 1.8 * a for a, b in pairwise(gaps))


def test_a_level_without_calibration_is_compared_with_its_own_best() -> None:
    plain, slow = mid(costs={}), mid(costs={}, slow=5.0)
    path = [one["mid"] for one in stepped([plain] * 5 + [slow] * 5)]
    assert path[4] == 100 and path[-1] == 0


def test_the_policys_objective_goes_before_the_calibration() -> None:
    mesh = Mesh("test", (LevelState("draft"), LevelState("mid", step_ms=60.0), LevelState("target")))
    memory = Memory()
    for now in range(0, 20, 2):
        weighed = weights.step(memory, mesh, Rules(), mid(slow=5.0), {}, float(now))
    assert weighed.weights["mid"] == 100


ratios = st.floats(0.01, 100)


@given(st.lists(st.tuples(ratios, ratios, ratios, st.floats(0, 1)), min_size=1, max_size=40))
def test_weights_are_within_0_and_100_whatever_is_measured(seen: list[tuple[float, float, float, float]]) -> None:
    signals = [
        mid(slow=slow, step=Pair(0.009 * slow, 0.009 * slow * tail), queue=Pair(0.0, 0.01 * queue), errors=errors)
        for slow, tail, queue, errors in seen
    ]
    for one in stepped(signals):
        assert all(0 <= weight <= 100 for weight in one.values()) and one["target"] == 100


@given(st.floats(0, 50), st.floats(0, 50))
def test_a_greater_excess_never_deserves_a_higher_weight(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert weights.wanted_at(high) <= weights.wanted_at(low)


@given(st.floats(0.2, 20), st.floats(0.2, 20))
def test_a_slower_level_never_has_a_smaller_excess(a: float, b: float) -> None:
    low, high = sorted((a, b))
    state, rules = LevelState("mid"), Rules()
    slow = weights.excess(LevelMemory(), state, rules, level_signal("mid", slow=low), 0.0, 0.0)
    slower = weights.excess(LevelMemory(), state, rules, level_signal("mid", slow=high), 0.0, 0.0)
    assert slow is not None and slower is not None and slower.value >= slow.value - 1e-9


@given(st.integers(0, 2**32), st.sampled_from([1.0, 1.6, 2.2, 3.0]))
@settings(max_examples=15, deadline=None)
def test_ten_minutes_of_noise_at_any_speed_move_a_weight_to_its_place_and_no_further(seed: int, slow: float) -> None:
    """15 % of noise on every measurement: after the first half minute, hardly ever a change."""
    readings = Readings(slow={"mid": slow}, noise=0.15)
    readings.random.seed(seed)
    run = Run(readings, Rules())
    run.until(30)
    run.changes.clear()
    run.until(600)
    assert sum(what == "weights" for _, what in run.changes) <= 2, run.changes


@pytest.mark.parametrize("remembers", [True, False], ids=["same leader", "new leader"])
def test_a_pin_that_is_taken_away_leaves_nothing(remembers: bool) -> None:
    """Without signals the level is free to use again; with them, what is measured decides from there."""
    memory, silent = Memory(), {level.name: LevelSignal(age=1e9) for level in MESH.levels}
    pinned = weights.step(memory, MESH, Rules(pins={"mid": 30}), silent, {}, 0.0)
    assert pinned.weights["mid"] == 30
    for signals, low, high in ((silent, 100, 100), (mid(), 100, 100), (mid(slow=9.0), 1, 60)):
        kept = copy.deepcopy(memory) if remembers else Memory()
        mesh = Mesh("test", MESH.levels, pinned.weights, frozenset({"mid"}))
        freed = weights.step(kept, mesh, Rules(), signals, {}, 2.0)
        assert low <= freed.weights["mid"] <= high
        still = weights.step(kept, Mesh("test", MESH.levels, freed.weights), Rules(), silent, {}, 4.0)
        assert still.weights == freed.weights
