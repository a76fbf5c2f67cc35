"""A short run with fixed seeds: each kind of fault once, on one mesh. The long one is `make chaos`.

To run one of them again: python tests/chaos/run.py --seed SEED --episode NUMBER; see docs/chaos.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from chaos_mesh import ChaosMesh
from episode import run, story
from faults import FAULTS, plan

SEED = 1
SEQUENCES = 24
SHORT_S = 1.0  # a fault lasts so long at most, but for those that are to be noticed
NOTICED = ("freeze level", "freeze router", "blackhole level link")
EPISODES = [
    (number, f"{kind} {where}") for number, (kind, where) in enumerate(FAULTS) if kind not in ("latency", "slow")
]

pytestmark = pytest.mark.timeout(400)  # the mesh starts within the first test


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChaosMesh]:
    async with ChaosMesh(tmp_path_factory.mktemp("chaos")) as made:
        yield made


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("number", "name"), EPISODES, ids=[name for _, name in EPISODES])
async def test_nothing_is_wrong_lost_or_doubled(mesh: ChaosMesh, number: int, name: str) -> None:
    planned = plan(SEED, number, SEQUENCES)
    if name not in NOTICED:
        planned = replace(planned, fault=replace(planned.fault, seconds=min(planned.fault.seconds, SHORT_S)))
    outcome = await run(mesh, planned)
    assert not outcome.problems, story(outcome)
    assert outcome.faulted


def test_every_kind_of_fault_has_its_episode_and_a_seed_its_plan() -> None:
    kinds = {(plan(SEED, number, 1).fault.kind, plan(SEED, number, 1).fault.where) for number in range(len(FAULTS))}
    assert kinds == set(FAULTS)
    assert plan(SEED, 3, 5) == plan(SEED, 3, 5) != plan(SEED + 1, 3, 5)
