"""What is measured, as the controllers see it: one family's levels and routers over the last seconds.

Two sources give it: the windowed store that the OTLP receiver fills (store.py), and Prometheus (prometheus_source.py).
Both use the processes' own metric names, see docs/signals.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Pair:
    """Two quantiles of a time, in seconds."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class LevelSignal:
    """One level over a window, its replicas together. None: nothing was seen of it in the window."""

    age: float = NEVER  # seconds since the newest report
    replicas: Mapping[str, float] = field(default_factory=dict)  # instance that reports -> sequences it holds
    steps: float = 0.0  # in the window
    step: Pair | None = None  # of one engine step
    queue: Pair | None = None  # of a call, from receipt to its first step
    rows: Pair | None = None  # tokens fed in one step, not seconds
    busy: float = 0.0  # share of the replicas' time spent in steps, 0..1
    fed: float = 0.0  # tokens fed per second, all replicas
    calls: float = 0.0  # ended per second, all replicas
    errors: float = 0.0  # share of ended calls that failed by the level's fault, 0..1
    batch: float = 1.0  # sequences in a step, mean
    proposals: float = 0.0  # of a call, mean
    costs: Mapping[int, float] = field(default_factory=dict)  # rows -> seconds, as calibrated at its start


@dataclass(frozen=True, slots=True)
class RouterSignal:
    """What clients ask for and get, all routers of the family together, over a window."""

    age: float = NEVER  # seconds since the newest report
    routers: int = 0  # that report
    arrivals: float = 0.0  # requests per second, refused ones included
    tokens: float = 0.0  # committed per second
    prompt: float | None = None  # tokens of a request's prompt, mean
    length: float | None = None  # tokens generated for a request, mean
    per_token: float | None = None  # seconds between two tokens of a sequence, mean
    tpot: Mapping[str, Pair] = field(default_factory=dict)  # traffic class -> time per output token, of ended requests
    ttft: Mapping[str, Pair] = field(default_factory=dict)  # traffic class -> time to the first token
    running: float = 0.0  # sequences at once
    agreement: Mapping[str, float] = field(default_factory=dict)  # level -> with the target's draws, 0..1


class Signals(Protocol):
    """Where measurements come from. ``family`` is ``name``, or ``namespace/name``; times are seconds of one clock."""

    def level(self, family: str, level: str, now: float, window: float) -> LevelSignal:
        """One level over the last ``window`` seconds. Never raises for what is not known."""

    def routers(self, family: str, now: float, window: float) -> RouterSignal:
        """The family's routers over the last ``window`` seconds. Never raises for what is not known."""
