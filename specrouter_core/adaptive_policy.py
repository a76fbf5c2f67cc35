"""Adaptive routing in the simulator: every router with an ``Adaptive`` of its own, fed as the real router feeds it.

Levels that a sequence does not use are judged on what it committed, as the router's judge does, for a share of their
time. Their answers cost the simulated levels nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specrouter_core.adaptive import Adaptive
from specrouter_core.chain import Plan
from specrouter_core.event import Commit
from specrouter_core.machine import Machine
from specrouter_core.profile import Answered
from specrouter_core.simulator import Policy, Simulator, Told
from specrouter_core.workload import Arrival, Outcome

SHARE = 0.04  # of a level's time in which it is judged
TOKENS = 16  # judged at once


class AdaptivePolicy(Policy):
    """Sequences belong to ``routers`` in turn, as in the simulator. ``make`` builds one router's ``Adaptive``.

    With ``pinned`` all sequences use that plan, and what it shows is learnt.
    """

    def __init__(self, make: Callable[[], Adaptive], routers: int = 1, pinned: Plan | None = None) -> None:
        self.routers: Sequence[Adaptive] = [make() for _ in range(routers)]
        self._due: list[dict[str, float]] = [{m.name: 0.0 for m in router.members[:-1]} for router in self.routers]
        self._pinned = pinned
        self._simulator: Simulator | None = None

    def attach(self, simulator: Simulator) -> None:
        """See Policy."""
        self._simulator = simulator

    def first(self, sequence: int, now: float) -> Plan:
        """See Policy."""
        arrival = self._simulator.outcomes[sequence].arrival if self._simulator is not None else Arrival(now, 1)
        prompt, limit = arrival.prompt, arrival.tokens
        return self._of(sequence).begin(sequence, now, plan=self._pinned, prompt=prompt, limit=limit)

    def next(self, sequence: int, machine: Machine, commit: Commit, now: float) -> Plan | None:
        """See Policy."""
        self._judge(sequence, machine, now)
        return self._of(sequence).committed(sequence, commit, now)

    def told(self, told: Told) -> None:
        """See Policy."""
        self._of(told.sequence).answered(told.level, told.call, told.now)

    def ended(self, sequence: int, outcome: Outcome) -> None:
        """See Policy."""
        self._of(sequence).end(sequence)

    def _of(self, sequence: int) -> Adaptive:
        return self.routers[sequence % len(self.routers)]

    def _judge(self, sequence: int, machine: Machine, now: float) -> None:
        """What the levels out of the chain would have drawn, and what their steps take."""
        due = self._due[sequence % len(self.routers)]
        for name, at in due.items():
            if self._simulator is None or now < at or name in machine.plan.levels:
                continue
            adaptive, level = self._of(sequence), self._simulator.levels[name]
            start = max(len(machine.committed) - TOKENS, machine.prompt_length)
            run = 0
            for position in range(start, len(machine.committed)):
                token = machine.committed[position]
                drawn = self._simulator.drawn(name, sequence, position, machine.committed[position - 1])
                adaptive.drew(run, {name: drawn, adaptive.members[-1].name: token})
                run = run + 1 if drawn == token else 0
            rows = len(machine.committed) - start
            seconds = level.curve.seconds(rows) * level.slowdown
            trip = seconds + 2 * self._simulator.hop
            call = Answered(steps=1, rows=rows, fed=rows, batch=1, compute=seconds, queue=0.0, total=trip)
            adaptive.answered(name, call, now)
            due[name] = now + seconds / SHARE
