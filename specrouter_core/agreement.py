"""How often two levels draw the same token: per ordered pair, and per position in the window.

Measured for nothing: on committed text, every level that drew at a position shows its token, and any two
that did either agree or not. Counts decay, so that a level that changes is noticed; a rate starts
from a stated prior and a position's rate from its pair's.

    pair      p = (k + PRIOR * p0) / (n + PRIOR)              over all positions
    position  p(d) = (k(d) + POOL * p) / (n(d) + POOL)        d = tokens since the round began

A level that has no guess at a place does not agree there. How often it has none where a round begins is kept besides:
such a call costs less.

A sequence, or a class of traffic, differs from the common rate by a shift of the log-odds, estimated with
a normal prior around 0 (one step of a Laplace filter per observation), so that little evidence
moves it little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

PRIOR_RATE = 0.6
PRIOR = 8.0  # observations that the prior is worth
POOL = 12.0  # observations that the pair's rate is worth to a position
MEMORY = 150.0  # observations of a pair after which an old one weighs 1/e
LONG = 400.0  # observations of a position, for how it differs from the others
POSITIONS = 16  # later positions count as the last
SPREAD = 0.7  # standard deviation of log-odds between sequences, before anything is seen
KEEP = 0.98  # evidence about a sequence that remains after each further observation
FLOOR, CEILING = 0.005, 0.995


def _logit(p: float) -> float:
    p = min(max(p, FLOOR), CEILING)
    return math.log(p / (1 - p))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@dataclass(slots=True)
class _Count:
    agreed: float = 0.0
    seen: float = 0.0
    expected: float = 0.0  # of those that agreed, by the pair's rate at the time

    def add(self, agreed: bool, expected: float, memory: float) -> None:
        keep = 1 - 1 / memory if self.seen < memory else (memory - 1) / self.seen
        self.agreed = self.agreed * keep + agreed
        self.seen = self.seen * keep + 1
        self.expected = self.expected * keep + expected


@dataclass(slots=True)
class Deviation:
    """By how much one sequence, or class, agrees more or less than is common: a shift of the log-odds."""

    shift: float = 0.0
    precision: float = 1 / SPREAD**2

    def observe(self, common: float, agreed: bool) -> None:
        """One observation where the common rate was ``common``."""
        p = _logistic(_logit(common) + self.shift)
        self.precision = 1 / SPREAD**2 + (self.precision - 1 / SPREAD**2) * KEEP + p * (1 - p)
        self.shift += (agreed - p) / self.precision

    def apply(self, common: float) -> float:
        """The rate of this one."""
        return _logistic(_logit(common) + self.shift)


@dataclass(slots=True)
class Agreement:
    """Rates of all pairs. ``prior`` may be given per pair, for example from similarity."""

    together: float = 1.0  # sequences that are observed at the same time: the more, the more observations are kept
    _pairs: dict[tuple[str, str], _Count] = field(default_factory=dict)
    _positions: dict[tuple[str, str], list[_Count]] = field(default_factory=dict)
    _priors: dict[tuple[str, str], float] = field(default_factory=dict)
    _guesses: dict[str, _Count] = field(default_factory=dict)  # "agreed": there was one

    def observe(self, lower: str, upper: str, position: int, agreed: bool) -> None:
        """At ``position`` tokens after the round began both levels drew, on the same text."""
        pair = lower, upper
        if pair not in self._pairs:
            self._pairs[pair] = _Count()
            self._positions[pair] = [_Count() for _ in range(POSITIONS)]
        rate = self.rate(lower, upper)
        more = math.sqrt(self.together)
        self._pairs[pair].add(agreed, rate, MEMORY * more)
        self._positions[pair][min(position, POSITIONS - 1)].add(agreed, rate, LONG * more)

    def began(self, level: str, guess: bool) -> None:
        """Where a round begins the level had a guess, or none."""
        count = self._guesses.setdefault(level, _Count())
        count.add(guess, 1.0, MEMORY * math.sqrt(self.together))

    def silent(self, level: str, shift: Deviation | None = None) -> float:
        """The share of rounds at whose beginning the level has no guess. Who agrees more, has more guesses."""
        count = self._guesses.get(level)
        if count is None or count.agreed == count.seen:
            return 0.0
        guesses = (count.agreed + PRIOR) / (count.seen + PRIOR)
        return 1 - (shift.apply(guesses) if shift else guesses)

    def expect(self, lower: str, upper: str, rate: float) -> None:
        """What to believe of a pair before it is seen."""
        self._priors[lower, upper] = rate

    def seen(self, lower: str, upper: str) -> float:
        """Decayed number of observations of a pair."""
        count = self._pairs.get((lower, upper))
        return count.seen if count else 0.0

    def rate(self, lower: str, upper: str) -> float:
        """The pair's rate over all positions, 0 to 1."""
        prior = self._priors.get((lower, upper), PRIOR_RATE)
        count = self._pairs.get((lower, upper))
        if count is None:
            return prior
        return (count.agreed + PRIOR * prior) / (count.seen + PRIOR)

    def rates(self, lower: str, upper: str, shift: Deviation | None = None) -> list[float]:
        """Rates at positions 0 .. POSITIONS-1, each given that all before agreed."""
        common = self.rate(lower, upper)
        counts = self._positions.get((lower, upper))
        if counts is None:
            rates = [common] * POSITIONS
        else:
            expected = sum(c.expected for c in counts)
            off = sum(c.agreed for c in counts) / expected if expected else 1.0  # the pair's rate has lagged behind
            rates = [_at(common, c, off) for c in counts]
        return [shift.apply(p) for p in rates] if shift else rates


def _at(common: float, count: _Count, off: float) -> float:
    """The rate at one position: the pair's, moved by how much this position has differed from the others."""
    pool = POOL * common
    odds = _logit((count.agreed + pool) / (count.seen + POOL))
    return _logistic(_logit(common) + odds - _logit((count.expected * off + pool) / (count.seen + POOL)))
