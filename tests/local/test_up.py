"""The command as its users have it: the whole stub mesh as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import Process, numbers, running, until
from specrouter_local import paths
from specrouter_local.client import Router
from specrouter_local.state import MeshState, Run

COMMAND = [sys.executable, "-m", "specrouter_local"]
UP = [*COMMAND, "up", "--engine", "stub", "--port", "0", "--grpc-port", "0"]


def call(*arguments: str, code: int = 0) -> str:
    """Runs the command; what it wrote."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


class Up:
    """A running ``specrouter up``."""

    def __init__(self) -> None:
        self.log = paths.cache() / "up.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.process = Process(UP, self.log).popen
        assert until(self.ready, 60), self.said()
        self.first = self.state()

    def state(self) -> MeshState:
        found = Run("stub").read()
        assert found is not None
        return found

    def ready(self) -> bool:
        assert self.process.poll() is None, self.said()
        found = Run("stub").read()
        return found is not None and found.pid == self.process.pid and found.phase == "ready"

    def pid(self, part: str) -> int:
        return next(known.pid for known in self.state().parts if known.name == part)

    def said(self) -> str:
        return self.log.read_text()

    def end(self, number: int) -> int:
        """Sends the signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def nothing_is_left(self) -> bool:
        return until(lambda: not any(running(part.pid) for part in self.first.parts), 5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("cache")
        patch.setenv("SPECROUTER_CACHE", str(directory))
        patch.setenv("COLUMNS", "160")
        yield directory


@pytest.fixture(scope="module")
def up(cache: Path) -> Iterator[Up]:
    mesh = Up()
    yield mesh
    assert mesh.end(signal.SIGINT) == 0, mesh.said()
    assert mesh.nothing_is_left()
    assert not Run("stub").read()


def answer(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call("generate", "tell me", "--json", "--max-tokens", "60", *arguments))
    return found


def test_up_shows_each_part_and_where_the_mesh_is(up: Up) -> None:
    said = up.said()
    for part in ("redis", "draft", "mid", "target", "router"):
        assert f"{part}: ready in" in said
    assert f"{up.first.router}/v1/chat/completions" in said


def test_chain_and_target_alone_say_the_same(up: Up) -> None:
    chain = answer("--temperature", "0.8", "--seed", "3")
    alone = answer("--temperature", "0.8", "--seed", "3", "--chain", "target")
    assert chain["tokens"] == alone["tokens"]
    assert chain["text"] == alone["text"]
    assert len(chain["origins"]) == len(chain["tokens"]) == chain["usage"]["completion_tokens"]
    assert set(alone["origins"]) == {"target"}
    assert {"draft", "mid"} <= set(chain["origins"])
    assert [level["level"] for level in chain["report"]["levels"]] == ["draft", "mid", "target"]
    assert chain["seed"] == 3


def test_generate_writes_plain_text_where_there_is_no_terminal(up: Up) -> None:
    text = call("generate", "tell me", "--max-tokens", "60", "--seed", "3", "--temperature", "0.8")
    assert text == answer("--temperature", "0.8", "--seed", "3")["text"] + "\n"


def test_status_shows_processes_levels_and_decisions(up: Up) -> None:
    call("generate", "tell me", "--max-tokens", "40")
    said = call("status")
    assert "stub: ready, up for" in said
    for part in up.state().parts:
        assert f" {part.pid} " in said
    assert "not reached" not in said
    assert "chain: adaptive, auto" in said
    for word in ("predicted", "draft > mid > target", "1 row", "8 rows", "judged", "agrees with", "switches per 1000"):
        assert word in said, word
    assert "redis ok" in said


def test_what_the_router_refuses_is_said(up: Up) -> None:
    said = call("generate", "hi", "--chain", "nobody", code=1)
    assert "the router refused: " in said
    assert "nobody" in said
    assert "Traceback" not in said


def test_a_second_up_of_the_same_name_is_refused(up: Up) -> None:
    done = subprocess.run(UP, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "the mesh stub is up already" in done.stderr
    assert up.process.poll() is None


@pytest.mark.parametrize("level", ["draft", "mid"])
def test_a_level_killed_mid_stream_changes_no_text_and_comes_back(up: Up, level: str) -> None:
    wanted = ["--max-tokens", "120", "--seed", "11", "--temperature", "0.8"]
    before = answer(*wanted)
    killed = up.pid(level)
    router = Router(up.first.router)

    def rounds() -> float:
        return next(numbers(up.first.router, "specrouter_rounds_total"))

    begun = rounds()
    with subprocess.Popen(
        [*COMMAND, "generate", "tell me", "--json", *wanted], stdout=subprocess.PIPE, text=True
    ) as streaming:
        assert until(lambda: router.status()["sequences"] == 1, 30)
        assert until(lambda: rounds() > begun + 2, 30)
        os.kill(killed, signal.SIGKILL)
        assert router.status()["sequences"] == 1
        text, _ = streaming.communicate(timeout=60)
    after = json.loads(text)
    assert after["tokens"] == before["tokens"]
    assert after["report"]["lost"] == [level]
    assert until(lambda: up.pid(level) not in (0, killed) and f"{level} is back" in up.said(), 30)
    assert f"{level} died (killed by SIGKILL)" in up.said()
    assert up.process.poll() is None
    assert until(lambda: all(known["ready"] for known in router.status()["levels"]), 30)
    router.close()


def test_the_death_of_the_router_ends_the_mesh_and_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECROUTER_CACHE", str(cache / "router"))
    mesh = Up()
    os.kill(mesh.pid("router"), signal.SIGKILL)
    assert mesh.process.wait(timeout=30) == 1
    assert "router died (killed by SIGKILL); the end of its log" in mesh.said()
    assert mesh.nothing_is_left()


def test_kill_9_of_the_launcher_leaves_nothing_and_is_noticed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECROUTER_CACHE", str(cache / "killed"))
    mesh = Up()
    mesh.end(signal.SIGKILL)
    assert mesh.nothing_is_left()
    assert "no mesh is up (stub ended without saying so)" in call("status", code=1)
    assert "no mesh is up (stub ended without saying so)" in call("down", code=1)


def test_detached_it_stays_until_down(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECROUTER_CACHE", str(cache / "detached"))
    done = subprocess.run([*UP, "--detach"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    state = Run("stub").read()
    assert state is not None
    assert "router: ready in" in done.stdout
    assert len(answer("--seed", "1")["tokens"]) == 60
    assert call("down") == "stub is down\n"
    assert until(lambda: not any(running(pid) for pid in [state.pid, *(part.pid for part in state.parts)]), 5)
    assert "no mesh is up; `specrouter up` starts one" in call("status", code=1)


def test_a_port_in_use_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECROUTER_CACHE", str(cache / "port"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        said = call("up", "--engine", "stub", "--port", str(port), "--grpc-port", "0", code=1)
    assert f"--port: port {port} can't be used" in said


def test_a_redis_that_is_not_there_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECROUTER_CACHE", str(cache / "redis"))
    url = "redis://:secret-word@127.0.0.1:1/0"
    said = call("up", "--engine", "stub", "--port", "0", "--grpc-port", "0", "--redis-url", url, code=1)
    assert "router died (exit code" in said
    assert "127.0.0.1:1" in said
    assert "secret-word" not in said


def test_a_level_with_replicas_is_as_many_processes(up: Up, tmp_path: Path) -> None:
    family = tmp_path / "twins.yaml"
    family.write_text(
        "name: twins\ntokenizer: bytes\nlevels: [{name: draft, engine: stub, agreement: 0.7},"
        " {name: target, engine: stub, replicas: 2}]\n"
    )
    call("up", "--family", str(family), "--port", "0", "--grpc-port", "0", "--detach")
    try:
        state = Run("twins").read()
        assert state is not None
        pids = {part.name: part.pid for part in state.parts}
        assert {"draft", "target-0", "target-1"} < set(pids)
        before = call("generate", "tell me", "--name", "twins", "--json", "--max-tokens", "60")
        os.kill(pids["target-0"], signal.SIGKILL)
        after = call("generate", "tell me", "--name", "twins", "--json", "--max-tokens", "60")
        assert json.loads(after)["tokens"] == json.loads(before)["tokens"]
        said = call("status", "--name", "twins")
        replicas = [line for line in said.splitlines() if "target 127.0.0.1:" in line]
        assert len(replicas) == 2 and any("ready" in line for line in replicas)
    finally:
        call("down", "--name", "twins")
