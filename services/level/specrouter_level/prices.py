"""What it costs to compute positions again, and what it costs to fetch them; both as measured, in seconds."""

from __future__ import annotations

from collections.abc import Sequence

from specrouter_level.engine import StepCost

LONG = 32  # tokens fed in a step from which on it tells what prefill costs
WEIGHT = 0.2  # of a new measurement; the first of all counts alone, the second half, ...
FIRST_BYTE = 1 / 500e6  # seconds a byte before anything was restored: hopeful, so that it is tried
HOPE = 0.02  # part of the way back to that with every restore that was not tried, so that one slow one is not for ever


class Prices:
    """``costs``: the engine's curve from its calibration."""

    def __init__(self, costs: Sequence[StepCost]) -> None:
        self._token = costs[-1].seconds / costs[-1].rows if costs else 0.0
        self._byte = FIRST_BYTE
        self._steps = self._restores = 0  # measured

    def prefill(self, tokens: int) -> float:
        """Of so many positions."""
        return tokens * self._token

    def restore(self, size: int) -> float:
        """Of so many bytes."""
        return size * self._byte

    def stepped(self, rows: int, seconds: float) -> None:
        """A step was run."""
        if rows >= LONG:
            self._steps += 1
            self._token += max(WEIGHT, 1 / self._steps) * (seconds / rows - self._token)

    def restored(self, size: int, seconds: float) -> None:
        """Bytes were fetched, checked and put in their place."""
        if size:
            self._restores += 1
            self._byte += max(WEIGHT, 1 / self._restores) * (seconds / size - self._byte)

    def declined(self) -> None:
        """A restore was too dear."""
        self._byte += HOPE * (min(FIRST_BYTE, self._byte) - self._byte)
