"""Adaptive routers in simulated time: each learns from its own sequences, and speculation pays."""

from __future__ import annotations

import pytest

from specrouter_core.adaptive import Adaptive
from specrouter_core.adaptive_policy import AdaptivePolicy
from specrouter_core.chain import Plan
from specrouter_core.profile import Curve
from specrouter_core.replica import SimLevel
from specrouter_core.simulator import Policy, Simulator
from specrouter_core.tables import Member
from specrouter_core.workload import Arrival, Summary, Workload

COSTS = {"draft": {1: 0.0025}, "mid": {1: 0.009}, "target": {1: 0.035}}
AGREEMENT = {"draft": 0.65, "mid": 0.82, "target": 1.0}


def levels(replicas: int = 1) -> list[SimLevel]:
    return [SimLevel(name, Curve.of(costs), AGREEMENT[name], replicas) for name, costs in COSTS.items()]


def adaptive(routers: int = 1, replicas: int = 1) -> AdaptivePolicy:
    return AdaptivePolicy(lambda: Adaptive([Member(n, c, replicas) for n, c in COSTS.items()]), routers)


def test_it_is_faster_than_the_target_alone_and_forgets_what_has_ended() -> None:
    policy = adaptive()
    (outcome,) = Simulator(levels(), policy).run([Arrival(0, 400)])
    assert outcome.tokens == 400 and outcome.per_token < 0.025
    assert not policy.routers[0].running and policy.routers[0].agreement.seen("draft", "target") > 50


def test_every_router_learns_from_its_own_sequences() -> None:
    policy = adaptive(routers=2, replicas=2)
    arrivals = [Arrival(0.01 * i, 60) for i in range(10)]
    outcomes = Simulator(levels(2), policy, routers=2).run(arrivals)
    assert all(o.tokens == 60 for o in outcomes)
    a, b = policy.routers
    assert a is not b and a.agreement.seen("draft", "target") > 0 < b.agreement.seen("draft", "target")
    assert a.profiles["target"].curve.seen > 0 < b.profiles["target"].curve.seen


def test_a_slow_router_slows_its_sequences_and_a_second_one_helps() -> None:
    plan = Plan(("draft", "target"), (4, 4), 8)

    def mean(routers: int, seconds: float) -> float:
        simulator = Simulator(levels(4), Policy(plan), routers=routers, router_seconds=seconds)
        return Summary.of(simulator.run(Workload(32, tokens=(40, 40)).arrivals(1))).per_token_mean

    free, one, four = mean(1, 0.0), mean(1, 0.002), mean(4, 0.002)
    assert free < four < one and one > 1.5 * free


def test_a_router_answers_late_replies_of_a_call_once() -> None:
    """A draft's tokens come one by one; a busy router sees only the last of those that wait."""
    plan = Plan(("draft", "target"), (8, 8), 16)
    quick = Simulator(levels(), Policy(plan))
    quick.run([Arrival(0, 100)])
    slow = Simulator(levels(), Policy(plan), router_seconds=0.02)
    slow.run([Arrival(0, 100)])
    assert slow.router_events / slow.rounds < quick.router_events / quick.rounds


def test_the_stopwatch_measures_the_routers_part() -> None:
    ticks = iter(range(10**9))
    simulator = Simulator(levels(), adaptive(), stopwatch=lambda: float(next(ticks)))
    simulator.run([Arrival(0, 20)])
    assert simulator.router_cost >= simulator.rounds > 0
    assert simulator.utilisation()["target"] == pytest.approx(
        simulator.busy_seconds()["target"] / simulator.now, rel=1e-9
    )
