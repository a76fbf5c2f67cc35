"""The planner picks what is fastest, lets speculation fade, and does not flutter."""

from __future__ import annotations

import time
from typing import Any

import pytest

from specrouter_core.chain import Plan
from specrouter_core.planner import Choice, Planner, same_chain
from specrouter_core.prediction import Level, Rates, candidates
from specrouter_core.profile import Curve, Profile
from specrouter_core.replica import SimLevel
from specrouter_core.simulator import Policy, Simulator
from specrouter_core.workload import Arrival

TIMES = {"draft": 0.0025, "mid": 0.009, "target": 0.035}


def level(
    name: str, hop: float = 0.0003, *, weight: float = 100, sharing: float = 1, curve: Curve | None = None
) -> Level:
    profile = Profile(curve=curve or Curve.of({1: TIMES[name], 64: TIMES[name]}))
    profile.hop.observe(2 * hop, 0)
    return Level(name, profile, weight, sharing)


def nested(draft: float, mid: float) -> Rates:
    """Rates where what is easy for a level is easy for every better one."""
    ease = {"draft": draft, "mid": mid, "target": 1.0}
    return lambda lower, upper: [min(ease[lower], ease[upper])] * 16


def plan_of(levels: list[Level], rates: Rates, **kw: Any) -> Plan:
    planner = Planner()
    return planner.choose(planner.table(levels, rates, **kw))


LEVELS = [level("draft"), level("mid"), level("target")]


def test_every_chain_that_ends_in_the_target_is_a_candidate() -> None:
    chains = {plan.levels for plan, _ in candidates(LEVELS, nested(0.6, 0.8), overlapped=True)}
    assert chains == {
        ("target",),
        ("draft", "target"),
        ("mid", "target"),
        ("draft", "mid", "target"),
    }


def test_useless_levels_leave_the_target_alone() -> None:
    plan = plan_of(LEVELS, nested(0.02, 0.03))
    assert plan.levels == ("target",)


def test_a_weight_of_0_takes_a_level_out_and_a_small_one_makes_it_slow() -> None:
    out = [level("draft"), level("mid", weight=0), level("target")]
    assert all("mid" not in choice.plan.levels for choice in Planner().table(out, nested(0.65, 0.82)))
    slow = [level("draft"), level("mid", weight=5), level("target")]
    assert "mid" not in plan_of(slow, nested(0.65, 0.82)).levels


def test_speculation_fades_as_the_load_grows() -> None:
    """Compute-bound steps: a row costs as much as a step, so checking wrong guesses costs what it takes away."""
    windows = []
    for sharing in (1, 4, 16, 64):
        loaded = [
            level(name, sharing=sharing, curve=Curve.of({1: t, 8: t * 1.05, 64: t * 6, 512: t * 48}))
            for name, t in TIMES.items()
        ]
        plan = plan_of(loaded, nested(0.5, 0.6))
        windows.append(plan.windows[-1] if len(plan.levels) > 1 else 0)
    assert windows == sorted(windows, reverse=True) and windows[0] > 1
    assert windows[-1] == 0


def test_a_small_gain_is_not_worth_a_switch() -> None:
    table = Planner().table(LEVELS, nested(0.65, 0.82))
    best, second = table[0].plan, table[1].plan
    assert same_chain(Planner(gain=10).choose(table, second), second)
    assert same_chain(Planner(gain=0).choose(table, second), best)
    assert same_chain(Planner().choose(table, best), best)


def corrected(planner: Planner, factor: float) -> tuple[list[Choice], list[Choice]]:
    """The tables before and after the best chain was measured at ``factor`` times its model."""
    before = planner.table(LEVELS, nested(0.65, 0.82))
    for _ in range(40):
        planner.observe(before[0], factor * before[0].model)
    return before, planner.table(LEVELS, nested(0.65, 0.82))


def test_the_correction_of_a_chain_overrules_the_model_and_fades() -> None:
    planner = Planner()
    before, after = corrected(planner, 3.0)
    assert not same_chain(after[0].plan, before[0].plan)
    moved = next(c for c in after if same_chain(c.plan, before[0].plan))
    assert 2.5 * moved.model < moved.seconds < 3 * moved.model, "what was measured counts for most"
    planner.age(0.0)
    assert planner.table(LEVELS, nested(0.65, 0.82)) == before


def test_exploration_goes_to_what_was_measured_least_among_what_may_be_good() -> None:
    planner = Planner()
    table = planner.table(LEVELS, nested(0.65, 0.82))
    tried = []
    for _ in range(4):
        plan = planner.explore(table, table[0].plan)
        tried.append(plan.levels)
        choice = next(c for c in table if c.plan == plan)
        assert choice.seconds < 1.6 * table[0].seconds and not same_chain(plan, table[0].plan)
        planner.observe(choice, choice.model)
    assert len(set(tried)) >= 2


@pytest.mark.parametrize("hop", [0.0003, 0.001, 0.005])
@pytest.mark.parametrize(("draft", "mid"), [(0.65, 0.82), (0.85, 0.9), (0.3, 0.9)])
def test_the_model_is_near_the_simulated_machine(draft: float, mid: float, hop: float) -> None:
    ease = {"draft": draft, "mid": mid, "target": 1.0}
    for choice in Planner().table([level(name, hop) for name in TIMES], nested(draft, mid)):
        names = choice.plan.levels
        levels = [SimLevel(name, Curve.of({1: TIMES[name]}), ease[name]) for name in names]
        (outcome,) = Simulator(levels, Policy(choice.plan), hop=hop).run([Arrival(0, 500)])
        rel = 0.1 if choice.plan.overlapped else 0.22
        assert choice.seconds == pytest.approx(outcome.per_token, rel=rel), choice.plan


def test_a_third_level_pays_less_the_longer_the_hops() -> None:
    """The level in the middle draws without a hop, and checks with one: at 5 ms it gains nothing of the draft."""
    ratios = []
    for hop in (0.0003, 0.001, 0.005):
        far = [level(name, hop) for name in TIMES]
        found = {plan.levels: s for plan, s in candidates(far, nested(0.65, 0.82), overlapped=True)}
        ratios.append(found["mid", "target"] / found["draft", "mid", "target"])
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 1.2 and ratios[-1] > 1.1


def test_a_choice_among_five_levels_takes_about_a_millisecond() -> None:
    """Not a timing test: a bound an order of magnitude above what it takes, against blow-up."""
    five = [
        Level(n, Profile(curve=Curve.of({1: t})))
        for n, t in zip("abcde", (0.001, 0.002, 0.004, 0.009, 0.03), strict=True)
    ]
    planner = Planner()
    begin = time.perf_counter()
    for _ in range(10):
        table = planner.table(five, lambda lower, upper: [0.7] * 16)
    assert (time.perf_counter() - begin) / 10 < 0.02
    assert len(table) == 31


def test_a_plan_of_the_planner_is_valid_and_bounded() -> None:
    for choice in Planner().table(LEVELS, nested(0.99, 0.995)):
        assert isinstance(choice.plan, Plan)
        assert len(choice.plan.levels) == 1 or max(choice.plan.windows) <= 16


def test_what_was_learnt_at_other_loads_costs_a_table_nothing() -> None:
    """A router that has lived through all loads has hundreds of corrections: each is looked at once a table."""
    planner = Planner()
    for power in range(9):
        planner.sharing = 2.0**power
        for choice in planner.table(LEVELS, nested(0.65, 0.82)):
            planner.observe(choice, choice.model * 1.1)
    looks: list[int] = []

    class Watched(dict[Any, Any]):
        def items(self) -> Any:
            looks.append(1)
            return super().items()

    planner._corrections = Watched(planner._corrections)
    assert len(planner.table(LEVELS, nested(0.65, 0.82))) == 7 and len(looks) <= 1


def test_the_operators_weight_is_not_learnt_away() -> None:
    """A level at weight 50 counts as twice as slow, however well it is known that it is not."""
    half = [level("draft"), level("mid", weight=50), level("target")]
    planner, rates = Planner(), nested(0.65, 0.82)
    free = {c.plan.levels: c for c in planner.table(LEVELS, rates, overlapped=(True,))}
    before = {c.plan.levels: c for c in planner.table(half, rates, overlapped=(True,))}
    chain = ("mid", "target")
    assert before[chain].seconds > 1.1 * free[chain].seconds
    for _ in range(100):  # it takes what it takes at full speed, as the model says
        now = {c.plan.levels: c for c in planner.table(half, rates, overlapped=(True,))}
        planner.observe(now[chain], free[chain].model)
    after = {c.plan.levels: c for c in planner.table(half, rates, overlapped=(True,))}
    assert after[chain].seconds == pytest.approx(before[chain].seconds, rel=0.02)
    assert after[chain].expected == pytest.approx(free[chain].seconds, rel=0.02), "what it is held against"
    assert after["draft", "target"] == free["draft", "target"]


@pytest.mark.parametrize("overlapped", [True, False])
def test_each_level_has_its_own_limit_and_is_planned_with_it(overlapped: bool) -> None:
    """What is predicted is what the policy allows, not what would be best without it."""
    rates = nested(0.95, 0.97)
    free = {plan.levels: s for plan, s in candidates(LEVELS, rates, overlapped=overlapped)}
    windows = {"draft": 4, "mid": 3, "target": 2}
    for plan, seconds in candidates(LEVELS, rates, overlapped=overlapped, windows=windows, lookahead=3):
        assert all(window <= windows[name] for name, window in zip(plan.levels, plan.windows, strict=True)), plan
        assert plan.lookahead <= 3
        assert seconds > 1.2 * free[plan.levels] or plan.levels == ("target",), plan


@pytest.mark.parametrize("overlapped", [True, False])
@pytest.mark.parametrize("agreement", [0.5, 0.7, 0.9, 0.97])
def test_a_jump_in_the_curve_hides_no_window(agreement: float, overlapped: bool) -> None:
    """Three tokens are cheap, a fourth costs half a step more, many are free again: who is never dearer is as fast."""

    def pace(shape: dict[int, float]) -> float:
        target = level("target", curve=Curve.of({rows: TIMES["target"] * of for rows, of in shape.items()}))
        pair = [level("draft", curve=Curve.of({1: 0.001, 64: 0.001})), target]
        return candidates(pair, lambda lower, upper: [agreement] * 16, overlapped=overlapped)[-1][1]

    jump = pace({1: 1.0, 3: 1.0, 4: 1.6, 64: 1.6})
    assert jump <= 1.09 * pace({1: 1.6, 64: 1.6}), "many at once would be as good"
    assert jump <= 1.09 * pace({1: 1.0, 3: 1.0, 4: 4.0, 64: 64.0}), "and so would be few"


def test_one_stall_does_not_condemn_a_chain() -> None:
    """A replica that is lost may hold a sequence up for half a minute: that says nothing of the next token."""
    planner, rates = Planner(), nested(0.65, 0.82)
    best = planner.table(LEVELS, rates)[0]
    for _ in range(20):
        planner.observe(best, best.model)
    planner.observe(best, 30 / 16, tokens=16)
    after = planner.table(LEVELS, rates)
    assert same_chain(after[0].plan, best.plan) and after[0].seconds < 1.5 * best.seconds
    for _ in range(40):  # what happens again and again is true
        now = next(choice for choice in planner.table(LEVELS, rates) if same_chain(choice.plan, best.plan))
        planner.observe(now, 6 * best.model)
    moved = next(choice for choice in planner.table(LEVELS, rates) if same_chain(choice.plan, best.plan))
    assert moved.seconds > 4.5 * best.model
