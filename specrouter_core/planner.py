"""Chooses among the candidates of prediction.py, learns how wrong the predictions are, and does not flutter.

No model is exact: ``Planner`` multiplies each prediction by a measured correction of its chain.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from specrouter_core.chain import Plan
from specrouter_core.prediction import ANY, MAX_AHEAD, Level, Rates, Space

HALF_LIFE = 3.0  # seconds of a chain's use after which what was measured of it weighs half
PRIOR = 24.0  # rounds that the usual correction is worth
UNSEEN = 2.0  # chains with a correction of 1 that are added to those measured, for what is usual
FULL = 100.0  # weight of a level that is free to use
STALL = 4.0  # times what was expected: what took longer counts as so long
NEAR = 1.35  # a candidate predicted to be slower than this, times the best, is not tried


@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate with its prediction."""

    plan: Plan
    seconds: float  # per committed token: what is compared; with the correction and the operator's weights
    expected: float  # what a token should take: with the correction, but at the levels' full speed
    model: float  # the same without the correction


@dataclass(slots=True)
class _Correction:
    """Measured over predicted, of one chain in one state of load; older rounds weigh less."""

    measured: float = 0.0  # seconds
    modelled: float = 0.0
    rounds: float = 0.0

    def add(self, measured: float, modelled: float, rounds: int, sharing: float) -> None:
        self.fade(0.5 ** (measured / sharing / HALF_LIFE))
        self.measured += measured
        self.modelled += modelled
        self.rounds += rounds

    def fade(self, keep: float) -> None:
        self.measured, self.modelled, self.rounds = self.measured * keep, self.modelled * keep, self.rounds * keep

    @property
    def own(self) -> float:
        """As measured."""
        return min(max(self.measured / self.modelled, 0.1), 10.0) if self.modelled > 0 else 1.0

    @property
    def weight(self) -> float:
        """How far it is to be believed, 0 to 1."""
        return self.rounds / (self.rounds + PRIOR)


Key = tuple[str, ...]


class Planner:
    """Chooses plans, learns how wrong its predictions are, and does not flutter.

    ``gain`` is the least predicted improvement, as a share, for which a sequence changes its chain. Corrections are
    kept per chain and per power of two of ``sharing``, the sequences that share the target's steps; what was never
    measured is corrected as is usual for its mode.
    """

    def __init__(self, *, gain: float = 0.05) -> None:
        self.gain = gain
        self.sharing = 1.0
        self._corrections: dict[tuple[Key, int], _Correction] = {}

    def table(
        self,
        levels: Sequence[Level],
        rates: Rates,
        *,
        overlapped: Sequence[bool] = (True, False),
        windows: Mapping[str, int] = ANY,
        lookahead: int = MAX_AHEAD,
        waste: float = 1.0,
        chains: Collection[tuple[str, ...]] = (),
    ) -> list[Choice]:
        """All candidates with their predictions, best first.

        ``chains``: those that may be used, all when empty. The target alone is always a candidate, unless others are
        that the chains allow and it is not.
        """
        space = whole = Space(levels, rates, windows=windows, lookahead=lookahead, waste=waste)
        if any(0 < level.weight < FULL for level in levels):
            unweighted = [replace(level, weight=FULL) if level.weight > 0 else level for level in levels]
            whole = Space(unweighted, rates, windows=windows, lookahead=lookahead, waste=waste)
        table: list[Choice] = []
        usual = self._usual()
        for mode in overlapped:
            found = space.candidates(overlapped=mode, sensible=True)
            models = {plan.levels: s for plan, s in (found if whole is space else whole.candidates(overlapped=mode))}
            for plan, seconds in found:
                if len(plan.levels) > 1 or mode is overlapped[0]:
                    ratio, model = self._ratio(plan, usual), models[plan.levels]
                    table.append(Choice(plan, seconds * ratio, model * ratio, model))
        if chains:
            table = [c for c in table if c.plan.levels in chains] or [c for c in table if len(c.plan.levels) == 1]
        return sorted(table, key=lambda choice: choice.seconds)

    def choose(self, table: Sequence[Choice], current: Plan | None = None) -> Plan:
        """The best of a table; the current chain, with its windows of this table, unless another gains enough.

        A chain is not kept when the target alone is predicted to be as good: it is what costs nobody anything.
        """
        best = table[0]
        kept = next((c for c in table if current is not None and same_chain(c.plan, current)), None)
        alone = next((c for c in table if len(c.plan.levels) == 1), None)
        if kept is not None and alone is not None and kept.seconds > alone.seconds:
            kept = alone
        gain = self.gain
        if kept is alone:  # what a chain takes from those who share the levels shows only when all use it
            gain *= 2 - 1 / self.sharing
        if kept is not None and kept.seconds <= best.seconds * (1 + gain):
            return kept.plan
        return best.plan

    def explore(self, table: Sequence[Choice], current: Plan) -> Plan:
        """The candidate that was measured least, of those that may be good; to be asked seldom."""
        near = [c for c in table if c.seconds < NEAR * table[0].seconds and not same_chain(c.plan, current)]
        return min(near, key=lambda choice: self._seen(choice.plan)).plan if near else current

    def observe(self, choice: Choice, seconds: float, tokens: int = 8, rounds: int = 8) -> None:
        """A sequence ran with this plan, at this measured time per token, for so many tokens and rounds."""
        if seconds <= 0 or choice.model <= 0:
            return
        seconds = min(seconds, STALL * choice.expected)
        found = self._corrections.setdefault((_key(choice.plan), self.crowd), _Correction())
        found.add(seconds * tokens, choice.model * tokens, rounds, self.sharing)

    @property
    def crowd(self) -> int:
        """How loaded the levels are."""
        return round(math.log2(self.sharing))

    def age(self, keep: float) -> None:
        """Trust old corrections less: they count as this share of the rounds they come from."""
        for found in self._corrections.values():
            found.fade(keep)

    def _ratio(self, plan: Plan, usual: Mapping[str, float]) -> float:
        key = _key(plan)
        found = self._corrections.get((key, self.crowd))
        known = found.weight if found else 0.0
        return (found.own if found else 1.0) * known + usual.get(key[-1], 1.0) * (1 - known)

    def _usual(self) -> dict[str, float]:
        """By mode, of the chains in it, each counted alike; 1 at first."""
        sums: dict[str, tuple[float, float]] = {}
        for (key, _), found in self._corrections.items():
            total, weight = sums.get(key[-1], (UNSEEN, UNSEEN))
            sums[key[-1]] = total + found.weight * found.own, weight + found.weight
        return {mode: total / weight for mode, (total, weight) in sums.items()}

    def _seen(self, plan: Plan) -> float:
        found = self._corrections.get((_key(plan), self.crowd))
        return found.rounds if found else 0.0


def _key(plan: Plan) -> Key:
    if len(plan.levels) == 1:
        return (*plan.levels, "alone")
    return (*plan.levels, "overlapped" if plan.overlapped else "lockstep")


def same_chain(a: Plan, b: Plan) -> bool:
    """Whether both use the same levels in the same mode; windows may differ."""
    return _key(a) == _key(b)
