"""What is known of a mesh, on disk: so that other commands find it, and see when it is gone.

A mesh's launcher holds a lock on a file in the mesh's directory for as long as it lives. The
system frees it however the launcher ends, so a state file without a held lock is a stale one.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pydantic import BaseModel, ValidationError

from specrouter_local import paths
from specrouter_local.errors import UserError

HOLD_LIMIT = 2.0  # seconds; a look by another command holds the lock for an instant

Phase = Literal["starting", "ready", "stopping", "failed"]
Condition = Literal["waiting", "starting", "ready", "backing off", "gone"]


class PartState(BaseModel):
    """One process of the mesh."""

    name: str
    kind: Literal["redis", "level", "router"]
    log: str
    address: str  # what it is reached at, for people
    condition: Condition = "waiting"
    pid: int = 0
    since: float = 0.0  # seconds since 1970 of the last change of ``condition``
    took: float = 0.0  # seconds from its start until it was ready
    restarts: int = 0
    note: str = ""  # what it says of itself, or how it ended


class MeshState(BaseModel):
    """A mesh and its parts, in the order they are shown."""

    name: str
    pid: int  # the launcher's
    started: float  # seconds since 1970
    router: str  # http://host:port
    grpc: str  # host:port
    levels: list[str]  # lowest first
    phase: Phase = "starting"
    problem: str = ""  # why it failed
    parts: list[PartState] = []


class Run:
    """The directory of one mesh: state, logs, the family file as the router reads it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = paths.runs() / name
        self._lock = self.directory / "lock"
        self._state = self.directory / "state.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Marks the mesh as alive. Raises UserError when it is already."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._lock.open("w") as file:
            limit = time.monotonic() + HOLD_LIMIT
            while not _try(file.fileno()):
                if time.monotonic() > limit:
                    raise UserError(f"the mesh {self.name} is up already; `specrouter down` ends it")
                time.sleep(0.05)
            yield

    def clear(self) -> None:
        """Forgets the state of a mesh that ended as it should."""
        self._state.unlink(missing_ok=True)

    def alive(self) -> bool:
        """Whether a launcher holds the mesh."""
        try:
            with self._lock.open("r") as file:
                return not _try(file.fileno())
        except FileNotFoundError:
            return False

    def write(self, state: MeshState) -> None:
        """Replaces the state at once: a reader sees the old or the new one."""
        part = self._state.with_suffix(f".{os.getpid()}")
        part.write_text(state.model_dump_json(indent=1), encoding="utf-8")
        part.replace(self._state)

    def read(self) -> MeshState | None:
        """The state last written; None when there is none, or no readable one."""
        try:
            return MeshState.model_validate_json(self._state.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None


def _try(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def find(name: str | None) -> tuple[Run, MeshState]:
    """The mesh called ``name``, or the one that is up. Raises UserError when there is none, or more than one."""
    names = [name] if name else sorted(path.parent.name for path in paths.runs().glob("*/state.json"))
    up = [(run, state) for run in map(Run, names) if run.alive() and (state := run.read())]
    if len(up) == 1:
        return up[0]
    if up:
        raise UserError(f"several meshes are up, pick one with --name: {', '.join(run.name for run, _ in up)}")
    stale = [other for other in names if Run(other).read()]
    hint = f" ({', '.join(stale)} ended without saying so)" if stale else ""
    raise UserError(f"no mesh {name + ' ' if name else ''}is up{hint}; `specrouter up` starts one")
