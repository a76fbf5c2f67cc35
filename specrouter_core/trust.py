"""How often a level's draws are right, by how sure it was of them: when to stop drafting.

A level says of each draw how probable its most likely token was. On committed text it shows whether the draw was
right. Where levels take turns, one more draft costs its step t and is worth c seconds a token if all before it are
right, so after a draw that is right with probability q the lowest level goes on while

    q a c >= t            a: how often its draws are right in general

and the threshold is the confidence at which q falls below that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BINS = 10  # of confidence, each as wide
LEAST = 200.0  # draws of a level before anything is concluded
POOL = 10.0  # draws that the level's rate is worth to each bin
MEMORY = 2000.0  # draws after which an old one weighs 1/e


@dataclass(slots=True)
class _Level:
    agreed: list[float] = field(default_factory=lambda: [0.0] * BINS)
    seen: list[float] = field(default_factory=lambda: [0.0] * BINS)


class Trust:
    """Of all levels."""

    def __init__(self) -> None:
        self._levels: dict[str, _Level] = {}

    def observe(self, level: str, confidence: float, agreed: bool) -> None:
        """A draw on committed text, and whether it was what was committed."""
        found = self._levels.setdefault(level, _Level())
        place = min(int(confidence * BINS), BINS - 1)
        keep = 1 - BINS / MEMORY
        found.agreed[place] = found.agreed[place] * keep + agreed
        found.seen[place] = found.seen[place] * keep + 1

    def rates(self, level: str) -> list[tuple[float, float]]:
        """Per tenth of confidence: how often draws were right, shrunk to the level's rate, and how many were seen."""
        found = self._levels.get(level)
        if found is None or not sum(found.seen):
            return []
        common = sum(found.agreed) / sum(found.seen)
        return [
            ((agreed + POOL * common) / (seen + POOL), seen)
            for agreed, seen in zip(found.agreed, found.seen, strict=True)
        ]

    def threshold(self, level: str, least: float) -> float:
        """The confidence below which draws are right less often than ``least``; 0 while little is known."""
        rates = self.rates(level)
        if sum(seen for _, seen in rates) < LEAST:
            return 0.0
        low = next((place for place, (rate, _) in enumerate(rates) if rate >= least), BINS - 1)
        return low / BINS
