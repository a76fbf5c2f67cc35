"""The chain and windows with the least predicted time per committed token.

For each chain (a subset of the levels that ends in the target) and mode, time per token is built from below, with
what is measured: step curves, queues, hops, agreement per pair and position, and the operator's weights (100 = free to
use, 0 = not used; a weight divides the level's speed).

    t(i, n)   seconds of one step of level i that feeds n tokens, for each of the sequences that share it
    d(i)      its hop and queue
    E(i, m)   tokens gained by checking m proposals of the level below

Lock-step (one level at a time):

    time to make m proposals at the lowest level     M(0, m) = d + m t(0, 1)
    at a higher one                                  M(i, m) = m c(i)
    time per token                                   c(i) = min over m of (M(i-1, m) + t(i, m+1) + d) / E(i, m)

Overlapped (each level works whenever it can): the sum becomes a cycle in which only a rejection waits. While level i
checks, the level below makes text at its own pace c(i-1), and the lowest has drafted on beyond that. With probability A
(all of it accepted, and the draw after it guessed) the next call follows at once; else it waits for l new drafts:

    cycle     A B(n) + (1 - A) (B(l) + d(0) + l t(0, 1)),      B(n) = t(i, n+1) + d(i)
    tokens    A G(k, n) + (1 - A) G(0, l)
    G(k, n)   tokens gained from n proposals, the first k checked by the level below and the rest only drafted
    k, n      what is ready after a check: k = B / c(i-1), n = k + t(i-1, 1) / t(0, 1), at most the window
    time per token below the target: never more than by its own draws alone, c(i) <= t(i, 1)

No model is exact: ``Planner`` multiplies each prediction by a measured correction of its chain.
A chain of the target alone is always a candidate. Under load t grows with the sequences that share a level, so that
windows shrink and levels drop out by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from specrouter_core.chain import MAX_LOOKAHEAD, Plan
from specrouter_core.profile import Profile

WINDOWS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
WAITS = (1, 2, 3, 4, 6, 8, 12, 16)  # proposals a verifier may wait for
MAX_AHEAD = 24  # tokens that the lowest level runs ahead at most
RUN = 32  # tokens the target alone draws in one call: each new call may miss a step that others share
CHUNK = 8  # tokens the lowest level draws in one call at least
TIE = 1.08  # predictions this near are the same
HALF_LIFE = 3.0  # seconds of a chain's use after which what was measured of it weighs half
PRIOR = 24.0  # rounds that the usual correction is worth
UNSEEN = 2.0  # chains with a correction of 1 that are added to those measured, for what is usual
NEAR = 1.6  # a candidate predicted to be slower than this, times the best, is not tried


@dataclass(frozen=True, slots=True)
class Level:
    """One level as the planner sees it."""

    name: str
    profile: Profile
    weight: float = 100.0  # the operator's, 0 .. 100
    sharing: float = 1.0  # sequences that share one replica's steps, this one included
    wait: float = 0.0  # seconds that a call waits besides, for more than the step under way


@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate with its prediction."""

    plan: Plan
    seconds: float  # predicted per committed token, with the correction
    model: float  # without it


@dataclass(frozen=True, slots=True)
class _Part:
    """A chain up to some level: how fast its text grows."""

    levels: tuple[str, ...]
    windows: tuple[int, ...]
    least: tuple[int, ...]
    pace: float  # c(i), seconds per token
    step: float  # t(i, 1)
    draft: float  # t(0, 1)
    delay: float  # d(0)
    extra: int  # tokens that the lowest has drafted beyond the text, on average


Rates = Callable[[str, str], Sequence[float]]


def candidates(
    levels: Sequence[Level], rates: Rates, *, overlapped: bool, max_window: int = 16, max_lookahead: int = MAX_AHEAD
) -> list[tuple[Plan, float]]:
    """Every chain of the levels (lowest first, the target last) with its best windows: (plan, seconds per token)."""
    return _candidates(_costs(levels, max_window), _Gains(rates, max_window + 1), overlapped, max_lookahead)


def _costs(levels: Sequence[Level], max_window: int) -> dict[str, _Cost]:
    """Of the levels that can be used."""
    return {x.name: _Cost.of(x, max_window + 1) for x in levels if x.weight > 0 or x is levels[-1]}


def _candidates(
    costs: Mapping[str, _Cost], gains: _Gains, overlapped: bool, max_lookahead: int, *, sensible: bool = False
) -> list[tuple[Plan, float]]:
    """``sensible``: without chains in which a level checks another that is no faster than itself."""
    windows = [w for w in WINDOWS if w < gains.most]
    parts: list[_Part] = []
    out: list[tuple[Plan, float]] = []
    for i, (name, cost) in enumerate(costs.items()):
        top = i + 1 == len(costs)
        new = [_lowest(name, cost)]
        for part in parts:
            if sensible and len(part.levels) > 1 and part.pace >= cost.step[1]:
                continue
            new.append(_extend(part, name, cost, gains.of(part, name), windows, overlapped=overlapped, top=top))
        if top:
            out = [(_plan(part, overlapped, max_lookahead), part.pace) for part in new]
        parts += new
    return out


@dataclass(frozen=True, slots=True)
class _Cost:
    """What calls of one level cost a sequence, by the tokens they feed (index 1 ..)."""

    step: list[float]  # seconds of a step in which all who share the level take part
    apart: list[float]  # of one in which those take part who call it now and then
    busy: list[float]  # seconds from one answer to the next, for a call that follows at once
    delay: float  # hop, and queue beyond the step under way
    others: float  # 0 when nobody shares it, towards 1 the more do

    @classmethod
    def of(cls, level: Level, most: int) -> _Cost:
        speed, curve, sharing = level.weight / 100, level.profile.curve, max(level.sharing, 1.0)
        others = 1 - 1 / sharing
        few = sharing * (1 - others / 2)  # two groups take turns
        step = [0.0] + [curve.seconds(n * sharing) / speed for n in range(1, most + 1)]
        apart = step if sharing == 1 else [0.0] + [curve.seconds(n * few) / speed for n in range(1, most + 1)]
        delay = level.profile.hop.value + level.wait
        return cls(step, apart, [t * (1 + others) + delay for t in apart], delay, others)

    def cycle(self, ready: float, fed: int) -> float:
        """Seconds from one answer to the next, for a call of ``fed`` tokens that is made ``ready`` after the first.

        Who shares the level has begun a step by then: the call waits for its end.
        """
        step = self.apart[fed]
        return step + self.delay + ready + self.others * max(step - ready, step / 2)


def _lowest(name: str, cost: _Cost) -> _Part:
    pace = cost.step[1] + (cost.delay + cost.others * cost.step[1] / 2) / 8
    delay = cost.delay + cost.others * cost.step[1] / 2
    return _Part((name,), (8,), (1,), pace, cost.step[1], cost.step[1], delay, 0)


def _extend(
    part: _Part, name: str, cost: _Cost, gain: _Gain, windows: Sequence[int], *, overlapped: bool, top: bool
) -> _Part:
    """The best window of level ``name`` over ``part``."""
    if overlapped:
        # the window for a middling wait, then the wait for that window: near the best of the grid, much cheaper;
        # of windows that are as good, the widest, for what it may take along costs nothing
        middling = 2 if cost.others < 0.5 else 4
        window = _widest(lambda m: _overlapped(part, cost, gain, m, min(m, middling)), windows)
        waits = [n for n in WAITS if n <= window]
        pace, least = _first_valley(lambda n: _overlapped(part, cost, gain, window, n), waits)
        pace = pace if top else min(pace, cost.step[1])
    else:
        least = 1
        pace, window = _first_valley(lambda m: _lockstep(part, cost, gain.checked, m), windows)
    return _Part(
        levels=(*part.levels, name),
        windows=(*part.windows, window),
        least=(*part.least, least),
        pace=pace,
        step=cost.step[1],
        draft=part.draft,
        delay=part.delay,
        extra=int(cost.step[1] / part.draft / 2),
    )


def _first_valley(value: Callable[[int], float], places: Sequence[int]) -> tuple[float, int]:
    """The least value and its place, where values fall and then rise."""
    best, at = value(places[0]), places[0]
    for place in places[1:]:
        found = value(place)
        if found >= best:
            break
        best, at = found, place
    return best, at


def _widest(value: Callable[[int], float], windows: Sequence[int]) -> int:
    """The widest window whose value is nearly the least, where values fall and then rise."""
    found: list[tuple[float, int]] = []
    for window in reversed(windows):
        found.append((value(window), window))
        if found[-1][0] > TIE * min(found)[0]:
            break
    enough = TIE * min(found)[0]
    return next(window for seconds, window in found if seconds <= enough)


def _lockstep(part: _Part, cost: _Cost, gain: list[float], m: int) -> float:
    make = part.delay + m * part.draft if len(part.levels) == 1 else m * part.pace
    return cost.cycle(make, m + 1) / gain[m]


@dataclass(frozen=True, slots=True)
class _Gain:
    """What comes of proposals of which the first were checked by the level below and the rest only drafted."""

    checked: list[float]  # E(k)
    run: list[float]  # probability that all k are right
    drafted: list[float]  # E(n)
    kept: list[float]  # probability that the level below need not go back, by drafted proposals
    guessed: list[float]  # probability that the lowest need not

    def again(self, drafted: int, ahead: float, reach: float) -> float:
        """The probability that there are proposals at once: what was gained had been guessed.

        By the level below, which has made ``ahead`` times as much as was gained, else by the lowest (``reach``).
        """
        if ahead >= 1:
            return self.kept[drafted]
        return ahead * self.kept[drafted] + (1 - ahead) * min(reach, 1.0) * self.guessed[drafted]


class _Gains:
    """Of all pairs of levels that a table needs, each once. ``most``: proposals that one call may have."""

    def __init__(self, rates: Rates, most: int) -> None:
        self._rates = rates
        self.most = most
        self._pairs: dict[tuple[str, str], tuple[Sequence[float], list[float], list[float]]] = {}
        self._found: dict[tuple[str, str, str], _Gain] = {}

    def of(self, part: _Part, name: str) -> _Gain:
        """What level ``name`` gains from the proposals of ``part``."""
        key = part.levels[0], part.levels[-1], name
        gain = self._found.get(key)
        if gain is None:
            gain = self._found[key] = self._make(*key)
        return gain

    def _make(self, lowest: str, below: str, name: str) -> _Gain:
        lower, drafted, run = self._pair(lowest, name)
        if lowest == below:
            return _Gain(drafted, run, drafted, run[1:], run[1:])
        upper, checked, checked_run = self._pair(below, name)
        kept, lost = [], 0.0
        for p, q, r in zip(upper, lower, run, strict=False):
            kept.append(lost + r * p)
            if p > q:
                lost += r * (p - q)
        return _Gain(checked, checked_run, drafted, kept, run[1:])

    def _pair(self, lower: str, upper: str) -> tuple[Sequence[float], list[float], list[float]]:
        """Agreement by position, E(n), and the probability of n agreements in a row."""
        found = self._pairs.get((lower, upper))
        if found is None:
            rates = list(self._rates(lower, upper))
            rates += rates[-1:] * (self.most + 1 - len(rates))
            run = list(accumulate(rates, mul, initial=1.0))
            found = self._pairs[lower, upper] = rates, list(accumulate(run)), run
        return found


def _overlapped(part: _Part, cost: _Cost, gain: _Gain, m: int, least: int) -> float:
    busy = cost.busy[m + 1]
    # made by the level below while this one is at work, after the step that was under way; and by the lowest
    made = (busy - part.step / 2) / part.pace if busy > part.step / 2 else 0.0
    drafts = busy / part.draft - 0.5
    k = int(made) if made < m else m
    more = min(m - k, part.extra)
    if k + more == 0:
        more = 1
    run = gain.run[k]
    on_tokens, off_tokens = gain.checked[k] + run * (gain.drafted[more] - 1), gain.drafted[least]
    stays = run * gain.again(more, made / on_tokens, drafts / on_tokens)
    comes = gain.again(least, made / off_tokens, drafts / off_tokens)
    on = comes / (1 - stays + comes)
    wait = part.delay + (least + 0.5) * part.draft
    return (on * busy + (1 - on) * cost.cycle(wait, least + 1)) / (on * on_tokens + (1 - on) * off_tokens)


def _plan(part: _Part, overlapped: bool, max_lookahead: int) -> Plan:
    if len(part.levels) == 1:
        return Plan(part.levels, (RUN,), 1, overlapped)
    # overlapped, the lowest draws on while its tokens are checked; in lock-step it makes what is asked for
    windows = (max(part.windows[1], CHUNK) if overlapped else part.windows[1], *part.windows[1:])
    lookahead = min(max_lookahead, MAX_LOOKAHEAD, max(16 if overlapped else 1, 2 * part.windows[-1]))
    least = tuple(min(least, window) for least, window in zip(part.least, windows, strict=True))
    return Plan(part.levels, windows, max(lookahead, 1), overlapped, least)


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
        max_window: int = 16,
    ) -> list[Choice]:
        """All candidates with their predictions, best first; the target alone is always among them."""
        table: list[Choice] = []
        costs, gains = _costs(levels, max_window), _Gains(rates, max_window + 1)
        for mode in overlapped:
            for plan, model in _candidates(costs, gains, mode, MAX_AHEAD, sensible=True):
                if len(plan.levels) > 1 or mode is overlapped[0]:
                    table.append(Choice(plan, model * self._ratio(plan), model))
        return sorted(table, key=lambda choice: choice.seconds)

    def choose(self, table: Sequence[Choice], current: Plan | None = None) -> Plan:
        """The best of a table; the current chain, with its windows of this table, unless another gains enough."""
        best = table[0]
        kept = next((c for c in table if current is not None and same_chain(c.plan, current)), None)
        if kept is not None and kept.seconds <= best.seconds * (1 + self.gain):
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

    def _ratio(self, plan: Plan) -> float:
        key = _key(plan)
        found = self._corrections.get((key, self.crowd))
        known = found.weight if found else 0.0
        return (found.own if found else 1.0) * known + self._usual(key[-1]) * (1 - known)

    def _usual(self, mode: str) -> float:
        """Of the chains in this mode, each counted alike; 1 at first."""
        total, weight = UNSEEN, UNSEEN
        for (key, _), found in self._corrections.items():
            if key[-1] == mode:
                total, weight = total + found.weight * found.own, weight + found.weight
        return total / weight

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
