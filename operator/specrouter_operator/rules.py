"""A family and its policy as the controllers see them, whatever objects they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LevelState:
    """One level: its limits, and how it stands."""

    name: str
    replicas: int = 1  # asked for now (the Deployment's spec.replicas)
    ready: int = 1
    least: int = 1  # replicas; 0 = may be switched off when it does not pay (never the target)
    most: int = 8
    gpus: int = 1  # of one replica; 0 = it needs none
    price: float = 1.0  # of one GPU, in any unit
    slots: int = 64  # sequences one replica holds at most
    max_rows: int = 512  # tokens one step feeds at most
    step_ms: float | None = None  # objective of a step's median; None: by its calibration


@dataclass(frozen=True, slots=True)
class Mesh:
    """One family now. ``name`` is the key of its signals: ``name``, or ``namespace/name``."""

    name: str
    levels: tuple[LevelState, ...]  # lowest first, the target last
    weights: Mapping[str, float] = field(default_factory=dict)  # as last published; missing = 100
    pinned: frozenset[str] = frozenset()  # those of them that were pins, not measured

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels: at least the target is needed")
        names = [level.name for level in self.levels]
        if len(set(names)) != len(names):
            raise ValueError(f"levels: names must differ, got {', '.join(names)}")

    @property
    def target(self) -> LevelState:
        """The level whose text clients get."""
        return self.levels[-1]


@dataclass(frozen=True, slots=True)
class Rules:
    """One policy. Times in seconds unless the name says otherwise."""

    pins: Mapping[str, float] = field(default_factory=dict)  # level -> weight that is not steered
    tpot: Mapping[str, float] = field(default_factory=dict)  # traffic class ("" = all) -> p95 of seconds per token
    ttft: Mapping[str, float] = field(default_factory=dict)  # traffic class ("" = all) -> p95 to the first token
    error_rate: float = 0.05  # share of calls that may fail
    automatic: bool = True  # False: replicas are set by hand
    utilisation: float = 0.8  # of what a replica carries, to stay under
    gpus: int | None = None  # of the whole family at most
    up_window: float = 10.0  # so long more must have been needed before replicas are added
    down_window: float = 300.0  # so long fewer must have been enough before one is removed
    up_step: int = 4  # replicas of a level added at once at most (or as many as there are)
    down_step: int = 1
    weight_interval: float = 2.0  # between two steps of the weights
    stale: float = 10.0  # age from which signals are not acted upon
    lookahead: int = 16  # tokens a level proposes at once at most

    @property
    def objective(self) -> float | None:
        """The strictest time per token of all classes."""
        return min(self.tpot.values(), default=None)
