"""Stub levels whose replicas come and go as a Deployment's would: local processes that are started and stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stub_mesh import Level

CURVES = {
    "draft": {1: 5.0, 16: 5.2, 64: 7.0, 128: 12.0, 256: 22.0},  # rows -> milliseconds
    "mid": {1: 18.0, 16: 19.0, 64: 26.0, 128: 44.0, 256: 84.0},
    "target": {1: 70.0, 16: 74.0, 64: 100.0, 128: 170.0, 256: 320.0},
}
AGREEMENT = {"draft": 0.65, "mid": 0.82, "target": 1.0}
MOST = {"draft": 2, "mid": 2, "target": 4}  # replicas
SLOTS = 256


@dataclass
class Replica:
    """A place for one process of a level."""

    name: str
    folder: Path
    level: Level

    @property
    def running(self) -> bool:
        return self.level.child is not None

    @property
    def ready(self) -> bool:
        return self.running and self.level.ready()

    def end(self) -> None:
        """Told to end: it drains."""
        if self.level.child is not None:
            self.level.child.popen.terminate()
            self.level.child = None

    def become(self, slowdown: float) -> None:
        if self.level.child is not None and self.level.child.alive:
            self.level.become(agreement=self.level.agreement, slowdown=slowdown)


class ScaledLevels:
    """All levels of the family ``name``. ``most``: places of each; ``env``: of every process; ``attributes``: more of
    their OpenTelemetry resource."""

    def __init__(
        self, folder: Path, name: str, env: Mapping[str, str], most: Mapping[str, int] = MOST, attributes: str = ""
    ) -> None:
        self.wanted = dict.fromkeys(most, 0)
        self._name = name
        self._slowdown = dict.fromkeys(most, 1.0)
        self._places: dict[str, list[Replica]] = {}
        for level, count in most.items():
            curve = ",".join(f"{rows}:{ms:g}" for rows, ms in CURVES[level].items())
            self._places[level] = []
            for i in range(count):
                place = f"{level}-{i}"
                whose = f"specrouter.family={name},service.instance.id={place}{attributes}"
                one = Level(
                    level,
                    AGREEMENT[level],
                    curve,
                    slots=SLOTS,
                    controlled=True,
                    env={**env, "OTEL_RESOURCE_ATTRIBUTES": whose},
                )
                (folder / place).mkdir()
                self._places[level].append(Replica(place, folder / place, one))

    def scale(self, wanted: Mapping[str, int], removals: Mapping[str, tuple[str, ...]]) -> None:
        """Start and stop processes, those of ``removals`` first."""
        for name, count in wanted.items():
            running = [place for place in self._places[name] if place.running]
            idle = [place for place in self._places[name] if not place.running]
            for place in idle[: max(count - len(running), 0)]:
                place.level.start(place.folder)
                place.become(self._slowdown[name])
            gone = removals.get(name, ())
            running.sort(key=lambda place: place.name not in gone)
            for place in running[: max(len(running) - count, 0)]:
                place.end()
            self.wanted[name] = count

    def become(self, level: str, slowdown: float) -> None:
        """Every replica takes so many times as long from its next step on."""
        self._slowdown[level] = slowdown
        for place in self._places[level]:
            place.become(slowdown)

    def ready(self) -> dict[str, int]:
        """Level -> replicas that are."""
        return {name: sum(place.ready for place in places) for name, places in self._places.items()}

    def family_file(self) -> str:
        """For routers: every address there may ever be."""
        levels = [
            {"name": name, "engine": "stub", "addresses": [place.level.address for place in places]}
            for name, places in self._places.items()
        ]
        return json.dumps({"name": self._name, "tokenizer": "bytes", "levels": levels, "chain": {"policy": "adaptive"}})

    def close(self) -> None:
        """End all processes."""
        for place in (place for places in self._places.values() for place in places):
            if place.level.child is not None:
                place.level.kill()
