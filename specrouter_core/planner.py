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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specrouter_core.agreement import expected_tokens
from specrouter_core.chain import MAX_LOOKAHEAD, Plan
from specrouter_core.profile import Profile

WINDOWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
MAX_LEAST = 4
RUN = 32  # tokens the target alone draws in one call: each new call may miss a step that others share
CHUNK = 8  # tokens the lowest level draws in one call at least
TIE = 1.08  # predictions this near are the same
NEAR = 1.6  # a candidate predicted to be slower than this, times the best, is not tried


@dataclass(frozen=True, slots=True)
class Level:
    """One level as the planner sees it."""

    name: str
    profile: Profile
    weight: float = 100.0  # the operator's, 0 .. 100
    sharing: float = 1.0  # sequences that share one replica's steps, this one included
    slowest: int = 10**9  # longest text it can hold, tokens


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


Rates = Callable[[str, str], Sequence[float]]


def candidates(
    levels: Sequence[Level], rates: Rates, *, overlapped: bool, max_window: int = 16, max_lookahead: int = 24
) -> list[tuple[Plan, float]]:
    """Every chain of the levels (lowest first, the target last) with its best windows: (plan, seconds per token)."""
    usable = [level for level in levels[:-1] if level.weight > 0] + [levels[-1]]
    windows = [w for w in WINDOWS if w <= max_window]
    parts: list[_Part] = []
    out: list[tuple[Plan, float]] = []
    for i, level in enumerate(usable):
        top = i + 1 == len(usable)
        cost = _Cost.of(level, max(windows) + 1)
        new = [_lowest(level.name, cost)]
        new += [_extend(part, level.name, cost, rates, windows, overlapped=overlapped, top=top) for part in parts]
        if top:
            out = [(_plan(part, overlapped, max_lookahead), part.pace) for part in new]
        parts += new
    return out


@dataclass(frozen=True, slots=True)
class _Cost:
    step: list[float]  # seconds of a step by tokens of this sequence, index 1 ..
    delay: float

    @classmethod
    def of(cls, level: Level, most: int) -> _Cost:
        speed = level.weight / 100
        curve, sharing = level.profile.curve, max(level.sharing, 1.0)
        step = [0.0] + [curve.seconds(n * sharing) / speed for n in range(1, most + 1)]
        return cls(step, level.profile.hop.value + level.profile.queue.value)


def _lowest(name: str, cost: _Cost) -> _Part:
    return _Part((name,), (8,), (1,), cost.step[1] + cost.delay / 8, cost.step[1], cost.step[1], cost.delay)


def _extend(
    part: _Part, name: str, cost: _Cost, rates: Rates, windows: Sequence[int], *, overlapped: bool, top: bool
) -> _Part:
    """The best window of level ``name`` over ``part``."""
    most = max(windows) + 1
    checked = expected_tokens(list(rates(part.levels[-1], name)), most)
    if overlapped:
        drafted = checked if len(part.levels) == 1 else expected_tokens(list(rates(part.levels[0], name)), most)
        gain = _Gain(checked, drafted)
        # the window for a middling wait, then the wait for that window: near the best of the grid, much cheaper;
        # of windows that are as good, the widest, for what it may take along costs nothing
        paces = [(_overlapped(part, cost, gain, m, min(m, 2)), m) for m in windows]
        window = max(m for pace, m in paces if pace <= TIE * min(paces)[0])
        # the target waits for two at most: more would come later than the model believes, and better ones sooner
        waits = range(1, min(window, 2 if top else MAX_LEAST) + 1)
        pace, least = min((_overlapped(part, cost, gain, window, n), n) for n in waits)
        pace = pace if top else min(pace, cost.step[1])
    else:
        least = 1
        pace, window = min((_lockstep(part, cost, checked, m), m) for m in windows)
    return _Part(
        (*part.levels, name), (*part.windows, window), (*part.least, least), pace, cost.step[1], part.draft, part.delay
    )


def _lockstep(part: _Part, cost: _Cost, gain: list[float], m: int) -> float:
    make = part.delay + m * part.draft if len(part.levels) == 1 else m * part.pace
    return (make + cost.step[m + 1] + cost.delay) / gain[m]


@dataclass(frozen=True, slots=True)
class _Gain:
    """G(k, n): tokens gained from n proposals of which the first k were checked by the level below."""

    checked: list[float]
    drafted: list[float]

    def __call__(self, k: int, n: int) -> float:
        run = self.checked[k] - self.checked[k - 1] if k else 1.0
        return self.checked[k] + run * (self.drafted[n - k] - 1)

    def guessed(self, k: int, n: int) -> float:
        """The probability that all n are accepted and one more is guessed."""
        return self(k, n + 1) - self(k, n)


def _overlapped(part: _Part, cost: _Cost, gain: _Gain, m: int, least: int) -> float:
    busy = cost.step[m + 1] + cost.delay
    k = min(m, int(busy / part.pace))
    n = k if len(part.levels) == 1 else min(m, k + int(part.step / part.draft / 2))
    n = max(n, 1)
    on = gain.guessed(k, n)
    wait = part.delay + least * part.draft
    cycle = on * busy + (1 - on) * (cost.step[least + 1] + cost.delay + wait)
    return cycle / (on * gain(k, n) + (1 - on) * gain(0, least))


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
    """Measured over predicted, of one chain."""

    ratio: float = 1.0
    seen: float = 0.0


class Planner:
    """Chooses plans, learns how wrong its predictions are, and does not flutter.

    ``gain`` is the least predicted improvement, as a share, for which a sequence changes its chain.
    """

    def __init__(self, *, gain: float = 0.05) -> None:
        self.gain = gain
        self._corrections: dict[tuple[str, ...], _Correction] = {}

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
        for mode in overlapped:
            for plan, model in candidates(levels, rates, overlapped=mode, max_window=max_window):
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

    def observe(self, choice: Choice, seconds: float) -> None:
        """A sequence ran with this plan at this measured time per token."""
        if seconds <= 0 or choice.model <= 0:
            return
        found = self._corrections.setdefault(_key(choice.plan), _Correction())
        found.seen = found.seen * 0.98 + 1
        ratio = min(max(seconds / choice.model, 0.1), 10.0)
        found.ratio += max(0.1, 1 / (found.seen + 1)) * (ratio - found.ratio)

    def age(self, keep: float) -> None:
        """Trust old corrections less: this share of what they differ from 1 is kept."""
        for found in self._corrections.values():
            found.ratio, found.seen = found.ratio**keep, found.seen * keep

    def _ratio(self, plan: Plan) -> float:
        found = self._corrections.get(_key(plan))
        return found.ratio if found else 1.0

    def _seen(self, plan: Plan) -> float:
        found = self._corrections.get(_key(plan))
        return found.seen if found else 0.0


def _key(plan: Plan) -> tuple[str, ...]:
    return (*plan.levels, "overlapped" if plan.overlapped and len(plan.levels) > 1 else "lockstep")


def same_chain(a: Plan, b: Plan) -> bool:
    """Whether both use the same levels in the same mode; windows may differ."""
    return _key(a) == _key(b)
