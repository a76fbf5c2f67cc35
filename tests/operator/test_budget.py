"""GPUs are spent where they cut most time per token; the search against brute force and the simulator."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readings import AGREEMENT, COSTS

from specrouter_core.capacity import STUCK, Load, Offer, pricer
from specrouter_core.profile import Curve
from specrouter_core.replica import SimLevel
from specrouter_core.simulator import Policy, Simulator
from specrouter_core.workload import Arrival
from specrouter_operator import budget
from specrouter_operator.budget import Bounds, Spent


def offers(gpus: tuple[int, int, int] = (1, 1, 1)) -> list[Offer]:
    return [
        Offer(name, Curve.of(costs), AGREEMENT[name], 1.0, gpus=count)
        for (name, costs), count in zip(COSTS.items(), gpus, strict=True)
    ]


def bounds(least: int = 0, most: int = 8) -> dict[str, Bounds]:
    return {name: Bounds(max(least, name == "target"), most) for name in COSTS}


def best_of_all(load: Load, gpus: int) -> float:
    """The least time per token of every way to spend so many GPUs."""
    best = STUCK
    for counts in itertools.product(range(gpus + 1), repeat=3):
        if counts[-1] and sum(counts) <= gpus:
            chain = [offer for offer, count in zip(offers(), counts, strict=True) if count]
            advice = pricer(chain, load)([count for count in counts if count])
            if advice.keeps:
                best = min(best, advice.per_token)
    return best


@pytest.mark.parametrize(("rate", "gpus"), [(2.0, 3), (8.0, 4), (12.0, 6)])
def test_near_the_best_of_all_ways(rate: float, gpus: int) -> None:
    load = Load(rate, 100.0)
    spent = budget.spend(offers(), bounds(), load, gpus=gpus)
    assert spent.gpus <= gpus and spent.keeps
    assert spent.per_token <= 1.1 * best_of_all(load, gpus)


def test_an_objective_is_kept_with_as_few_gpus_as_it_takes() -> None:
    few = budget.spend(offers(), bounds(), Load(6.0, 100.0, per_token=0.030))
    many = budget.spend(offers(), bounds(), Load(12.0, 100.0, per_token=0.030))
    strict = budget.spend(offers(), bounds(), Load(6.0, 100.0, per_token=0.023))
    assert few.keeps and many.keeps and strict.keeps
    assert few.gpus < many.gpus and few.gpus < strict.gpus
    assert few.per_token <= 0.030 and strict.per_token <= 0.023


def test_levels_outside_the_chain_get_their_least() -> None:
    loose = Load(0.5, 100.0, per_token=0.030)
    assert 0 in budget.spend(offers(), bounds(0), loose).replicas.values()
    assert min(budget.spend(offers(), bounds(1), loose).replicas.values()) == 1


def test_dear_replicas_are_bought_later() -> None:
    load = Load(12.0, 100.0)
    plain = budget.spend(offers(), bounds(1), load, gpus=12)
    dear = budget.spend(offers((1, 1, 4)), bounds(1), load, gpus=12)
    assert dear.gpus <= 12 and dear.replicas["target"] <= plain.replicas["target"]


def test_a_budget_below_the_least_replicas_is_refused() -> None:
    with pytest.raises(ValueError, match="gpus"):
        budget.spend(offers(), bounds(2), Load(1.0, 100.0), gpus=5)


def test_a_chain_in_use_stays_for_a_small_gain() -> None:
    load = Load(2.0, 100.0)
    spent = budget.spend(offers(), bounds(), load, gpus=3)
    others = [("mid", "target"), ("draft", "target"), ("draft", "mid", "target")]
    near = [
        chain
        for chain in others
        if chain != spent.chain
        and pricer([o for o in offers() if o.name in chain], load)([1] * len(chain)).per_token < spent.per_token * 1.02
    ]
    for chain in near:
        assert budget.spend(offers(), bounds(), load, gpus=3, used=chain).chain == chain


@given(st.floats(0.1, 30), st.integers(1, 10))
@settings(max_examples=15, deadline=None)
def test_bounds_and_budget_hold_and_more_gpus_never_hurt(rate: float, gpus: int) -> None:
    load = Load(rate, 100.0)
    one: Spent = budget.spend(offers(), bounds(0, 4), load, gpus=gpus)
    more: Spent = budget.spend(offers(), bounds(0, 4), load, gpus=gpus + 2)
    for spent in (one, more):
        assert all(0 <= count <= 4 for count in spent.replicas.values()) and spent.replicas["target"] >= 1
    assert one.gpus <= gpus and more.gpus <= gpus + 2
    assert more.keeps >= one.keeps
    if one.keeps and more.keeps:
        assert more.per_token <= one.per_token * 1.05


def test_the_simulator_confirms_where_a_gpu_pays() -> None:
    """One GPU more, where the search puts it, against the same one elsewhere, in simulated time."""
    load = Load(12.0, 64.0)
    now = budget.spend(offers(), bounds(1), load, gpus=3)
    more = budget.spend(offers(), bounds(1), load, gpus=5)
    chosen = simulated(more.replicas, load)
    for name in COSTS:
        other = dict(now.replicas)
        other[name] += 5 - sum(other.values())
        assert chosen <= 1.1 * simulated(other, load), (more.replicas, other)


def simulated(replicas: dict[str, int], load: Load) -> float:
    """Mean seconds per token, prompts included."""
    chain = [offer for offer in offers() if replicas[offer.name]]
    plan = pricer(chain, load)([replicas[offer.name] for offer in chain]).plan
    levels = [SimLevel(o.name, o.curve, o.agreement, replicas[o.name]) for o in chain]
    arrivals = [Arrival(at=i / load.rate, prompt=16, tokens=int(load.tokens)) for i in range(60)]
    outcomes = Simulator(levels, Policy(plan)).run(arrivals)
    return sum(one.end - one.arrival.at for one in outcomes) / sum(one.tokens for one in outcomes)


def test_fitting_takes_from_what_exceeds_its_plan_first() -> None:
    cost = dict.fromkeys(COSTS, 1)
    fitted = budget.fit({"draft": 5, "mid": 2, "target": 4}, {"draft": 1, "mid": 2, "target": 4}, cost, 8)
    assert fitted == {"draft": 2, "mid": 2, "target": 4}
    fitted = budget.fit({"draft": 1, "mid": 1, "target": 1}, {"draft": 1, "mid": 1, "target": 1}, cost, 2)
    assert fitted == {"draft": 1, "mid": 1, "target": 1}  # nobody is left without its plan
