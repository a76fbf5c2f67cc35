"""The adaptive router against static plans in simulated time, while the world changes phase by phase.

The phases are those of benchmarks/adaptive.py, which runs them on real processes. Requests come in waves: all of a wave
at once, the next wave when the last of them has ended. One adaptive router lives through all phases; each static plan
makes the same texts in each phase, in a simulation of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from phases import CURVES, PHASES, Phase, grid
from specrouter_core.adaptive import Adaptive
from specrouter_core.adaptive_policy import AdaptivePolicy
from specrouter_core.chain import Plan
from specrouter_core.event import Commit
from specrouter_core.machine import Machine
from specrouter_core.profile import Curve
from specrouter_core.replica import SimLevel
from specrouter_core.simulator import Policy, Simulator, Told
from specrouter_core.workload import Arrival, Outcome
from specrouter_level.stub import curve

COSTS = {name: {cost.rows: cost.seconds for cost in curve(text)} for name, text in CURVES.items()}
TOKENS = 48  # of a text
PROMPT = 4  # tokens
TEXTS = 16  # that a phase goes through, one after the other, when it has one sequence at a time
HOP = 0.0003
OVERHEAD = 0.0006  # seconds between two steps
ROUTER = 0.0001  # seconds of a reply


class Waves(Policy):
    """Keeps the simulator supplied while it passes all calls on to the policy under test."""

    def __init__(self, inner: Policy, phases: Sequence[tuple[Phase, int]], hop: float = HOP) -> None:
        levels = [SimLevel(name, Curve.of(costs), 1.0, overhead=OVERHEAD) for name, costs in COSTS.items()]
        self.simulator = Simulator(levels, self, hop=hop, router_seconds=ROUTER)
        self.outcomes: list[tuple[Phase, Outcome]] = []
        self._inner = inner
        inner.attach(self.simulator)
        self._script = [(phase, wave) for phase, waves in phases for wave in range(waves)]
        self._running = 0
        self._phase = phases[0][0]

    def run(self) -> list[tuple[Phase, Outcome]]:
        first = self._wave()
        self.simulator.run(first)
        return self.outcomes

    def _wave(self) -> list[Arrival]:
        self._phase, wave = self._script.pop(0)
        phase, of = self._phase, self.simulator.levels
        of["draft"].agreement, of["mid"].agreement, of["mid"].slowdown = phase.draft, phase.mid, phase.slowdown
        while of["target"].replicas < phase.replicas:
            of["target"].replicas += 1
            self.simulator.add_replica("target")
            for router in self._inner.routers if isinstance(self._inner, AdaptivePolicy) else ():
                router.members[-1].replicas += 1
                router.changed()
        self._running = phase.together
        texts = range(phase.together) if phase.together > 1 else [wave % TEXTS]
        return [Arrival(self.simulator.now, TOKENS, prompt=PROMPT, text=text) for text in texts]

    def first(self, sequence: int, now: float) -> Plan:
        return self._inner.first(sequence, now)

    def next(self, sequence: int, machine: Machine, commit: Commit, now: float) -> Plan | None:
        return self._inner.next(sequence, machine, commit, now)

    def told(self, told: Told) -> None:
        self._inner.told(told)

    def ended(self, sequence: int, outcome: Outcome) -> None:
        self._inner.ended(sequence, outcome)
        self.outcomes.append((self._phase, outcome))
        self._running -= 1
        if not self._running and self._script:
            for arrival in self._wave():
                self.simulator.add(arrival)


@dataclass
class Seen:
    """What one phase gave; seconds per token."""

    phase: Phase
    adaptive: float = 0.0
    settled: float = 0.0  # the second half
    statics: dict[str, float] = field(default_factory=dict)
    chains: dict[tuple[str, ...], int] = field(default_factory=dict)  # tokens of the second half
    switches: int = 0
    rounds: int = 0

    @property
    def best(self) -> str:
        return min(self.statics, key=lambda name: self.statics[name])

    @property
    def ratio(self) -> float:
        return self.adaptive / self.statics[self.best]


def mean(outcomes: Sequence[Outcome]) -> float:
    return sum(o.end - o.arrival.at for o in outcomes) / sum(o.tokens for o in outcomes)


def waves(phase: Phase) -> int:
    """So many waves that the phase lasts about as long at every load."""
    return 2 * TEXTS if phase.together == 1 else max(6, TEXTS // 2)


def contest(
    make: Callable[[], Adaptive],
    phases: Sequence[Phase] = PHASES,
    plans: Mapping[str, Plan] | None = None,
    hop: float = HOP,
) -> tuple[list[Seen], Adaptive]:
    """All phases with one adaptive router, and each phase with each static plan."""
    policy = AdaptivePolicy(make)
    done = Waves(policy, [(phase, waves(phase)) for phase in phases], hop).run()
    out = []
    for phase in phases:
        outcomes = [outcome for of, outcome in done if of is phase]
        half = outcomes[len(outcomes) // 2 :]
        seen = Seen(phase, mean(outcomes), mean(half))
        for outcome in half:
            for chain, tokens in outcome.chains.items():
                seen.chains[chain] = seen.chains.get(chain, 0) + tokens
        seen.switches, seen.rounds = sum(o.switches for o in outcomes), sum(o.rounds for o in outcomes)
        for name, plan in (plans or grid()).items():
            count = TEXTS if phase.together == 1 else 2
            seen.statics[name] = mean([o for _, o in Waves(Policy(plan), [(phase, count)], hop).run()])
        out.append(seen)
    return out, policy.routers[0]
