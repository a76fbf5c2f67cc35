"""The account of an answer against what the levels themselves count."""

from __future__ import annotations

from typing import Any, cast

import pytest

from processes import until
from specrouter.v1 import level_pb2 as pb
from specrouter_core.prefix import Text
from specrouter_router.link import Link
from specrouter_router.seat import Seat
from stub_mesh import Mesh, Router

BUSY = "specrouter_level_busy_seconds_total"
RUNNING = ("specrouter_level_calls_running", "specrouter_level_rows_running")


@pytest.fixture(scope="module")
def overlapping(fragile: Mesh) -> Router:
    return fragile.router("overlapped", draft=8, mid=8, target=8)


@pytest.fixture(scope="module")
def stepping(fragile: Mesh) -> Router:
    return fragile.router("lockstep")


def busy(mesh: Mesh) -> dict[str, float]:
    """Milliseconds that each level has spent in steps, once none runs."""
    levels = mesh.levels.values()
    assert until(lambda: not any(level.gauge(name) for level in levels for name in RUNNING))
    return {level.name: level.gauge(BUSY) * 1000 for level in levels}


@pytest.mark.parametrize("mode", ["overlapped", "lockstep"])
def test_one_sequence_alone_took_all_the_time_of_the_levels(
    fragile: Mesh, overlapping: Router, stepping: Router, mode: str
) -> None:
    """Overlapped, most calls of a middle level are superseded while their step runs: that is counted all the same."""
    router = overlapping if mode == "overlapped" else stepping
    before = busy(fragile)
    answer = router.complete(max_tokens=400, temperature=0.8, seed=3)
    after = busy(fragile)
    report: dict[str, Any] = answer["specrouter"]["report"]
    for level in report["levels"]:
        name, computed = level["level"], level["compute_ms"]
        spent = after[name] - before[name]
        assert spent > 100, (name, spent)
        # What may be missing: a step that was still running at the end.
        assert 0.98 * spent <= computed <= 1.001 * spent, (name, computed, spent)


def test_what_replicas_computed_before_they_let_go_is_kept() -> None:
    seat = Seat("a", Text([1]), pb.SequenceParams())
    one, other = cast("Link", object()), cast("Link", object())
    for link, said in ((one, 500), (one, 900), (other, 300), (one, 200), (one, 250)):
        seat.said(link, said)
    assert seat.computed_us == 900 + 250 + 300
