"""The weight of each level, 0 to 100, from how it does against its objectives. Pure: no clock, no I/O.

A level's *excess* is the worst of four ratios, measured over allowed; 1 is just right:

    step         median over 1.5 times, p95 over 3 times what its calibration says for as many rows (or the policy's)
    queue        p95 over 2.5 steps (half a step is natural: a call that comes while a step runs waits for its rest)
    utilisation  of what the level carries, over 1
    errors       share of failed calls over the policy's

The excess is smoothed, lightly where it jumps. The weight wanted is 100 up to an excess of 1, 0 from 3 on, and a line
between. The weight follows with damping, down faster than up, and with slack: between health and being out it moves
only as far as to come within 20 of what is wanted, so that noise moves it a few times at most and then leaves it. A
level at 0 is *out*: it returns only after its excess was under 0.9 for a while, which can be seen since routers go on
judging levels that no chain uses: a few calls a minute, enough for its step times. A level that nobody measures any
more is tried again after a while that doubles from failure to failure. What is published moves in steps of at least
10. The target's weight is always 100: its text is the text, and it is always used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from specrouter_core.profile import Curve
from specrouter_operator.rules import LevelState, Mesh, Rules
from specrouter_operator.signals import LevelSignal, Pair
from specrouter_operator.smooth import smoothed

FULL = 100.0
OUT_AT, BACK_AT = 3.0, 0.9  # excess
MEDIAN_SLACK, TAIL_SLACK = 1.5, 3.0  # of a step over its calibration
QUEUE_STEPS = 2.5
SMOOTH, QUICK, JUMP = 0.5, 0.8, 1.6  # of the excess, see smooth.py
SLACK = 20.0  # between what is wanted and the weight
FALL, RISE = 0.7, 0.3  # share of the way to what is wanted that one step goes
SNAP = 12.0  # this near to 0 or 100, it is 0 or 100
NEWS = 10.0  # least change that is published
HOLD = 4.0  # seconds of health before a level that is out returns
MIN_STEPS = 2.0  # in the window, to judge by
RETRY, LAST_RETRY = 120.0, 1920.0  # seconds out without a measurement until it is tried again
TRIAL = 50.0  # the weight it is tried with
NORMAL_RISE = 600.0  # seconds in which what counts as normal rises by a factor of e


@dataclass(slots=True)
class LevelMemory:
    """What is remembered of one level between steps."""

    weight: float = FULL  # before rounding
    published: int = 100
    smoothed: float | None = None  # excess
    healthy_since: float | None = None  # while it is out
    measured: float | None = None  # when its steps were last seen
    retry: float = RETRY
    normal: float | None = None  # seconds of a step per row-independent median, of levels without calibration
    normal_at: float = 0.0


@dataclass(slots=True)
class Memory:
    """What is remembered of a family's weights."""

    levels: dict[str, LevelMemory] = field(default_factory=dict)
    stepped: float | None = None


@dataclass(frozen=True, slots=True)
class Excess:
    """How far a level is from its objectives, and by what."""

    value: float
    reason: str


@dataclass(frozen=True, slots=True)
class Weighed:
    """The weights to publish, level -> 0..100, and why, level -> sentence."""

    weights: dict[str, int]
    reasons: dict[str, str]


def step(
    memory: Memory, mesh: Mesh, rules: Rules, signals: Mapping[str, LevelSignal], loads: Mapping[str, float], now: float
) -> Weighed:
    """The next weights; ``memory`` is changed. ``loads``: utilisation of what a level carries, where it is known.

    Between two steps of the policy's interval the answer stays the same. A level with stale signals keeps its weight,
    but for a pin that is taken away: nothing that was measured speaks for it, so the level is free to use again.
    """
    due = memory.stepped is None or now - memory.stepped >= rules.weight_interval
    if due:
        memory.stepped = now
    weights, reasons = {}, {}
    for level in mesh.levels:
        name = level.name
        known = memory.levels.get(name)
        freed = name in mesh.pinned and name not in rules.pins
        if known is None or freed:
            given = FULL if freed else min(max(mesh.weights.get(name, FULL), 0.0), FULL)
            known = memory.levels[name] = LevelMemory(given, round(given), measured=now)
        if name in rules.pins:
            known.weight = min(max(float(rules.pins[name]), 0.0), FULL)
            known.published = round(known.weight)
            reasons[name] = "pinned by the policy"
        elif level is mesh.target:
            known.weight, known.published = FULL, 100
            reasons[name] = "the target is always used"
        else:
            signal = signals.get(name, LevelSignal())
            reasons[name] = _steer(known, level, rules, signal, loads.get(name, 0.0), now, due=due)
        weights[name] = known.published
    return Weighed(weights, reasons)


def _steer(
    known: LevelMemory, level: LevelState, rules: Rules, signal: LevelSignal, load: float, now: float, *, due: bool
) -> str:
    """Move one level's weight. Returns why it is what it is."""
    if level.ready == 0:
        return "no replica is ready: the weight is kept"
    if signal.age > rules.stale:
        return "signals are stale: the weight is frozen"
    found = excess(known, level, rules, signal, load, now)
    if found is None:
        return _unmeasured(known, now)
    known.measured = now
    if due:
        known.smoothed = smoothed(known.smoothed, found.value, share=SMOOTH, quick=QUICK, jump=JUMP)
        _move(known, known.smoothed, now)
    if known.published == 0 and found.value < OUT_AT:
        return f"out until it has been healthy for {HOLD:g} s: {found.reason}"
    return found.reason


def _unmeasured(known: LevelMemory, now: float) -> str:
    """Nobody uses it and nobody judges it."""
    if known.published > 0:
        return "not used in the last seconds: the weight is kept"
    if known.measured is not None and now - known.measured >= known.retry:
        known.retry = min(2 * known.retry, LAST_RETRY)
        known.measured = now
        known.weight, known.published = TRIAL, round(TRIAL)
        return f"out and not measured for long: tried again with {TRIAL:g}"
    return "out, waiting for a measurement"


def _move(known: LevelMemory, excess: float, now: float) -> None:
    """One damped step, with the hysteresis of a level that is out."""
    if known.weight == 0:
        if excess >= BACK_AT:
            known.healthy_since = None
            return
        known.healthy_since = now if known.healthy_since is None else known.healthy_since
        if now - known.healthy_since < HOLD:
            return
    wanted = wanted_at(excess)
    if BACK_AT < excess < OUT_AT:
        wanted = min(max(known.weight, wanted - SLACK), wanted + SLACK, FULL)
    known.weight += (FALL if wanted < known.weight else RISE) * (wanted - known.weight)
    if excess >= OUT_AT and known.weight < SNAP:
        known.weight = 0.0
        known.healthy_since = None
    elif excess <= BACK_AT and known.weight > FULL - SNAP:
        known.weight = FULL
        known.retry = RETRY
    if abs(known.weight - known.published) >= NEWS or known.weight in (0.0, FULL):
        known.published = round(known.weight)


def wanted_at(excess: float) -> float:
    """The weight that an excess deserves, 0..100."""
    return FULL * min(max((OUT_AT - excess) / (OUT_AT - 1), 0.0), 1.0)


def excess(
    known: LevelMemory, level: LevelState, rules: Rules, signal: LevelSignal, load: float, now: float
) -> Excess | None:
    """The worst of the level's ratios; None when its steps were not seen."""
    if signal.step is None or signal.rows is None or signal.steps < MIN_STEPS:
        if signal.errors > 0 and signal.calls > 0:  # it may fail without ever finishing a step
            return _errors(rules, signal)
        return None
    step = signal.step
    median, tail = _expected(known, level, step, signal.rows, signal.costs, now)
    found = [
        Excess(step.p50 / (MEDIAN_SLACK * median), f"step p50 {_ms(step.p50)}, {_ms(median)} expected"),
        Excess(step.p95 / (TAIL_SLACK * tail), f"step p95 {_ms(step.p95)}, {_ms(tail)} expected"),
        Excess(load, f"utilisation {load:.2f}"),
        _errors(rules, signal),
    ]
    if signal.queue is not None:
        allowed = QUEUE_STEPS * max(step.p95, tail)
        found.append(Excess(signal.queue.p95 / allowed, f"queue p95 {_ms(signal.queue.p95)}, {_ms(allowed)} allowed"))
    return max(found, key=lambda one: one.value)


def _errors(rules: Rules, signal: LevelSignal) -> Excess:
    return Excess(signal.errors / max(rules.error_rate, 1e-6), f"{signal.errors:.1%} of calls fail")


def _expected(
    known: LevelMemory, level: LevelState, step: Pair, rows: Pair, costs: Mapping[int, float], now: float
) -> tuple[float, float]:
    """Seconds that the median step and the p95 step should take."""
    if costs and min(costs.values()) > 0:
        curve = Curve.of(costs)
        median, tail = curve.seconds(max(rows.p50, 1.0)), curve.seconds(max(rows.p95, 1.0))
    else:
        if known.normal is None:
            known.normal = step.p50
        else:
            known.normal *= math.exp(max(now - known.normal_at, 0.0) / NORMAL_RISE)
            known.normal = min(known.normal, step.p50)
        known.normal_at = now
        median = tail = known.normal
    if level.step_ms is not None:
        stretch = tail / median
        median = level.step_ms / 1000
        tail = median * stretch
    return max(median, 1e-6), max(tail, 1e-6)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
