"""Adaptive routing in the simulator: every router with an ``Adaptive`` of its own, fed as the real router feeds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specrouter_core.adaptive import Adaptive
from specrouter_core.chain import Plan
from specrouter_core.event import Commit
from specrouter_core.machine import Machine
from specrouter_core.simulator import Policy, Told
from specrouter_core.workload import Outcome


class AdaptivePolicy(Policy):
    """Sequences belong to ``routers`` in turn, as in the simulator. ``make`` builds one router's ``Adaptive``."""

    def __init__(self, make: Callable[[], Adaptive], routers: int = 1) -> None:
        self.routers: Sequence[Adaptive] = [make() for _ in range(routers)]

    def first(self, sequence: int, now: float) -> Plan:
        return self._of(sequence).begin(sequence, now)

    def next(self, sequence: int, machine: Machine, commit: Commit, now: float) -> Plan | None:
        return self._of(sequence).committed(sequence, commit, now)

    def told(self, told: Told) -> None:
        self._of(told.sequence).answered(
            told.level,
            rows=told.rows,
            batch=told.batch,
            steps=told.steps,
            compute=told.compute,
            queue=told.queue,
            total=told.total,
            now=told.now,
        )

    def ended(self, sequence: int, outcome: Outcome) -> None:
        self._of(sequence).end(sequence)

    def _of(self, sequence: int) -> Adaptive:
        return self.routers[sequence % len(self.routers)]
