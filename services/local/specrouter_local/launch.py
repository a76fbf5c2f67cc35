"""Bringing a mesh up, in this process or behind it, and down."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from rich.console import Console
from rich.text import Text

from specrouter_family.family import Family
from specrouter_local import parts, process, screen, weights
from specrouter_local.errors import UserError
from specrouter_local.mesh import Mesh, PartError, new_state
from specrouter_local.process import Child
from specrouter_local.state import MeshState, Run

DOWN_LIMIT = 30.0  # seconds the launcher may take to end its parts
APPEAR_LIMIT = 30.0  # seconds until a background launcher has written its state
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line of ``up`` says."""

    family: Path | None  # None: the built-in one of ``engine``
    engine: str  # demo or stub
    redis_url: str | None  # None: the embedded server
    port: int  # 0: any free one
    grpc_port: int
    routers: int = 1

    def arguments(self) -> list[str]:
        """The same as command-line arguments."""
        argv = ["up", "--engine", self.engine, "--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        argv += ["--routers", str(self.routers)]
        return argv + (["--family", str(self.family)] if self.family else [])


class Signals:
    """Counts the requests to end while it is entered."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def prepare(console: Console, wanted: Wanted) -> Family:
    """The family with all its weights on this machine. Raises UserError."""
    if wanted.family:
        family, base = weights.load(wanted.family), wanted.family.absolute().parent
    else:
        family, base = weights.built_in(wanted.engine), Path.cwd()
    with screen.pull_bar(console) as progress:
        return weights.placed(family, base, progress)


def _build(run: Run, family: Family, wanted: Wanted, console: Console) -> Mesh:
    """The parts with their ports. Raises UserError when a port is taken."""
    for port, option in ((wanted.port, "--port"), (wanted.grpc_port, "--grpc-port")):
        if port:
            parts.check_free(port, option)
    ports = parts.free_ports(1 + 2 * parts.processes(family) + 2 * wanted.routers)
    redis_port, port, grpc_port = next(ports), wanted.port or next(ports), wanted.grpc_port or next(ports)
    family = parts.addressed(family, ports)
    family_file = run.directory / "family.yaml"
    parts.write_family(family, family_file)
    made = [] if wanted.redis_url else [parts.redis_part(redis_port, run.directory / "valkey")]
    redis_url = wanted.redis_url or f"redis://{parts.HOST}:{redis_port}/0"
    made += parts.level_parts(family, ports, redis_url)
    last = 1 + max(part.stage for part in made)
    made.append(parts.router_part(family_file, redis_url, port, grpc_port, last, alone=wanted.routers == 1))
    for i in range(1, wanted.routers):
        made.append(parts.router_part(family_file, redis_url, next(ports), next(ports), last, number=i, alone=False))
    names = [level.name for level in family.levels]
    state = new_state(run, f"http://{parts.HOST}:{port}", f"{parts.HOST}:{grpc_port}", names)
    return Mesh(made, run, state, lambda text: console.print(Text(f"  {text}", style="yellow")))


def up(console: Console, family: Family, wanted: Wanted) -> int:
    """Runs the mesh until it is told to end, or fails; returns the exit code. Raises UserError before the start."""
    run = Run(family.name)
    with run.held(), Signals() as signals:
        mesh = _build(run, family, wanted, console)
        try:
            with screen.Board(console) as board:

                def drawn() -> bool:
                    board.draw(mesh.state)
                    return signals.count == 0

                ready = mesh.start(drawn)
                board.draw(mesh.state, last=True)
            if ready:
                console.print(screen.addresses(mesh.state), highlight=False, soft_wrap=True)
                console.print(Text("  Ctrl-C ends it.", style="dim"))
                mesh.watch(lambda: signals.count == 0)
        except PartError as error:
            mesh.fail(str(error))
            console.print(Text(str(error), style="red"))
            return 1
        finally:
            console.print(Text("\n  ending the parts (once more: at once)", style="dim"))
            mesh.stop(lambda: signals.count > 1)
        run.clear()
    return 0


class Launcher:
    """An ``up`` in a process of its own."""

    def __init__(self, name: str, wanted: Wanted, tied: bool) -> None:
        """Starts it. ``tied``: it ends with this process, however this one ends."""
        self.run = Run(name)
        if self.run.alive():
            raise UserError(f"the mesh {name} is up already; `specrouter down` ends it")
        self.run.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log = self.run.directory / "launcher.log"
        self.log.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "specrouter_local", *wanted.arguments()]
        env = dict(os.environ)
        if wanted.redis_url:
            env["SPECROUTER_REDIS_URL"] = wanted.redis_url  # it may hold a password
        self._child = Child(argv, env, self.log, tied=tied)

    def wait(self, console: Console) -> MeshState:
        """Shows the start until the mesh is ready. Raises UserError when it fails."""
        begin = time.monotonic()
        with screen.Board(console) as board:
            while (ended := self._child.ended()) is None:
                state = self.run.read()
                if state and state.pid == self._child.pid and state.phase in ("starting", "ready"):
                    board.draw(state, last=state.phase == "ready")
                    if state.phase == "ready":
                        return state
                elif time.monotonic() - begin > APPEAR_LIMIT:
                    raise UserError(f"the launcher shows no life after {APPEAR_LIMIT:.0f} s; its log is {self.log}")
                time.sleep(0.05)
        said = self.log.read_text(encoding="utf-8", errors="replace").strip()
        raise UserError(f"the mesh didn't come up ({ended}):\n{said}")

    def end(self) -> None:
        """Ends the mesh."""
        process.stop([self._child], DOWN_LIMIT, lambda: False)
        self.run.clear()


def down(run: Run, state: MeshState) -> None:
    """Ends a mesh and waits until it is gone. Raises UserError when it stays."""
    for number in (signal.SIGTERM, signal.SIGKILL):  # killed, it takes its parts along (they are tied to it)
        if not run.alive():
            break
        os.kill(state.pid, number)
        limit = time.monotonic() + DOWN_LIMIT
        while run.alive() and time.monotonic() < limit:
            time.sleep(0.05)
    if run.alive():
        raise UserError(f"the launcher of {run.name} (process {state.pid}) can't be ended")
    run.clear()
