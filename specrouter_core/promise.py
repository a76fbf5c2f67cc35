"""What a class of traffic was promised, and in what order sequences give way.

Under load, who speculates takes time from all who share the levels. Sequences are ranked by their priority; within it,
one that is behind its objective (no first token in time, or tokens too slow since) comes before the others. Ranks are
put into a few *tiers*, the highest first. A tier is planned as if

    sharing   its own sequences, and those of higher tiers twice: their time is worth more
    beside    those of lower tiers, which feed a token each: they give way

so that, as queues grow, the lowest tier loses its speculation first, and gets it back last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

MAX_TIERS = 4
HIGHER = 2.0  # what a sequence of a higher tier counts for


@dataclass(frozen=True, slots=True)
class Promise:
    """Of one class. ``ttft``: seconds until the first token, ``tpot``: per token after it; None = any."""

    priority: int = 50  # 0 to 100
    ttft: float | None = None
    tpot: float | None = None

    def behind(self, waited: float, since_first: float, tokens: int) -> bool:
        """Whether it is not kept: ``waited`` for the first token, or since it, for so many tokens."""
        if tokens == 0:
            return self.ttft is not None and waited > self.ttft
        return self.tpot is not None and tokens > 1 and since_first / (tokens - 1) > self.tpot

    @property
    def patience(self) -> float:
        """How much longer than usual it waits until it asks again where there is no room; 1/4 to 4."""
        return float(2.0 ** ((50 - self.priority) / 25))

    def rank(self, behind: bool) -> int:
        """Higher goes first."""
        return 2 * self.priority + behind


@dataclass(frozen=True, slots=True)
class Tier:
    """Ranks that are planned alike."""

    ranks: tuple[int, ...]
    sequences: int
    sharing: float
    beside: float


def tiers(ranks: Mapping[int, int]) -> list[Tier]:
    """The tiers of so many sequences by rank, the highest first; the lowest ranks share the last one."""
    present = sorted((rank for rank, count in ranks.items() if count > 0), reverse=True)
    groups: list[tuple[int, ...]] = [(rank,) for rank in present[: MAX_TIERS - 1]]
    if present[MAX_TIERS - 1 :]:
        groups.append(tuple(present[MAX_TIERS - 1 :]))
    counts = [sum(ranks[rank] for rank in group) for group in groups]
    return [
        Tier(group, own, own + HIGHER * sum(counts[:i]), float(sum(counts[i + 1 :])))
        for i, (group, own) in enumerate(zip(groups, counts, strict=True))
    ]


class Ranks:
    """How many running sequences have each rank."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, rank: int) -> None:
        """One more."""
        self._counts[rank] += 1

    def remove(self, rank: int) -> None:
        """One fewer."""
        self._counts[rank] -= 1
        if self._counts[rank] <= 0:
            del self._counts[rank]

    def tiers(self) -> list[Tier]:
        """See ``tiers``."""
        return tiers(self._counts)
