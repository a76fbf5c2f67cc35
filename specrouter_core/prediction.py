"""Predicted time per committed token of every chain of some levels, with its best windows.

For each chain (a subset of the levels that ends in the target) and mode, time per token is built from below, with
what is measured: step curves, hops, agreement per pair and position, and the operator's weights (100 = free to
use, 0 = not used; a weight divides the level's speed).

    t(i, n)   seconds of one step of level i that feeds n tokens, for each of the sequences that share it
    d(i)      its hop, and what a call waits for besides the step under way
    E(i, m)   tokens gained by checking m proposals of the level below

Where s sequences share a level, a call that is ready r seconds after the last answer finds a step of the others under
way, and waits for its end. The time from answer to answer is

    B(i, r, n) = t(i, n) + d(i) + r + (1 - 1/s) max(t(i, n) - r, t(i, n) / 2)

Lock-step (one level at a time):

    time to make m proposals at the lowest level     M(0, m) = d + m t(0, 1)
    at a higher one                                  M(i, m) = m c(i)
    time per token                                   c(i) = min over m of B(i, M(i-1, m), m+1) / E(i, m)

Where the lowest level has no guess in a share z of its rounds (a lookup), what checks it feeds one token in those, and
(1 - z) B(1, M(0, m), m+1) + z B(1, d, 1) stands for B(1, M(0, m), m+1).

Overlapped (each level works whenever it can): the sum becomes a cycle in which only a rejection waits. While level i
checks, the level below makes text at its own pace c(i-1), and the lowest has drafted on beyond that. After an answer
either the level below had guessed all that was gained, and the next call follows at once with what it has made since
(*on*), or everything below begins anew, and the call waits for l new drafts (*off*):

    A         share of calls that are on: A = comes / (1 - stays + comes), from the probabilities of on after on
              (stays) and of on after off (comes)
    c(i)      = (A B(i, 0, m+1) + (1 - A) B(i, d(0) + (l + 1/2) t(0, 1), l+1)) / (A G(k, n) + (1 - A) G(0, l))
    G(k, n)   tokens gained from n proposals, the first k checked by the level below and the rest only drafted
    k, n      what is ready after a check, at most the window m: k = (B - t(i-1, 1)/2) / c(i-1),
              n = k + t(i-1, 1) / (2 t(0, 1))
    stays, comes   a level below that has drawn as far keeps its text even where the lowest guessed wrong: at a wrong
              draft it is right with probability (p(i-1) - p(0)) / (1 - p(0)), for what is easy for a level is easy for
              every better one
    time per token below the target: never more than by its own draws alone, c(i) <= t(i, 1)

A chain of the target alone is always a candidate. Under load t grows with the sequences that share a level, so that
windows shrink and levels drop out by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import mul

from specrouter_core.chain import Plan
from specrouter_core.profile import Profile

WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16)
WAITS = (1, 2, 3, 4, 6, 8, 12, 16)  # proposals a verifier may wait for
FED = (1, *(w + 1 for w in WINDOWS))  # tokens that a call may feed
MAX_AHEAD = 24  # tokens that the lowest level runs ahead at most
RUN = 32  # tokens the target alone draws in one call: each new call may miss a step that others share
CHUNK = 8  # tokens the lowest level draws in one call at least
TIE = 1.08  # predictions this near are the same
ANY: Mapping[str, int] = {}  # no limits


@dataclass(frozen=True, slots=True)
class Level:
    """One level as the planner sees it."""

    name: str
    profile: Profile
    weight: float = 100.0  # the operator's, 0 .. 100
    sharing: float = 1.0  # sequences that share one replica's steps in the same way, this one included
    beside: float = 0.0  # others in those steps, that feed one token each
    wait: float = 0.0  # seconds that a call waits besides, for more than the step under way
    silent: float = 0.0  # share of its rounds in which it has no guess; counts as wrong in the rates


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
    silent: float = 0.0  # share of rounds in which it offers nothing


Rates = Callable[[str, str], Sequence[float]]


def candidates(
    levels: Sequence[Level],
    rates: Rates,
    *,
    overlapped: bool,
    windows: Mapping[str, int] = ANY,
    lookahead: int = MAX_AHEAD,
) -> list[tuple[Plan, float]]:
    """Every chain of the levels (lowest first, the target last) with its best windows: (plan, seconds per token)."""
    return Space(levels, rates, windows=windows, lookahead=lookahead).candidates(overlapped=overlapped)


class Space:
    """All candidates of some levels.

    ``windows``: the most of each level, as in Plan, where there is a limit; ``lookahead``: the same. ``waste``: of what
    the lowest level drafts, the share that may come to nothing.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        rates: Rates,
        *,
        windows: Mapping[str, int] = ANY,
        lookahead: int = MAX_AHEAD,
        waste: float = 1.0,
    ) -> None:
        self._costs = {x.name: _Cost.of(x) for x in levels if x.weight > 0 or x is levels[-1]}
        self._gains = _Gains(rates)
        self._limits = windows
        target, most = levels[-1].name, min(lookahead, MAX_AHEAD)
        self._ahead = {
            level.name: self._gains.furthest(level.name, target, most, waste) if waste < 1 else most
            for level in levels[:-1]
        }

    def candidates(self, *, overlapped: bool, sensible: bool = False) -> list[tuple[Plan, float]]:
        """Plans with seconds per token. ``sensible``: none in which a level checks another that is no faster."""
        parts: list[_Part] = []
        out: list[tuple[Plan, float]] = []
        for i, (name, cost) in enumerate(self._costs.items()):
            top = i + 1 == len(self._costs)
            new = [_lowest(name, cost)]
            for part in parts:
                if sensible and len(part.levels) > 1 and part.pace >= cost.step[1]:
                    continue
                most = min(self._ahead[part.levels[0]], self._limits.get(name, WINDOWS[-1]))
                if most:
                    gain = self._gains.of(part, name)
                    windows = [w for w in WINDOWS if w <= most]
                    new.append(_extend(part, name, cost, gain, windows, overlapped=overlapped, top=top))
            if top:
                out = [(self._plan(part, overlapped), part.pace) for part in new]
            parts += new
        return out

    def _plan(self, part: _Part, overlapped: bool) -> Plan:
        lowest = part.levels[0]
        return _plan(
            part.levels, part.windows, part.least, overlapped, self._limits.get(lowest, RUN), self._ahead.get(lowest, 1)
        )


@dataclass(frozen=True, slots=True)
class _Cost:
    """What calls of one level cost a sequence, by the tokens they feed (index; those of FED)."""

    step: list[float]  # seconds of a step in which all who share the level take part
    apart: list[float]  # of one in which those take part who call it now and then
    busy: list[float]  # seconds from one answer to the next, for a call that follows at once
    delay: float  # hop, and queue beyond the step under way
    silent: float
    others: float  # 0 when nobody shares it, towards 1 the more do

    @classmethod
    def of(cls, level: Level) -> _Cost:
        speed, curve, sharing = level.weight / 100, level.profile.curve, max(level.sharing, 1.0)
        others = 1 - 1 / (sharing + level.beside)
        few = (sharing + 1) / 2  # two groups take turns
        beside = level.beside
        step = [0.0] * (FED[-1] + 1)
        apart = step if sharing == 1 else [0.0] * (FED[-1] + 1)
        for n in FED:
            step[n] = curve.seconds(n * sharing + beside) / speed
            apart[n] = curve.seconds(n * few + beside) / speed if sharing > 1 else step[n]
        delay = level.profile.hop.value + level.wait
        return cls(step, apart, [t * (1 + others) + delay for t in apart], delay, level.silent, others)

    def cycle(self, ready: float, fed: int) -> float:
        """Seconds from one answer to the next, for a call of ``fed`` tokens that is made ``ready`` after the first.

        Who shares the level has begun a step by then: the call waits for its end.
        """
        step = self.apart[fed]
        return step + self.delay + ready + self.others * max(step - ready, step / 2)


def _lowest(name: str, cost: _Cost) -> _Part:
    pace = cost.step[1] + (cost.delay + cost.others * cost.step[1] / 2) / 8
    delay = cost.delay + cost.others * cost.step[1] / 2
    return _Part((name,), (8,), (1,), pace, cost.step[1], cost.step[1], delay, 0, cost.silent)


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
        pace, least = _least(lambda n: _overlapped(part, cost, gain, window, n), waits)
        pace = pace if top else min(pace, cost.step[1])
    else:
        least = 1
        pace, window = _least(lambda m: _lockstep(part, cost, gain.checked, m), windows)
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


def _least(value: Callable[[int], float], places: Sequence[int]) -> tuple[float, int]:
    """The least value and its place. All are looked at: where a step's time jumps, there are several valleys."""
    return min((value(place), place) for place in places)


def _widest(value: Callable[[int], float], windows: Sequence[int]) -> int:
    """The widest window whose value is nearly the least."""
    found = [(value(window), window) for window in windows]
    enough = TIE * min(found)[0]
    return max(window for seconds, window in found if seconds <= enough)


def _lockstep(part: _Part, cost: _Cost, gain: list[float], m: int) -> float:
    make = part.delay + m * part.draft if len(part.levels) == 1 else m * part.pace
    seconds = cost.cycle(make, m + 1)
    if part.silent:
        seconds += part.silent * (cost.cycle(part.delay, 1) - seconds)
    return seconds / gain[m]


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
    """Of all pairs of levels that a table needs, each once."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._pairs: dict[tuple[str, str], tuple[Sequence[float], list[float], list[float]]] = {}
        self._found: dict[tuple[str, str, str], _Gain] = {}

    def of(self, part: _Part, name: str) -> _Gain:
        """What level ``name`` gains from the proposals of ``part``."""
        key = part.levels[0], part.levels[-1], name
        gain = self._found.get(key)
        if gain is None:
            gain = self._found[key] = self._make(*key)
        return gain

    def furthest(self, lowest: str, target: str, most: int, waste: float) -> int:
        """How far the lowest level may draft beyond what is settled: of m drafts E(m) - 1 are right. 0: not at all."""
        _, gained, _ = self._pair(lowest, target)
        return max((m for m in range(1, most + 1) if (gained[m] - 1) / m >= 1 - waste), default=0)

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
            rates += rates[-1:] * (MAX_AHEAD + 1 - len(rates))
            run = list(accumulate(rates, mul, initial=1.0))
            found = self._pairs[lower, upper] = rates, list(accumulate(run)), run
        return found


def _overlapped(part: _Part, cost: _Cost, gain: _Gain, m: int, least: int) -> float:
    busy = cost.busy[m + 1]
    # made by the level below while this one is at work, after the step that was under way; and by the lowest
    made = (busy - part.step / 2) / part.pace if busy > part.step / 2 else 0.0
    drafts = max(busy / part.draft - 0.5, 0.0)
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


@lru_cache(maxsize=4096)  # from one table to the next most plans are the same
def _plan(
    levels: tuple[str, ...], windows: tuple[int, ...], least: tuple[int, ...], overlapped: bool, most: int, ahead: int
) -> Plan:
    """``most``: tokens that the lowest level may draw in one call; ``ahead``: how far it may run ahead."""
    if len(levels) == 1:
        return Plan(levels, (min(RUN, most),), 1, overlapped)
    # overlapped, the lowest draws on while its tokens are checked; in lock-step it makes what is asked for
    windows = (min(max(windows[1], CHUNK) if overlapped else windows[1], most), *windows[1:])
    lookahead = min(ahead, max(16 if overlapped else 1, 2 * windows[-1]))
    return Plan(levels, windows, lookahead, overlapped, tuple(map(min, least, windows)))
