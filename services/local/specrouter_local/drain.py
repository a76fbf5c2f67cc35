"""Draining parts of a mesh: each hands its work over and ends, and the launcher starts it anew."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

from specrouter_local.errors import UserError
from specrouter_local.state import MeshState, PartState, Run

LIMIT = 300.0  # seconds until a part is back; the router and the levels have limits of their own for the hand-over
EVERY = 0.05  # seconds between looks


@dataclass(frozen=True, slots=True)
class Drained:
    """One part that is back. Seconds."""

    name: str
    ended: float  # after it was asked to
    back: float


def drain(run: Run, mesh: MeshState, name: str) -> Iterator[Drained]:
    """Drain a part, or all replicas of a level or router one after the other. Raises UserError."""
    parts = [part for part in mesh.parts if re.fullmatch(rf"{re.escape(name)}(-\d+)?", part.name)]
    if not parts:
        raise UserError(f"{run.name} has no part {name}; it has {', '.join(part.name for part in mesh.parts)}")
    if parts[0].kind == "redis":
        raise UserError("redis can't be drained: it has nowhere to hand its records to")
    for part in parts:
        yield _drain(run, part.name)


def _drain(run: Run, name: str) -> Drained:
    before = _part(run, name)
    if before.condition != "ready":
        raise UserError(f"{name} is not ready but {before.condition}")
    begin = time.monotonic()
    os.kill(before.pid, signal.SIGTERM)
    ended = 0.0
    while time.monotonic() - begin < LIMIT:
        now = _part(run, name)
        if now.pid != before.pid and not ended:
            ended = time.monotonic() - begin
        if now.pid != before.pid and now.condition == "ready":
            return Drained(name, ended, time.monotonic() - begin)
        if now.condition == "gone":
            raise UserError(f"{name} was given up: {now.note}; its log is {now.log}")
        time.sleep(EVERY)
    raise UserError(f"{name} was not back after {LIMIT:g} s; its log is {before.log}")


def _part(run: Run, name: str) -> PartState:
    mesh = run.read() if run.alive() else None
    if mesh is None:
        raise UserError(f"{run.name} has ended")
    return next(part for part in mesh.parts if part.name == name)
