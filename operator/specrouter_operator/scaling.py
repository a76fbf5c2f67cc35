"""Replicas of each level, from what is asked of them. Pure: no clock, no I/O.

What a level needs now is the largest of

    load      ceil(replicas x utilisation / the policy's), where utilisation is rows fed a second over the rows that a
              replica carries while its steps stay within STRETCH times the one of a single row
    queue     one more, when p95 of the queue is above QUEUE_STEPS steps
    law       what keeps up with the level below (after Timor et al., Distributed Speculative Inference, arXiv
              2405.14105): a sequence whose next level drafts a token each t_down and offers L at once wants
              ceil(t_up / (L t_down)) servers; here times the sequences that draft now, over those that one step takes
    plan      what the budget's search gives for the load asked for (budget.py)

It follows after stabilisation: more only when more was needed for the whole up window (at once when the objective is
missed), less only when less was enough for the whole down window; in bounded steps; nothing while signals are stale;
nothing by itself when the policy says Manual.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from specrouter_core.profile import POINTS, Curve
from specrouter_operator.rules import LevelState, Rules
from specrouter_operator.signals import LevelSignal

STRETCH = 2.0  # a step may take so many times as long as that of one row
QUEUE_STEPS = 3.0  # p95 of the queue, in median steps
BUSY = 0.05  # share of time from which a level counts as working, for the law
MAX_NOTES = 512


@dataclass(frozen=True, slots=True)
class Need:
    """Replicas that a level should have, and why."""

    count: int
    reason: str


@dataclass(slots=True)
class Memory:
    """What was needed of one level lately."""

    notes: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=MAX_NOTES))
    since: float | None = None  # of unbroken fresh notes
    moved: float | None = None  # when replicas were last changed


def carried(level: LevelState, signal: LevelSignal) -> float | None:
    """Rows a second that one replica carries with steps within the stretch; None when its costs are not known."""
    costs = signal.costs
    if not costs or min(costs.values()) <= 0:
        return None
    curve = Curve.of(costs)
    limit = STRETCH * curve.seconds(1)
    return max(n / curve.seconds(n) for n in POINTS if n <= level.max_rows and curve.seconds(n) <= limit)


def utilisation(level: LevelState, signal: LevelSignal) -> float:
    """Rows fed a second over what the reporting replicas carry; 0 when unknown."""
    most = carried(level, signal)
    return signal.fed / (most * max(len(signal.replicas), 1)) if most else 0.0


def needed(level: LevelState, signal: LevelSignal, below: tuple[LevelState, LevelSignal] | None, rules: Rules) -> Need:
    """Replicas by load, queue and the law between neighbours, at least 1. ``below``: the next lower level in use."""
    there = max(len(signal.replicas), 1)
    used = utilisation(level, signal)
    needs = [Need(max(1, math.ceil(there * used / rules.utilisation - 1e-6)), f"utilisation {used:.2f}")]
    step, queue = signal.step, signal.queue
    if step is not None and queue is not None and queue.p95 > QUEUE_STEPS * step.p50:
        needs.append(Need(there + 1, f"queue p95 is {queue.p95 / step.p50:.1f} steps"))
    if below is not None:
        needs.append(keeps_up(level, signal, *below, rules))
    return max(needs, key=lambda need: need.count)


def servers(t_up: float, t_down: float, lookahead: float) -> int:
    """Servers above that keep up with one sequence drafting below: ceil(t_up / (lookahead t_down))."""
    return max(1, math.ceil(t_up / (max(lookahead, 1.0) * t_down) - 1e-9))


def keeps_up(level: LevelState, signal: LevelSignal, lower: LevelState, below: LevelSignal, rules: Rules) -> Need:
    """The law between two neighbours, weighted by the traffic between them."""
    if signal.step is None or below.step is None or below.busy < BUSY:
        return Need(1, "the level below is idle")
    offered = min(signal.proposals if signal.proposals >= 1 else float(rules.lookahead), float(rules.lookahead))
    drafting = below.busy * max(len(below.replicas), 1) * max(below.batch, 1.0)  # sequences at once
    wanted = drafting * max(signal.step.p50 / (offered * max(below.step.p50, 1e-6)), 0.0)
    count = math.ceil(wanted / _together(level, signal, offered) - 1e-6)
    one = servers(signal.step.p50, max(below.step.p50, 1e-6), offered)
    return Need(max(1, count), f"{one} for each of {drafting:.1f} sequences that {lower.name} drafts")


def _together(level: LevelState, signal: LevelSignal, offered: float) -> float:
    """Checks of so many proposals that one step takes within the stretch."""
    costs = signal.costs
    rows = float(level.max_rows)
    if costs and min(costs.values()) > 0:
        curve = Curve.of(costs)
        limit = STRETCH * curve.seconds(1)
        rows = max(n for n in POINTS if n <= level.max_rows and curve.seconds(n) <= limit)
    return max(1.0, min(rows / (offered + 1), float(level.slots)))


def follow(
    memory: Memory, level: LevelState, need: Need, rules: Rules, now: float, *, fresh: bool, urgent: bool
) -> Need:
    """Replicas to ask for now; ``memory`` is changed. ``urgent``: the objective is missed."""
    have = level.replicas
    if not rules.automatic:
        return Need(have, "scaled by hand")
    if not fresh:
        memory.notes.clear()
        memory.since = None
        return Need(max(have, level.least), "signals are stale: frozen")  # a raised bound of the spec is no signal
    count = min(max(need.count, level.least), level.most)
    memory.since = now if memory.since is None else memory.since
    memory.notes.append((now, count))
    while memory.notes[0][0] < now - max(rules.up_window, rules.down_window):
        memory.notes.popleft()
    if not level.least <= have <= level.most:
        return Need(min(max(have, level.least), level.most), "the bounds of the family")
    to, why = have, need.reason
    up = count if urgent else _over(memory, now, rules.up_window, most=False)
    down = _over(memory, now, rules.down_window, most=True)
    settled = memory.moved is None or now - memory.moved >= rules.up_window
    if up > have:
        to = min(up, have + max(rules.up_step, have))
        why += "; the objective is missed" if urgent else ""
    elif down < have and settled and not urgent:
        to = max(down, have - rules.down_step)
    if to != have:
        memory.moved = now
    return Need(to, why)


def _over(memory: Memory, now: float, window: float, *, most: bool) -> int:
    """The least (or most) that was needed over a window; what would change nothing while it has not passed yet."""
    if memory.since is None or now - memory.since < window:
        return 10**6 if most else 0
    counts = [count for at, count in memory.notes if at >= now - window]
    return max(counts) if most else min(counts)
