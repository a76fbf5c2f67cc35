"""A short run with fixed seeds: each kind of fault once, often with others. The long one is `make chaos`.

To run one of them again: python tests/chaos/run.py --seed SEED --episode NUMBER; see docs/chaos.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from chaos_mesh import ChaosMesh
from episode import run, story
from faults import FAULTS, Plan, World, plan
from steps import STEPS

SEED = 1
SEQUENCES = 24
SHORT_S = 1.0  # a fault lasts so long at most, but for those that are to be noticed
NOTICED = ("freeze level", "freeze router", "blackhole level link")
LONG_RUN_ONLY = ("latency", "slow", "half-close", "one way")  # as a first fault: milder forms of others
EPISODES = [number for number, (kind, _) in enumerate(FAULTS) if kind not in LONG_RUN_ONLY]
SOON = 5  # chunks until a fault: there are few requests

pytestmark = pytest.mark.timeout(400)  # the mesh starts within the first test


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChaosMesh]:
    async with ChaosMesh(tmp_path_factory.mktemp("chaos")) as made:
        yield made


def short(planned: Plan) -> Plan:
    """As it is, but sooner there, and sooner over."""
    faults = [
        replace(
            fault,
            seconds=fault.seconds if fault.name in NOTICED else min(fault.seconds, SHORT_S),
            count=min(fault.count, SOON),
        )
        for fault in planned.faults
    ]
    return replace(planned, faults=tuple(faults))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("number", EPISODES, ids=[plan(SEED, number, 1).name for number in EPISODES])
async def test_nothing_is_wrong_lost_or_doubled(mesh: ChaosMesh, number: int) -> None:
    """An episode of an odd number has another fault or two at once."""
    outcome = await run(mesh, short(plan(SEED, number, SEQUENCES)))
    assert not outcome.problems, story(outcome)
    assert outcome.faulted


@pytest.mark.parametrize(("world", "numbers"), [("sentinel", (0,)), ("cluster", (1,)), ("models", (5,))])
async def test_nor_with_other_redises_and_with_models(tmp_path: Path, world: World, numbers: tuple[int, ...]) -> None:
    async with ChaosMesh(tmp_path, world) as mesh:
        for number in numbers:
            outcome = await run(mesh, short(plan(SEED, number, SEQUENCES, world=world)))
            assert not outcome.problems, story(outcome)
            assert outcome.faulted


def test_every_kind_of_fault_and_every_step_has_its_episode_and_a_seed_its_plan() -> None:
    plans = [plan(SEED, number, 1) for number in range(2 * len(FAULTS))]
    assert {fault.name for one in plans for fault in one.faults[:1]} == {" ".join(fault) for fault in FAULTS}
    assert {fault.moment for one in plans for fault in one.faults} == {
        f"{when} {step}" for when in ("before", "during") for step in STEPS
    }
    assert {len(one.faults) for one in plans} == {1, 2, 3}
    assert plan(SEED, 3, 5) == plan(SEED, 3, 5) != plan(SEED + 1, 3, 5)
