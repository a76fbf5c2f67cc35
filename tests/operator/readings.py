"""Signals made up for tests of the controllers: a family of three levels with known costs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from specrouter_operator.control import Control, Decision
from specrouter_operator.rules import LevelState, Mesh, Rules
from specrouter_operator.signals import LevelSignal, Pair, RouterSignal

COSTS = {
    "draft": {1: 0.0025, 16: 0.0026, 64: 0.0035, 128: 0.006, 256: 0.011},
    "mid": {1: 0.009, 16: 0.0095, 64: 0.013, 128: 0.022, 256: 0.042},
    "target": {1: 0.035, 16: 0.037, 64: 0.05, 128: 0.085, 256: 0.16},
}
AGREEMENT = {"draft": 0.65, "mid": 0.82, "target": 1.0}


def level_signal(
    name: str = "mid", *, slow: float = 1.0, jitter: float = 1.0, rate: float = 2.0, **fields: Any
) -> LevelSignal:
    """A level at work. ``slow``: its steps take so many times as long; ``jitter``: and what is measured differs so."""
    step = COSTS[name][1] * slow * jitter
    usual: dict[str, Any] = {
        "age": 0.5,
        "replicas": {f"{name}-0": 3.0},
        "steps": 50.0,
        "step": Pair(step, step * 1.2 * jitter),
        "queue": Pair(step * 0.3, step * 0.9),
        "rows": Pair(4.0, 9.0),
        "busy": 0.6,
        "fed": 60.0 * rate * jitter,
        "calls": 20.0,
        "batch": 2.0,
        "proposals": 6.0,
        "costs": COSTS[name],
    }
    return LevelSignal(**(usual | fields))


@dataclass
class Readings:
    """Signals of the family. What is set here is what is measured from then on."""

    slow: dict[str, float] = field(default_factory=dict)
    rate: float = 2.0  # requests per second
    noise: float = 0.0  # at most so much more or less, as a share
    silent: set[str] = field(default_factory=set)  # levels, "routers"
    tpot: float = 0.024
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def jitter(self) -> float:
        return 1 + self.noise * self.random.uniform(-1, 1)

    def level(self, family: str, level: str, now: float, window: float) -> LevelSignal:
        if level in self.silent:
            return LevelSignal(age=60.0)
        return level_signal(level, slow=self.slow.get(level, 1.0), jitter=self.jitter(), rate=self.rate)

    def routers(self, family: str, now: float, window: float) -> RouterSignal:
        if "routers" in self.silent:
            return RouterSignal(age=60.0)
        return RouterSignal(
            age=0.5,
            routers=1,
            arrivals=self.rate * self.jitter(),
            tokens=self.rate * 100 * self.jitter(),
            prompt=16.0,
            length=100.0 * self.jitter(),
            per_token=0.02 * self.jitter(),
            tpot={"": Pair(self.tpot * 0.8, self.tpot * self.jitter())},
            running=4.0,
            agreement={name: min(a * (1 + (self.jitter() - 1) / 10), 1.0) for name, a in AGREEMENT.items()},
        )


@dataclass
class Run:
    """A family that follows its decisions at once."""

    readings: Readings
    rules: Rules
    replicas: dict[str, int] = field(default_factory=lambda: {"draft": 1, "mid": 1, "target": 1})
    least: dict[str, int] = field(default_factory=dict)
    gpus: int = 1
    weights: dict[str, int] = field(default_factory=dict)
    now: float = 0.0
    changes: list[tuple[float, str]] = field(default_factory=list)  # (when, "weights" or "replicas")
    control: Control = field(default_factory=Control)

    def mesh(self) -> Mesh:
        levels = tuple(
            LevelState(name, count, count, self.least.get(name, 1), 8, self.gpus)
            for name, count in self.replicas.items()
        )
        return Mesh("ns/test", levels, self.weights)

    def step(self, seconds: float = 1.0) -> Decision:
        self.now += seconds
        decision = self.control.decide(self.mesh(), self.rules, self.readings, self.now)
        if self.weights and decision.weights != self.weights:
            self.changes.append((self.now, "weights"))
        if decision.replicas != self.replicas:
            self.changes.append((self.now, "replicas"))
        self.weights, self.replicas = decision.weights, decision.replicas
        return decision

    def until(self, seconds: float) -> Decision:
        """Steps of a second until that time."""
        while self.now < seconds - 1:
            self.step()
        return self.step()
