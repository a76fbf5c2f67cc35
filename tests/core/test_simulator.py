"""Simulated time: exact where it can be computed by hand, and the text stays the target's."""

from __future__ import annotations

from typing import Any

import pytest

from specrouter_core.chain import Plan
from specrouter_core.event import Commit
from specrouter_core.machine import Machine
from specrouter_core.profile import Curve
from specrouter_core.replica import SimLevel
from specrouter_core.simulator import Policy, Simulator
from specrouter_core.workload import Arrival


def flat(name: str, seconds: float, agreement: float, **kw: Any) -> SimLevel:
    return SimLevel(name, Curve.of({1: seconds}), agreement, **kw)


def levels(draft: float = 0.65, mid: float = 0.82) -> list[SimLevel]:
    return [flat("draft", 0.0025, draft), flat("mid", 0.009, mid), flat("target", 0.035, 1.0)]


class Recording(Policy):
    """Keeps what each sequence was committed."""

    def __init__(self, plans: list[Plan]) -> None:
        super().__init__(plans[0])
        self.plans = plans
        self.texts: dict[int, list[int]] = {}

    def next(self, sequence: int, machine: Machine, commit: Commit, now: float) -> Plan | None:
        self.texts[sequence] = machine.committed[machine.prompt_length :]
        return self.plans[machine.rounds % len(self.plans)]


ALONE = Plan(("target",), (1,))
CHAIN3 = Plan(("draft", "mid", "target"), (8, 8, 8), 12, True, (1, 2, 2))


def test_the_target_alone_takes_its_step_and_two_hops_a_token() -> None:
    (outcome,) = Simulator(levels()[-1:], Policy(ALONE), hop=0.001).run([Arrival(1.0, 100)])
    assert outcome.per_token == pytest.approx(0.037, rel=1e-6)
    assert outcome.first == pytest.approx(1.037) and outcome.tokens == 100 == outcome.rounds


def test_perfect_drafts_cost_one_check_a_window() -> None:
    two = [flat("draft", 0.001, 1.0), flat("target", 0.030, 1.0)]
    plan = Plan(("draft", "target"), (4, 4), 8, overlapped=False)
    (outcome,) = Simulator(two, Policy(plan), hop=0.0).run([Arrival(0, 51)])
    assert outcome.rounds == 11 and outcome.end == pytest.approx(0.030 + 10 * 0.034, rel=0.02)


def test_every_chain_and_every_switch_commits_the_same_text() -> None:
    texts = []
    for plans in (
        [ALONE],
        [CHAIN3],
        [CHAIN3, ALONE, Plan(("mid", "target"), (4, 4), 8), Plan(("draft", "target"), (2, 3), 6)],
    ):
        policy = Recording(plans)
        Simulator(levels(), policy, seed=3).run([Arrival(0, 80), Arrival(0.01, 80, ease=-0.2)])
        texts.append({s: t[:70] for s, t in policy.texts.items()})
    assert texts[0] == texts[1] == texts[2]


def test_three_overlapped_levels_beat_two_and_lockstep() -> None:
    def time(plan: Plan, hop: float) -> float:
        run = Simulator([x for x in levels() if x.name in plan.levels], Policy(plan), hop=hop).run([Arrival(0, 600)])
        return run[0].per_token

    for hop in (0.0003, 0.001):
        three = time(Plan(("draft", "mid", "target"), (8, 8, 8), 16, True, (1, 4, 1)), hop)
        two = min(time(Plan(("draft", "target"), (8, 8), n, True, (1, 3)), hop) for n in (6, 8, 12))
        lockstep = min(
            time(Plan(("draft", "mid", "target"), (8, m, n), 16, False), hop) for m in (1, 2, 3) for n in (3, 5, 6)
        )
        assert two / three > 1.2 and lockstep / three > 1.3


def test_sequences_share_steps_and_replicas_share_sequences() -> None:
    curve = Curve.of({1: 0.02, 2: 0.02, 4: 0.04, 8: 0.08})
    arrivals = [Arrival(0, 40) for _ in range(8)]

    def mean(replicas: int) -> float:
        level = SimLevel("target", curve, 1.0, replicas=replicas)
        done = Simulator([level], Policy(ALONE), hop=0.0).run(arrivals)
        return sum(o.per_token for o in done) / len(done)

    assert 0.08 <= mean(1) <= 0.13, "one step for all takes 0.08 s; those who wait for a step under way take longer"
    assert mean(4) < mean(1) / 2


def test_a_change_in_mid_run_takes_effect() -> None:
    simulator = Simulator(levels()[-1:], Policy(ALONE), hop=0.0)
    simulator.changes.append((1.75, lambda s: setattr(s.levels["target"], "slowdown", 2.0)))
    (outcome,) = simulator.run([Arrival(0, 100)])
    assert outcome.end == pytest.approx(50 * 0.035 + 50 * 0.070, rel=0.02)
