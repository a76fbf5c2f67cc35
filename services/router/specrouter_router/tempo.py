"""How fast one replica is, by what its replies say, so that it can be compared with the others of its level."""

from __future__ import annotations

from specrouter.v1 import level_pb2 as pb
from specrouter_core.profile import Curve

SAMPLE_S = 0.02  # one reply in this time is enough: more would tell nothing new
ROWS = 8  # tokens of the step by which replicas are compared
FLOOR_S = 0.001  # added to each, so that differences below a hop's own time mean nothing
LARGE = 512  # tokens of a step that reads a text
WEIGHT = 0.1  # of one reply, on the queue's mean
HALF_LIFE_S = 20.0  # without replies: a replica that was slow then may be no more


class Tempo:
    """See the module. Times are seconds, ``now`` of the loop's clock."""

    def __init__(self) -> None:
        self.curve = Curve()
        self.queue = 0.0
        self.at = 0.0  # of the last reply that was looked at

    def begin(self, info: pb.DescribeResponse) -> None:
        """The replica is (again) there: what it measured at its start is the best guess."""
        costs = {cost.rows: cost.microseconds / 1e6 for cost in info.costs if cost.microseconds}
        self.curve = Curve.of(costs) if costs else Curve()
        self.queue = 0.0
        self.at = 0.0

    def answered(self, timing: pb.Timing, now: float) -> None:
        """A call was answered. To be told once in ``SAMPLE_S``."""
        if timing.steps:
            self.at = now
            rows = timing.all_rows / timing.steps or timing.rows
            self.curve.observe(rows, timing.compute_us / 1e6 / timing.steps)
            self.queue += WEIGHT * (timing.queue_us / 1e6 - self.queue)

    @property
    def step(self) -> float:
        """A step's time, as last known; 0 = nothing is known."""
        return self.step_of(ROWS)

    @property
    def read(self) -> float:
        """Time per token of a text that it reads in large steps; 0 = nothing is known."""
        return self.step_of(LARGE) / LARGE

    def step_of(self, rows: int) -> float:
        """Time of a step of so many tokens; 0 = nothing is known."""
        return self.curve.seconds(rows) if self.curve.logs else 0.0

    def seconds(self, best: float, now: float) -> float:
        """Queue and step of a call that comes now; tends to ``best``, the level's fastest, while nothing is heard."""
        trust = 0.5 ** (max(0.0, now - self.at) / HALF_LIFE_S) if self.at else 1.0
        step = self.step
        return FLOOR_S + (best + (step - best) * trust if step else best) + self.queue * trust
