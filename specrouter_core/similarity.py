"""How alike two levels are, from their top probabilities: for pairs that never met in a chain.

    SimScore   S = 1 - E[TV],   1 - TV(p, q) = sum over v of min(p(v), q(v))        (Wu et al., arXiv 2505.07680)

A probe shows only the likeliest tokens of each, so the sum has bounds: a token that one shows and the other does
not has, there, at most the other's smallest shown probability, and all unseen tokens together at most
the smaller of the two tails. S takes the middle, and the half width is kept as its uncertainty.

With coupled noise the agreement a lies in [S / (2 - S), S] (Daliri, Musco, Suresh, arXiv 2408.07978). Where in it
is learnt online from pairs of which both are known:

    a(S) = S / (2 - S) + theta * (S - S / (2 - S)),     theta in [0, 1], at first 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

WEIGHT = 0.1  # of a new probe in the mean
LEARN = 0.05  # step of theta

Probe = Sequence[tuple[int, float]]  # (id, probability), likeliest first


def overlap(p: Probe, q: Probe) -> tuple[float, float]:
    """Lower and upper bound of 1 - TV from two probes at the same position; both must not be empty."""
    if not p or not q:
        raise ValueError("probe: must not be empty")
    of_p, of_q = dict(p), dict(q)
    tail_p, tail_q = max(0.0, 1 - sum(of_p.values())), max(0.0, 1 - sum(of_q.values()))
    least_p, least_q = min(of_p.values()), min(of_q.values())
    both = sum(min(x, of_q[v]) for v, x in of_p.items() if v in of_q)
    only_p = min(sum(min(x, least_q) for v, x in of_p.items() if v not in of_q), tail_q)
    only_q = min(sum(min(x, least_p) for v, x in of_q.items() if v not in of_p), tail_p)
    rest = min(tail_p, tail_q)
    return both, min(1.0, both + only_p + only_q + rest)


@dataclass(slots=True)
class _Score:
    value: float
    doubt: float  # half the width of the bounds
    seen: int = 1


def bounds(score: float) -> tuple[float, float]:
    """The agreement that a SimScore allows, lowest and highest."""
    return score / (2 - score), score


@dataclass(slots=True)
class Similarity:
    """SimScores of pairs (in either order) and what they say of agreement."""

    theta: float = 0.5
    _scores: dict[frozenset[str], _Score] = field(default_factory=dict)

    def observe(self, a: str, b: str, p: Probe, q: Probe) -> None:
        """Probes of levels ``a`` and ``b`` at the same position of the same text."""
        low, high = overlap(p, q)
        middle, doubt = (low + high) / 2, (high - low) / 2
        score = self._scores.get(frozenset((a, b)))
        if score is None:
            self._scores[frozenset((a, b))] = _Score(middle, doubt)
            return
        score.seen += 1
        weight = max(WEIGHT, 1 / score.seen)
        score.value += weight * (middle - score.value)
        score.doubt += weight * (doubt - score.doubt)

    def score(self, a: str, b: str) -> float | None:
        """S of a pair, 0 to 1; None when it was never probed."""
        found = self._scores.get(frozenset((a, b)))
        return found.value if found else None

    def agreement(self, a: str, b: str) -> float | None:
        """Predicted agreement of a pair; None when it was never probed."""
        score = self.score(a, b)
        if score is None:
            return None
        low, high = bounds(score)
        return low + self.theta * (high - low)

    def calibrate(self, a: str, b: str, measured: float) -> None:
        """A pair's agreement is known as well: move theta towards it."""
        score = self.score(a, b)
        if score is None:
            return
        low, high = bounds(score)
        if high - low < 0.02:
            return
        at = min(1.0, max(0.0, (measured - low) / (high - low)))
        self.theta += LEARN * (at - self.theta)
