"""What the mesh makes of parts that die, are slow or come back. The parts are small scripts, real processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from specrouter_local import mesh as mesh_module
from specrouter_local.errors import UserError
from specrouter_local.mesh import Mesh, PartError, new_state
from specrouter_local.parts import Part
from specrouter_local.state import Run, find

# Ready when its file is there. The file appears after some time, and "die" makes it end itself then.
SCRIPT = """
import sys, time
from pathlib import Path
ready, after, then = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
time.sleep(after)
print("this is", ready.name, flush=True)
if then == "die":
    sys.exit(7)
ready.touch()
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SPECROUTER_CACHE", str(tmp_path))
    monkeypatch.setattr(mesh_module, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(mesh_module, "PROBE_EVERY", 0.02)
    made = Run("test")
    made.directory.mkdir(parents=True)
    return made


class Stand:
    """A mesh of scripts and what it said."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.said: list[str] = []
        self.parts: list[Part] = []
        self.state = new_state(run, "http://127.0.0.1:1", "127.0.0.1:1", ["draft", "target"])

    def part(
        self,
        name: str,
        kind: Literal["redis", "level", "router"] = "level",
        *,
        after: float = 0.0,
        then: str = "stay",
        **kwargs: Any,
    ) -> None:
        ready = self.run.directory / name
        settings: dict[str, Any] = {"patience": 10.0, "stage": 0, "restarts": 0} | kwargs
        argv = (sys.executable, "-c", SCRIPT, str(ready), str(after), then)

        def probe() -> str | None:
            return "fine" if ready.exists() else None

        self.parts.append(Part(name, kind, argv, os.environ, "", probe, **settings))

    def build(self) -> Mesh:
        self.mesh = Mesh(self.parts, self.run, self.state, self.said.append)
        return self.mesh

    def kill(self, name: str) -> None:
        """Kills the part's process; from now on it isn't ready until it says so again."""
        (self.run.directory / name).unlink(missing_ok=True)
        os.kill(self.pid(name), signal.SIGKILL)

    def pid(self, name: str) -> int:
        return next(part.pid for part in self.state.parts if part.name == name)

    def condition(self, name: str) -> str:
        return next(part.condition for part in self.state.parts if part.name == name)

    def watch(self, done: Callable[[], bool], seconds: float = 15.0) -> None:
        """Watches until ``done``."""
        limit = time.monotonic() + seconds
        self.mesh.watch(lambda: not done() and time.monotonic() < limit)
        assert done()


@pytest.fixture
def stand(run: Run) -> Iterator[Stand]:
    made = Stand(run)
    with run.held():
        yield made
        made.mesh.stop(lambda: True)


def three(stand: Stand, restarts: int = 2) -> Mesh:
    stand.part("redis", "redis")
    stand.part("draft", restarts=restarts)
    stand.part("target", restarts=restarts)
    stand.part("router", "router", stage=1)
    mesh = stand.build()
    assert mesh.start(lambda: True)
    return mesh


def test_parts_start_stage_by_stage(stand: Stand) -> None:
    stand.part("router", "router", stage=1)
    stand.part("redis", "redis", after=0.3)
    mesh = stand.build()
    seen: list[tuple[str, str]] = []

    def note() -> bool:
        seen.append((stand.condition("redis"), stand.condition("router")))
        return True

    assert mesh.start(note)
    assert ("starting", "waiting") in seen
    assert ("starting", "starting") not in seen
    assert seen[-1] == ("ready", "ready")
    known = stand.run.read()
    assert known is not None
    assert known.phase == "ready"
    assert [part.note for part in known.parts] == ["fine", "fine"]


def test_a_part_that_dies_at_the_start_is_named_with_its_log(stand: Stand) -> None:
    stand.part("redis", "redis", after=5)
    stand.part("target", then="die", restarts=3)
    mesh = stand.build()
    with pytest.raises(PartError, match=r"target died \(exit code 7\); the end of its log .*target\.log:\n  this is"):
        mesh.start(lambda: True)


def test_a_part_that_is_ready_and_dies_while_others_start_is_noticed(stand: Stand) -> None:
    stand.part("redis", "redis")
    stand.part("target", after=20)
    mesh = stand.build()

    def tick() -> bool:
        if stand.condition("redis") == "ready":
            os.kill(stand.pid("redis"), signal.SIGKILL)
        return True

    with pytest.raises(PartError, match=r"redis died \(killed by SIGKILL\)"):
        mesh.start(tick)


def test_a_part_that_is_too_slow_is_named(stand: Stand) -> None:
    stand.part("target", after=20, patience=0.3)
    with pytest.raises(PartError, match=r"target was not ready after 0\.3 s; its log .* is empty"):
        stand.build().start(lambda: True)


def test_the_start_can_be_broken_off(stand: Stand) -> None:
    stand.part("target", after=20)
    begin = time.monotonic()
    assert not stand.build().start(lambda: time.monotonic() < begin + 0.2)


def test_a_level_that_dies_is_started_again_and_the_rest_goes_on(stand: Stand) -> None:
    three(stand)
    router, draft = stand.pid("router"), stand.pid("draft")
    stand.kill("draft")
    stand.watch(lambda: any("draft is back" in text for text in stand.said))
    assert stand.said[0].startswith("draft died (killed by SIGKILL)")
    assert "the chain is shorter until it is back" in stand.said[0]
    assert stand.pid("draft") != draft
    assert stand.pid("router") == router
    assert stand.condition("draft") == "ready"


def test_a_level_that_keeps_dying_is_given_up_and_the_rest_goes_on(stand: Stand) -> None:
    three(stand)

    def killed() -> bool:
        if stand.condition("draft") == "ready":
            stand.kill("draft")
        return stand.condition("draft") == "gone"

    stand.watch(killed)
    assert "draft is given up after 2 restarts; the mesh goes on without it" in stand.said[-1]
    assert stand.condition("target") == "ready"


def test_a_target_that_keeps_dying_ends_the_mesh(stand: Stand) -> None:
    mesh = three(stand)

    def kill() -> bool:
        if stand.condition("target") == "ready":
            stand.kill("target")
        return True

    with pytest.raises(PartError, match=r"^after 2 restarts, target died \(killed by SIGKILL\)"):
        mesh.watch(kill)
    assert "requests fail until it is back" in stand.said[0]


@pytest.mark.parametrize("name", ["router", "redis"])
def test_the_death_of_router_or_redis_ends_the_mesh_at_once(stand: Stand, name: str) -> None:
    mesh = three(stand)
    stand.kill(name)
    with pytest.raises(PartError, match=rf"^{name} died \(killed by SIGKILL\); the end of its log"):
        mesh.watch(lambda: True)


def test_a_mesh_is_found_while_its_launcher_lives_and_is_stale_after(run: Run) -> None:
    with pytest.raises(UserError, match="no mesh is up; `specrouter up` starts one"):
        find(None)
    with run.held():
        run.write(new_state(run, "http://127.0.0.1:1", "127.0.0.1:1", ["target"]))
        assert find(None)[1].pid == os.getpid()
        assert find("test")[0].name == "test"
        with pytest.raises(UserError, match="the mesh test is up already"), Run("test").held():
            pass
        with Run("other").held():
            Run("other").write(new_state(Run("other"), "http://127.0.0.1:1", "127.0.0.1:1", ["target"]))
            with pytest.raises(UserError, match="several meshes are up, pick one with --name: other, test"):
                find(None)
    with pytest.raises(UserError, match=r"no mesh is up \(other, test ended without saying so\)"):
        find(None)
