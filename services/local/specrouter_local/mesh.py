"""A mesh on one machine: starts the parts, waits until each is ready, watches them, ends them.

A level that dies is started again, with growing pauses and not forever: the router goes on with
its other replicas, or without it meanwhile (the target excepted, whose requests fail until it is back). Redis and the
router are not: when one of them dies, the mesh ends and says which.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from specrouter_local import process
from specrouter_local.parts import Part
from specrouter_local.process import Child
from specrouter_local.state import Condition, MeshState, PartState, Run

TICK = 0.05  # seconds between looks
PROBE_EVERY = 0.2  # seconds between questions to a part that isn't ready
STEADY = 60.0  # seconds a part must have been ready for its restarts to be forgotten
FIRST_PAUSE, LAST_PAUSE = 0.5, 10.0  # seconds before a restart; doubles in between
ROUTER_GRACE, GRACE = 12.0, 8.0  # seconds to end in after SIGTERM; the router lets running answers end first
DRAINED = "exit code 0"  # how a part ends that was asked to
LAST_LINES, SOME_LINES = 20, 6  # of a log: when the mesh ends, when it goes on


class PartError(Exception):
    """A part without which the mesh can't go on. The text says which, how, and the end of its log."""


@dataclass(slots=True)
class Place:
    """A part, its present process and what is known of it."""

    part: Part
    state: PartState
    child: Child | None = None
    tries: int = 0  # restarts in a row
    started: float = 0.0  # monotonic seconds
    ready_since: float = 0.0
    next_look: float = 0.0  # when to ask or to start it again


class Mesh:
    """The processes of one family."""

    def __init__(self, parts: Sequence[Part], run: Run, state: MeshState, say: Callable[[str], None]) -> None:
        """``say`` gets one sentence about each thing that happens after the start."""
        self.state = state
        self._run = run
        self._say = say
        self._places: list[Place] = []
        for part in parts:
            log = run.directory / f"{part.name}.log"
            log.unlink(missing_ok=True)
            known = PartState(name=part.name, kind=part.kind, log=str(log), address=part.address)
            state.parts.append(known)
            self._places.append(Place(part, known))

    def start(self, tick: Callable[[], bool]) -> bool:
        """Brings all parts up. ``tick`` is called often, to draw; False from it ends the wait.

        Returns whether all are ready. Raises PartError when one dies or is too slow.
        """
        self._write()
        while tick():
            waiting = [place for place in self._places if place.state.condition != "ready"]
            if not waiting:
                self.state.phase = "ready"
                self._write()
                return True
            stage = min(place.part.stage for place in waiting)
            for place in self._places:
                if place.child is not None and place.child.ended() is not None:
                    raise PartError(self._obituary(place))
                if place.child is None and place.part.stage <= stage:
                    self._launch(place)
                elif place.state.condition == "starting" and not self._ask(place):
                    raise PartError(f"{self._overdue(place)}{self._log_end(place)}")
            time.sleep(TICK)
        return False

    def watch(self, tick: Callable[[], bool]) -> None:
        """Keeps the parts alive until ``tick`` says False. Raises PartError when that can't be done."""
        while tick():
            for place in self._places:
                self._look(place)
            time.sleep(TICK)

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Ends all parts: the router first, so that no request meets a mesh half gone. ``hurry``: kill, don't wait."""
        if self.state.phase != "failed":
            self.state.phase = "stopping"
        self._write()
        for kinds, grace in ((("router",), ROUTER_GRACE), (("level", "redis"), GRACE)):
            places = [place for place in self._places if place.part.kind in kinds and place.child is not None]
            process.stop([place.child for place in places if place.child is not None], grace, hurry)
            for place in places:
                place.state.note = ""
                self._enter(place, "gone")

    def fail(self, problem: str) -> None:
        """Notes why the mesh ends, for those who read the state."""
        self.state.phase, self.state.problem = "failed", problem
        self._write()

    def _look(self, place: Place) -> None:
        now = time.monotonic()
        condition = place.state.condition
        if condition == "gone":
            return
        if condition == "backing off":
            if now >= place.next_look:
                self._launch(place)
        elif place.child is not None and place.child.ended() is not None:
            self._lost(place)
        elif condition == "starting":
            if not self._ask(place) and place.child is not None:
                self._say(self._overdue(place))
                place.child.kill()  # the next look sees it dead
            elif place.state.condition == "ready":
                self._say(f"{place.part.name} is back after {place.state.took:.1f} s")
        elif place.tries and now - place.ready_since > STEADY:
            place.tries = 0

    def _lost(self, place: Place) -> None:
        """Decides what follows from a death. Raises PartError when it is the end of the mesh."""
        part = place.part
        if place.child is not None and place.child.ended() == DRAINED and place.state.condition == "ready":
            self._say(f"{part.name} has handed its work over; it is started again")
            place.state.restarts += 1
            self._launch(place)
            return
        others = any(
            p is not place and bool(part.level) and p.part.level == part.level and p.state.condition == "ready"
            for p in self._places
        )
        target = part.kind == "level" and (part.level or part.name) == self.state.levels[-1] and not others
        end = place.tries >= part.restarts and (target or part.kind != "level")
        obituary = self._obituary(place, LAST_LINES if end else SOME_LINES)
        if place.child is not None:
            place.child.kill()  # what it may have started itself
        if end:
            raise PartError(f"after {place.tries} restarts, {obituary}" if place.tries else obituary)
        if place.tries >= part.restarts:
            place.state.note = f"died {place.tries + 1} times in a row"
            self._enter(place, "gone")
            self._say(f"{obituary}\n{part.name} is given up after {place.tries} restarts; the mesh goes on without it")
            return
        pause = min(LAST_PAUSE, FIRST_PAUSE * 2**place.tries)
        place.tries += 1
        place.state.restarts += 1
        place.next_look = time.monotonic() + pause
        self._enter(place, "backing off")
        without = "requests fail until it is back" if target else "the chain is shorter until it is back"
        if part.kind == "router":
            without = "its clients find their texts at the other routers"
        elif others and part.level:
            without = f"the other replicas of {part.level} take its sequences"
        self._say(f"{obituary}\n{part.name} is started again in {pause:.1f} s; {without}")

    def _launch(self, place: Place) -> None:
        place.child = Child(place.part.argv, place.part.env, Path(place.state.log))
        place.state.pid = place.child.pid
        place.state.note = ""
        place.started = time.monotonic()
        place.next_look = 0.0
        self._enter(place, "starting")

    def _ask(self, place: Place) -> bool:
        """Asks a starting part whether it is ready, when it is time to. False: it has been starting for too long."""
        now = time.monotonic()
        if now < place.next_look:
            return True
        said = place.part.probe()
        now = time.monotonic()
        place.next_look = now + PROBE_EVERY
        if said is not None:
            place.state.note, place.state.took, place.ready_since = said, now - place.started, now
            self._enter(place, "ready")
        return said is not None or now - place.started <= place.part.patience

    def _enter(self, place: Place, condition: Condition) -> None:
        place.state.condition, place.state.since = condition, time.time()
        self._write()

    def _obituary(self, place: Place, lines: int = LAST_LINES) -> str:
        ended = place.child.ended() if place.child is not None else None
        return f"{place.part.name} died ({ended}){self._log_end(place, lines)}"

    def _overdue(self, place: Place) -> str:
        return f"{place.part.name} was not ready after {place.part.patience:g} s"

    def _log_end(self, place: Place, count: int = LAST_LINES) -> str:
        lines = place.child.tail(count) if place.child is not None else []
        if not lines:
            return f"; its log {place.state.log} is empty"
        return f"; the end of its log {place.state.log}:\n" + "\n".join(f"  {line}" for line in lines)

    def _write(self) -> None:
        self._run.write(self.state)


def new_state(run: Run, router: str, grpc: str, levels: list[str]) -> MeshState:
    """The state of a mesh about to start."""
    return MeshState(name=run.name, pid=os.getpid(), started=time.time(), router=router, grpc=grpc, levels=levels)
