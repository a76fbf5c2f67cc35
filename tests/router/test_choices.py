"""What the adaptive router judges, measures and falls back to, where levels are very unlike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from processes import until
from stub_mesh import Level, Mesh, Router, meshed

PAIRS = {"chains": [["draft", "target"], ["mid", "target"]]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A middle level whose every step takes longer than judging may, and a target that reads slowly."""
    levels = [Level("draft", 0.5, "1:1"), Level("mid", 0.9, "1:1500"), Level("target", 1.0, "1:8,64:8,512:800")]
    with meshed(tmp_path_factory.mktemp("world"), levels) as made:
        yield made


def status(router: Router) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{router.url}/v1/status", timeout=5, trust_env=False).json()
    adaptive: dict[str, Any] = found["adaptive"]
    return adaptive


def test_a_level_that_cannot_be_judged_keeps_no_other_from_it(world: Mesh) -> None:
    router = world.router("auto", policy="adaptive", weights={"draft": 0}, draft=16, mid=16, target=16)

    def judged() -> int:
        router.complete(max_tokens=60)
        calls: int = status(router)["profiles"]["draft"]["judged"]
        return calls

    assert until(lambda: judged() > 5)
    assert status(router)["profiles"]["mid"]["judged"] == 0


def test_reading_the_prompt_is_not_measured_as_a_token(world: Mesh) -> None:
    router = world.router("auto", policy="adaptive", draft=16, mid=16, target=16)
    begin = time.monotonic()
    router.complete("w" * 500, max_tokens=32, specrouter={"chain": ["target"]})
    assert time.monotonic() - begin > 0.8, "it took long to read"
    (alone,) = [plan for plan in status(router)["plans"] if plan["levels"] == ["target"]]
    assert 8 <= alone["measured_ms"] < 20


def test_a_pinned_chain_whose_level_died_is_not_tried_again_and_again(world: Mesh) -> None:
    """What is left of it, the target alone, is none of the allowed chains, so the planner's table has no such plan."""
    router = world.router("auto", policy="adaptive", chain=PAIRS, draft=16, mid=16, target=16)
    events = router.events(max_tokens=300, specrouter={"chain": ["draft", "target"]})
    next(events)
    world.levels["draft"].kill()
    *_, last = events
    world.restart("draft")
    report = last["specrouter"]["report"]
    assert report["lost"] in ([], ["draft"]) and report["switches"] <= 1
    assert [chain["levels"] for chain in report["chains"]][-1] == ["target"]
