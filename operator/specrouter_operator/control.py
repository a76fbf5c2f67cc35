"""What a family should be like now: weights and replicas, decided from signals.

The reconciler asks at every resync; without Kubernetes, anything that can start and stop levels may ask. No I/O and no
clock. What controllers remember (what was needed lately, which level is out) lives in ``Control``; a new leader begins
with the weights of the policy's status and with no history, so it removes nothing before a whole window has passed.

Levels and routers find their way here by their OTLP resource: ``specrouter.family`` (the family's name),
``specrouter.level``, ``service.instance.id`` (the pod) and, in a cluster, ``k8s.namespace.name``; with the last one,
the family's key is ``namespace/name``.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from specrouter_core.capacity import Load, Offer
from specrouter_core.profile import Curve
from specrouter_operator import budget, scaling, weights
from specrouter_operator.budget import Bounds, Spent
from specrouter_operator.rules import LevelState, Mesh, Rules
from specrouter_operator.scaling import Need
from specrouter_operator.signals import LevelSignal, RouterSignal, Signals
from specrouter_operator.smooth import smoothed

WINDOWS = (4.0, 8.0, 20.0)  # seconds of a level's signals; longer ones for levels that are seldom measured
ENOUGH = 3.0  # steps from which a window will do
ROUTER_WINDOW = 20.0
TAIL = 1.2  # p95 of the time per token over its mean, about
SMOOTH_S = 15.0  # over which load and levels are smoothed for the plan
QUICK, JUMP = 0.5, 1.4  # see smooth.py
MOVED = 0.2  # change of the load or a level, as a share, for which the plan is made anew
PLAN_S = 5.0  # between two plans at least
BREACH_S = 4.0  # so long an objective must be missed to be urgent
SETTLE_S = 25.0  # after replicas were added, until it shows whether they were enough
FORGET_S = 600.0  # how slow a level was is forgotten so long after it was last seen
LEAST_S = 1e-5  # of a step
UNKNOWN = 0.6  # agreement of a level that was not measured yet
MAX_FAMILIES = 1024


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write. Levels by name."""

    weights: dict[str, int]  # 0..100
    replicas: dict[str, int]
    weight_reasons: dict[str, str]
    replica_reasons: dict[str, str]
    fresh: bool  # False: signals of a running level or of the routers are stale, and replicas are frozen
    stale: tuple[str, ...] = ()  # whose: level names, "routers"
    removals: dict[str, tuple[str, ...]] = field(default_factory=dict)  # level -> instances to drain, first ones first
    per_token: float | None = None  # seconds, as the plan predicts for these replicas

    @property
    def reasons(self) -> dict[str, str]:
        """Level -> one line on both."""
        return {
            name: f"weight {self.weights[name]}: {self.weight_reasons[name]}; "
            f"replicas {self.replicas[name]}: {self.replica_reasons[name]}"
            for name in self.weights
        }


@dataclass(slots=True)
class Known:
    """What was last seen of a level, for when it is switched off."""

    costs: Mapping[int, float] = field(default_factory=dict)
    slowness: float = 1.0  # step time over calibration
    agreement: float | None = None
    at: float = 0.0


@dataclass(slots=True)
class Memory:
    """Of one family."""

    weights: weights.Memory = field(default_factory=weights.Memory)
    scaling: dict[str, scaling.Memory] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    breach: float | None = None  # since when an objective is missed
    grown: float | None = None  # when replicas were last added, or were not ready yet
    plan: Spent | None = None
    measured: dict[str, float] = field(default_factory=dict)  # what matters for the plan, smoothed
    seen: float | None = None  # when that was last measured
    inputs: tuple[object, dict[str, float]] | None = None  # what the plan was made for
    planned: float = -1e9


class Control:
    """Decides for any number of families; different ones may be decided on at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families: dict[str, Memory] = {}

    def decide(self, mesh: Mesh, rules: Rules, signals: Signals, now: float) -> Decision:
        """Weights and replicas of one family at ``now`` (seconds; the signals' clock)."""
        memory = self._memory(mesh.name)
        seen = {level.name: _level(signals, mesh.name, level.name, now) for level in mesh.levels}
        routers = signals.routers(mesh.name, now, ROUTER_WINDOW)
        for level in mesh.levels:
            _note(memory, level.name, seen[level.name], routers, now)
        stale = _stale(mesh, rules, seen, routers)
        loads = {level.name: scaling.utilisation(level, seen[level.name]) for level in mesh.levels}
        weighed = weights.step(memory.weights, mesh, rules, seen, loads, now)
        out = {name for name, weight in weighed.weights.items() if weight == 0}
        used = {name: LevelSignal(age=signal.age) if name in out else signal for name, signal in seen.items()}
        needs = self._replicas(memory, mesh, rules, used, routers, loads, now, fresh=not stale)
        replicas = {name: need.count for name, need in needs.items()}
        return Decision(
            weights=weighed.weights,
            replicas=replicas,
            weight_reasons=weighed.reasons,
            replica_reasons={name: need.reason for name, need in needs.items()},
            fresh=not stale,
            stale=stale,
            removals=_removals(mesh, seen, replicas),
            per_token=memory.plan.per_token if memory.plan is not None else None,
        )

    def forget(self, name: str) -> None:
        """The family is gone."""
        with self._lock:
            self._families.pop(name, None)

    def _memory(self, name: str) -> Memory:
        with self._lock:
            memory = self._families.pop(name, None) or Memory()
            self._families[name] = memory  # the newest last
            if len(self._families) > MAX_FAMILIES:
                self._families.pop(next(iter(self._families)))
        return memory

    def _replicas(
        self,
        memory: Memory,
        mesh: Mesh,
        rules: Rules,
        seen: Mapping[str, LevelSignal],
        routers: RouterSignal,
        loads: Mapping[str, float],
        now: float,
        *,
        fresh: bool,
    ) -> dict[str, Need]:
        """``seen``: levels that chains use; of one that is out, there is nothing to be read but that it lives."""
        if fresh and rules.automatic:
            _plan(memory, mesh, rules, routers, now)
        if any(level.ready < level.replicas for level in mesh.levels):
            memory.grown = now
        urgent = _urgent(memory, rules, routers, now) and fresh
        tightest = max(mesh.levels, key=lambda level: loads[level.name]).name
        needs: dict[str, Need] = {}
        below: tuple[LevelState, LevelSignal] | None = None
        for level in mesh.levels:
            signal = seen[level.name]
            need = _need(memory, level, signal, below, rules)
            if urgent and level.name == tightest:
                need = max(need, Need(level.replicas + 1, "the tightest level"), key=lambda one: one.count)
            known = memory.scaling.setdefault(level.name, scaling.Memory())
            needs[level.name] = scaling.follow(known, level, need, rules, now, fresh=fresh, urgent=urgent)
            if signal.steps > 0:
                below = level, signal
        needs = _within(memory, mesh, rules, needs) if rules.automatic else needs
        if any(needs[level.name].count > level.replicas for level in mesh.levels):
            memory.grown = now
        return needs


def _level(signals: Signals, family: str, level: str, now: float) -> LevelSignal:
    """The level over the shortest window that shows enough of it."""
    for window in WINDOWS:
        signal = signals.level(family, level, now, window)
        if signal.steps >= ENOUGH:
            break
    return signal


def _note(memory: Memory, name: str, signal: LevelSignal, routers: RouterSignal, now: float) -> None:
    """Remember what a level costs and how often it agrees."""
    known = memory.known.setdefault(name, Known(at=now))
    if signal.costs and min(signal.costs.values()) > 0:
        known.costs = signal.costs
    elif signal.step is not None:  # not calibrated: as flat as it is now
        known.costs = {1: max(signal.step.p50, LEAST_S)}
    if signal.step is not None and signal.rows is not None and known.costs:
        expected = Curve.of(known.costs).seconds(max(signal.rows.p50, 1.0))
        known.slowness, known.at = min(max(signal.step.p50 / expected, 0.5), 50.0), now
    elif now - known.at > FORGET_S:
        known.slowness = 1.0
    known.agreement = routers.agreement.get(name, known.agreement)


def _stale(mesh: Mesh, rules: Rules, seen: Mapping[str, LevelSignal], routers: RouterSignal) -> tuple[str, ...]:
    """Who should report and doesn't: levels with ready replicas, and the routers."""
    names = [level.name for level in mesh.levels if level.ready > 0 and seen[level.name].age > rules.stale]
    return (*names, "routers") if routers.age > rules.stale else tuple(names)


def _urgent(memory: Memory, rules: Rules, routers: RouterSignal, now: float) -> bool:
    """Whether an objective has been missed for a while, and nothing that was added may still help."""
    missed = False
    for objectives, measured in ((rules.tpot, routers.tpot), (rules.ttft, routers.ttft)):
        for name, limit in objectives.items():
            pairs = measured.values() if not name else [measured[name]] if name in measured else []
            missed |= any(pair.p95 > limit for pair in pairs)
    if not missed:
        memory.breach = None
        return False
    memory.breach = now if memory.breach is None else memory.breach
    settled = memory.grown is None or now - memory.grown >= SETTLE_S
    return settled and now - memory.breach >= BREACH_S


def _need(
    memory: Memory,
    level: LevelState,
    signal: LevelSignal,
    below: tuple[LevelState, LevelSignal] | None,
    rules: Rules,
) -> Need:
    """What the measured load and the plan want; a level that the plan leaves out is not needed."""
    need = scaling.needed(level, signal, below, rules)
    plan = memory.plan
    if plan is None or level.name not in plan.replicas:
        return need
    planned = plan.replicas[level.name]
    if level.name not in plan.chain:
        return Need(planned, f"it does not pay: {plan.reason}")
    return need if need.count > planned else Need(planned, f"the plan: {plan.reason}")


def _plan(memory: Memory, mesh: Mesh, rules: Rules, routers: RouterSignal, now: float) -> None:
    """Search for the best replicas anew, when what matters for them has changed enough."""
    if rules.objective is None and rules.gpus is None:
        memory.plan = None  # nothing to plan for: what is measured decides
        return
    levels = [level for level in mesh.levels if _offer(memory, mesh, level) is not None]
    if not levels or levels[-1] is not mesh.target or not routers.length:
        return
    _measure(memory, levels, routers, routers.length, now)
    shape = tuple((level.name, level.least, level.most, level.gpus) for level in levels), rules.objective, rules.gpus
    same = memory.inputs is not None and memory.inputs[0] == shape and not _moved(memory.inputs[1], memory.measured)
    if same or now - memory.planned < PLAN_S:
        return
    memory.planned = now
    memory.inputs = shape, dict(memory.measured)
    memory.plan = _search(memory, mesh, levels, rules)


def _measure(memory: Memory, levels: list[LevelState], routers: RouterSignal, length: float, now: float) -> None:
    """Load and levels as they are now, without most of the noise."""
    new = {"tokens": routers.arrivals * length, "length": length, "prompt": routers.prompt or 1.0}
    for level in levels:
        known = memory.known[level.name]
        new[f"{level.name} slowness"] = known.slowness
        if level is not levels[-1]:
            new[f"{level.name} agreement"] = 1 - (known.agreement or 0.0)  # 0.90 and 0.95 are far apart
    share = 1 - math.exp(-(now - memory.seen) / SMOOTH_S) if memory.seen is not None else 1.0
    memory.seen = now
    memory.measured = {
        key: smoothed(memory.measured.get(key), value, share=share, quick=max(share, QUICK), jump=JUMP)
        for key, value in new.items()
    }


def _search(memory: Memory, mesh: Mesh, levels: list[LevelState], rules: Rules) -> Spent | None:
    """The plan for what is measured; None when the bounds alone need more than the budget (they win, see _within)."""
    measured = memory.measured
    offers = [offer for level in levels if (offer := _offer(memory, mesh, level)) is not None]
    load = Load(
        rate=max(measured["tokens"] / max(measured["length"], 1.0), 1e-3),
        tokens=max(measured["length"], 1.0),
        prompt=max(measured["prompt"], 1.0),
        per_token=rules.objective / TAIL if rules.objective is not None else None,
        bound=rules.utilisation,
    )
    bounds = {level.name: Bounds(level.least, level.most) for level in levels}
    gpus = rules.gpus if mesh.target.gpus else None
    old = memory.plan
    if old is None:
        here = {level.name: level.replicas for level in levels}
        old = Spent(here, tuple(name for name, count in here.items() if count), 0.0, 0, True, "")
    try:
        return budget.revised(offers, bounds, load, old, gpus=gpus)
    except ValueError:
        return None


def _offer(memory: Memory, mesh: Mesh, level: LevelState) -> Offer | None:
    """The level as the search sees it: its calibration, as slow as it was measured. Without GPUs, a replica costs 1."""
    known = memory.known[level.name]
    if not known.costs or level.most == 0:
        return None
    curve = Curve.of({rows: seconds * known.slowness for rows, seconds in known.costs.items()})
    return Offer(
        name=level.name,
        curve=curve,
        agreement=known.agreement if known.agreement is not None else 1.0 if level is mesh.target else UNKNOWN,
        price=level.price,
        gpus=level.gpus if mesh.target.gpus else 1,
        slots=level.slots,
        max_rows=level.max_rows,
    )


def _moved(old: Mapping[str, float], new: Mapping[str, float]) -> bool:
    """Whether anything differs by more than ``MOVED``."""
    if old.keys() != new.keys():
        return True
    return any(abs(new[key] - old[key]) > MOVED * max(abs(old[key]), 0.02) for key in old)


def _within(memory: Memory, mesh: Mesh, rules: Rules, needs: dict[str, Need]) -> dict[str, Need]:
    """The needs, cut to the policy's GPUs; no level falls below its least by that."""
    if rules.gpus is None:
        return needs
    cost = {level.name: level.gpus for level in mesh.levels}
    planned = {level.name: level.least for level in mesh.levels}
    if memory.plan is not None:
        planned.update(memory.plan.replicas)
    fitted = budget.fit({name: need.count for name, need in needs.items()}, planned, cost, rules.gpus)
    out = {}
    for level in mesh.levels:
        need, count = needs[level.name], max(fitted[level.name], level.least)
        cut = count < need.count
        out[level.name] = (
            Need(count, f"{need.reason}; {need.count} wanted, the budget is {rules.gpus} GPUs") if cut else need
        )
    return out


def _removals(mesh: Mesh, seen: Mapping[str, LevelSignal], replicas: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Which instances should go where there are to be fewer: those that hold the fewest sequences."""
    out = {}
    for level in mesh.levels:
        there = seen[level.name].replicas
        surplus = level.replicas - replicas[level.name]
        if surplus > 0:
            out[level.name] = tuple(sorted(there, key=lambda name: (there[name], name))[:surplus])
    return out
