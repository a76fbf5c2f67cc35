"""The demo family as real processes: the chain's text is the target's, token for token.

A bounded part of benchmarks/equality.py, whose full run is recorded in benchmarks/results/equality.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest
from rich.console import Console

import equality
from specrouter_local.client import Answer, Router, Settings
from specrouter_local.launch import Launcher, Wanted, prepare

pytestmark = [pytest.mark.demo, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    console = Console(stderr=True)
    wanted = Wanted(family=None, engine="demo", redis_url=None, port=0, grpc_port=0)
    launcher = Launcher(prepare(console, wanted).name, wanted, tied=True)
    try:
        launcher.wait(console)
        yield launcher
    finally:
        launcher.end()


def test_chains_of_two_and_three_levels_equal_the_target_alone(mesh: Launcher) -> None:
    args = argparse.Namespace(prompts=2, tokens=12, windows=[3])
    rows, texts, different = equality.compare(args, mesh, Console(stderr=True))
    assert different == 0, rows
    assert texts == 8 * 5  # the target's batch of 8, and two chains in two modes
    assert {row["mode"] for row in rows} == {"-", "lockstep", "overlapped"}


def test_the_middle_level_saves_the_target_most_of_its_calls(mesh: Launcher) -> None:
    state = mesh.run.read()
    assert state is not None
    router = Router(state.router)
    try:
        answer = Answer()
        settings = Settings("demo", 40, 0.0, 1, chain=("draft", "mid", "target"))
        list(router.chat(settings, [{"role": "user", "content": "Count from one to ten."}], answer))
    finally:
        router.close()
    assert answer.report is not None
    levels = {level["level"]: level for level in answer.report["levels"]}
    assert len(answer.tokens) == answer.usage["completion_tokens"] > 10
    assert levels["target"]["calls"] < len(answer.tokens) * 2 / 3
    assert levels["target"]["accepted"] > 0.5 * levels["target"]["offered"] > 0
    assert set(answer.origins) <= {"draft", "mid", "target"}
