"""How many replicas of each level a load needs, and with which chain: the least cost that keeps the objective.

For a chain, say how many sequences ``s(i)`` share one replica of level i. The planner then gives the time per token
c(s), and the rest follows:

    sequences in flight     N = R c(s)                 R tokens a second asked for (Little's law)
    replicas                r(i) = N / s(i)
    cost                    sum of price(i) r(i)

searched over s by steps along one level at a time, and in the end over whole replicas, by exchanging one of a level
for some of another. Sharing costs time in three ways: a step feeds the rows of all who
share it; a call that comes while a step runs waits for its rest (see prediction.py); and prompts take rows, make
single steps long, and must be read before the first token:

    t = curve(n s + P t),      P = s (prompt tokens per generated token) / c(s)     prompt rows a second at the replica

What is reported is computed at the whole replicas: N is the fixed point of N = R c(N / r), and a level's utilisation is
the tokens a second asked for over the most it carries when no other level limits the chain. That must stay under a
bound: arrivals are random, so there must be room.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specrouter_core.chain import Plan
from specrouter_core.prediction import Level, candidates
from specrouter_core.profile import POINTS, Curve, Profile

SHARES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0)
GRAIN = 0.03  # of shares, as a logarithm
STUCK = 1e3  # seconds a token: it does not keep up
MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Offer:
    """One level that can be had."""

    name: str
    curve: Curve
    agreement: float  # with the target's draws; 1 for the target
    price: float  # of one GPU, per hour
    gpus: int = 1  # of one replica
    slots: int = 64  # sequences that one replica holds at most
    max_rows: int = 512


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for. Raises ValueError that begins with the field's name."""

    rate: float  # requests a second
    tokens: float  # generated, of a request
    prompt: float = 16.0  # tokens of a request
    per_token: float | None = None  # the objective: seconds per token at most; None: only the cost counts
    bound: float = 0.8  # of utilisation

    def __post_init__(self) -> None:
        for name in ("rate", "tokens", "prompt"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0, got {getattr(self, name)}")
        if self.per_token is not None and self.per_token <= 0:
            raise ValueError(f"per_token: must be above 0, got {self.per_token}")
        if not 0 < self.bound <= 1:
            raise ValueError(f"bound: must be above 0 and at most 1, got {self.bound}")

    @property
    def wanted(self) -> float:
        """Tokens a second."""
        return self.rate * self.tokens


@dataclass(frozen=True, slots=True)
class Advice:
    """One way to carry the load."""

    plan: Plan
    replicas: tuple[int, ...]  # by level of the plan
    utilisation: tuple[float, ...]
    per_token: float  # predicted seconds
    in_flight: float  # sequences at once
    gpus: int
    per_hour: float  # price of all
    per_million: float  # price of a million tokens
    per_gpu: float  # tokens a second of one GPU
    keeps: bool  # the objective and the bound
    simulated: float | None = None  # seconds per token in the simulator


def advise(
    offers: Sequence[Offer],
    load: Load,
    *,
    hop: float = 0.0003,
    modes: Sequence[bool] = (True, False),
) -> list[Advice]:
    """The best way for each chain of the levels (lowest first, the target last), the best of all first."""
    found: list[Advice] = []
    for count in range(len(offers)):
        for below in itertools.combinations(offers[:-1], count):
            chain = [*below, offers[-1]]
            found.append(_Search(chain, load, hop, modes).best())
    return sorted(found, key=lambda advice: (not advice.keeps, advice.per_hour if advice.keeps else advice.per_token))


def priced(
    offers: Sequence[Offer],
    replicas: dict[str, int],
    load: Load,
    *,
    hop: float = 0.0003,
    modes: Sequence[bool] = (True, False),
) -> Advice:
    """What given replicas, of the target and some levels below, do under the load with the best windows for it."""
    chain = [offer for offer in offers if replicas.get(offer.name, 0)]
    return _Search(chain, load, hop, modes).priced([replicas[offer.name] for offer in chain])


def pricer(
    chain: Sequence[Offer], load: Load, *, hop: float = 0.0003, modes: Sequence[bool] = (True,)
) -> Callable[[Sequence[int]], Advice]:
    """What replicas of a chain (lowest first, the target last) do under a load; what it finds out once, it keeps."""
    return _Search(chain, load, hop, modes).priced


def cheaper(chain: Sequence[Offer], replicas: Sequence[int]) -> list[tuple[int, ...]]:
    """Replicas that cost less by one exchange: one fewer of a level, up to three more of another. Cheapest first."""
    prices = [offer.price * offer.gpus for offer in chain]
    out: dict[tuple[int, ...], float] = {}
    for down, up, by in itertools.product(range(len(chain)), range(len(chain)), range(4)):
        if replicas[down] > 1 and (down != up or by == 0) and by * prices[up] < prices[down]:
            changed = tuple(r - (i == down) + by * (i == up) for i, r in enumerate(replicas))
            out[changed] = by * prices[up] - prices[down]
    return sorted(out, key=lambda changed: out[changed])


def frontier(offers: Sequence[Offer], load: Load, *, hop: float = 0.0003, points: int = 10) -> list[Advice]:
    """What a faster token costs: the cheapest that keeps each of ``points`` objectives, the loosest first."""
    high = max(advice.per_token for advice in advise(offers, replace(load, per_token=None), hop=hop))
    low = min(advice.per_token for advice in advise(offers, replace(load, per_token=high / 100), hop=hop))
    out: list[Advice] = []
    for i in range(points):
        objective = high * (low * 1.05 / high) ** (i / (points - 1))
        best = advise(offers, replace(load, per_token=objective), hop=hop)[0]
        if best.keeps and (not out or best.per_token < out[-1].per_token):
            while out and out[-1].per_hour >= best.per_hour:  # slower, and no cheaper
                out.pop()
            out.append(best)
    return out


@dataclass(frozen=True, slots=True)
class _Point:
    """Where a chain runs when its replicas are shared so."""

    plan: Plan
    per_token: float


class _Search:
    """The replicas of one chain."""

    def __init__(self, chain: Sequence[Offer], load: Load, hop: float, modes: Sequence[bool]) -> None:
        self.chain = chain
        self.load = load
        self.hop = hop
        self.modes = modes if len(chain) > 1 else modes[:1]
        self._points: dict[tuple[int, ...], _Point] = {}
        self._priced: dict[tuple[int, ...], Advice] = {}

    def best(self) -> Advice:
        """The cheapest replicas that keep the objective, or the fastest when none does."""
        most = [self._widest(i) for i in range(len(self.chain))]
        starts = [[min(at, m) for m in most] for at in (0, 4, 8, 12)]
        ends = [self._descend(start, most) for start in starts]
        found = [self._whole([SHARES[i] for i in end]) for end in ends]
        if not self._hopeless:
            found.append(self._equal(max(max(advice.replicas) for advice in found)))
        best = sorted(found, key=_rank)[:2]
        return min((self._improved(advice) for advice in best), key=_rank)

    @property
    def _hopeless(self) -> bool:
        """Whether the chain misses the objective even when nothing is shared."""
        objective = self.load.per_token
        return objective is not None and self._point([1.0] * len(self.chain)).per_token > objective

    def _descend(self, at: list[int], most: list[int]) -> list[int]:
        value = self._value(at)
        moved = True
        while moved:
            moved = False
            for i, by in itertools.product(range(len(at)), (-3, -1, 1, 3)):
                there = [*at]
                there[i] = min(max(there[i] + by, 0), most[i])
                if there != at and (found := self._value(there)) < value:
                    at, value, moved = there, found, True
        return at

    def _value(self, at: list[int]) -> tuple[float, float]:
        """What to make small: how far the objective is missed, then the cost."""
        shares = [SHARES[i] for i in at]
        pace = self._point(shares).per_token
        objective = self.load.per_token
        missed = max(0.0, pace - objective) if objective is not None else 0.0
        flight = self.load.wanted * pace
        return missed, sum(o.price * o.gpus * flight / s for o, s in zip(self.chain, shares, strict=True))

    def _point(self, shares: Sequence[float]) -> _Point:
        """The chain's best windows and its time per token, for shares taken to within 1.5 %."""
        key = tuple(round(math.log(share) / GRAIN) for share in shares)
        point = self._points.get(key)
        if point is None:
            point = self._fit([math.exp(at * GRAIN) for at in key])
            self._points[key] = point
        return point

    def _fit(self, shares: Sequence[float]) -> _Point:
        prompts = self.load.prompt / self.load.tokens
        point = self._plan(shares, [0.0] * len(shares))
        for _ in range(3):  # prompts make steps longer, and longer steps mean fewer prompts
            before = point.per_token
            point = self._plan(shares, [prompts * share / before for share in shares])
            if abs(point.per_token / before - 1) < 0.02:
                break
        return point

    def _plan(self, shares: Sequence[float], prompt_rows: Sequence[float]) -> _Point:
        levels = []
        first = 0.0  # seconds until the slowest level has read the prompt
        prompt = self.load.prompt
        for offer, share, rows in zip(self.chain, shares, prompt_rows, strict=True):
            profile = Profile(curve=_with_prompts(offer.curve, rows))
            chunk = offer.curve.seconds(min(prompt, offer.max_rows))  # a step that reads (a part of) one
            reading = chunk * math.ceil(prompt / offer.max_rows)
            busy = min(reading * rows / prompt, 1.0)  # share of the time that such steps take
            profile.hop.value = 2 * self.hop
            first = max(first, reading + busy * chunk)
            levels.append(Level(offer.name, profile, sharing=share, wait=busy * chunk / 2))
        names = tuple(offer.name for offer in self.chain)
        found = [
            (seconds, plan)
            for mode in self.modes
            for plan, seconds in candidates(levels, self._rates, overlapped=mode)
            if plan.levels == names
        ]
        seconds, plan = min(found, key=lambda entry: entry[0])
        return _Point(plan, seconds + first / self.load.tokens)

    def _rates(self, lower: str, upper: str) -> Sequence[float]:
        """What is easy for a level is easy for every better one."""
        rates = {offer.name: offer.agreement for offer in self.chain}
        return [min(rates[lower], rates[upper])]

    # Whole replicas.

    def _whole(self, shares: Sequence[float]) -> Advice:
        flight = self.load.wanted * self._point(shares).per_token
        replicas = [max(1, math.ceil(flight / share - 1e-9)) for share in shares]
        advice = self.priced(replicas)
        for _ in range(8):  # rounding and prompts can leave it just short
            if advice.keeps or self._hopeless:
                break
            grown = [self.priced([r + (j == i) for j, r in enumerate(replicas)]) for i in range(len(replicas))]
            advice = min(grown, key=_rank)
            replicas = list(advice.replicas)
        return advice

    def _equal(self, most: int) -> Advice:
        """The fewest equal replicas that keep everything, at most ``most`` of each level."""
        low, advice = 1, self.priced([most] * len(self.chain))
        while advice.keeps and low < most:
            middle = (low + most) // 2
            fewer = self.priced([middle] * len(self.chain))
            if fewer.keeps:
                advice, most = fewer, middle
            else:
                low = middle + 1
        return advice

    def _improved(self, advice: Advice) -> Advice:
        """The first cheaper exchange that keeps everything, again and again."""
        while advice.keeps:
            found = (self.priced(replicas) for replicas in cheaper(self.chain, advice.replicas))
            better = next((a for a in found if a.keeps), None)
            if better is None:
                break
            advice = better
        return advice

    def priced(self, replicas: Sequence[int]) -> Advice:
        """What so many replicas do under the load."""
        key = tuple(replicas)
        if key not in self._priced:
            self._priced[key] = self._price(key)
        return self._priced[key]

    def _price(self, replicas: tuple[int, ...]) -> Advice:
        point, flight = self._settle(replicas)
        load, chain = self.load, self.chain
        busy = [min(load.wanted / max(self._most(i) * r, 1e-9), 9.99) for i, r in enumerate(replicas)]
        gpus = sum(o.gpus * r for o, r in zip(chain, replicas, strict=True))
        per_hour = sum(o.price * o.gpus * r for o, r in zip(chain, replicas, strict=True))
        in_time = load.per_token is None or point.per_token <= load.per_token
        return Advice(
            plan=point.plan,
            replicas=replicas,
            utilisation=tuple(busy),
            per_token=point.per_token,
            in_flight=flight,
            gpus=gpus,
            per_hour=per_hour,
            per_million=per_hour * MILLION / 3600 / load.wanted,
            per_gpu=load.wanted / gpus,
            keeps=in_time and point.per_token < STUCK and max(busy) <= load.bound + 1e-9,
        )

    def _settle(self, replicas: Sequence[int]) -> tuple[_Point, float]:
        """Sequences in flight: the least N with N = R c(N / r)."""

        def at(flight: float) -> _Point:
            return self._point([max(flight / r, 1.0) for r in replicas])

        flight = self.load.wanted * at(0.0).per_token
        for _ in range(30):
            point = at(flight)
            wanted = self.load.wanted * point.per_token
            if wanted <= flight * 1.01:
                return point, wanted
            flight = wanted
            if flight > self._room(replicas):
                break
        return replace(point, per_token=STUCK), flight

    def _room(self, replicas: Sequence[int]) -> float:
        return min(o.slots * r for o, r in zip(self.chain, replicas, strict=True))

    def _most(self, i: int) -> float:
        """Tokens a second that one replica of level i carries when no other level limits the chain."""
        return max(carried for _, carried in self._carried(i))

    def _widest(self, i: int) -> int:
        """The place in ``SHARES`` at which a replica of level i comes to the bound of utilisation."""
        bound = self._most(i) * self.load.bound
        return max((place for place, carried in self._carried(i) if carried <= bound), default=0)

    def _carried(self, i: int) -> list[tuple[int, float]]:
        """Tokens a second by place in ``SHARES``."""
        out = []
        for place, share in enumerate(SHARES):
            if place and share > self.chain[i].slots:
                break
            shares = [share if j == i else 1.0 for j in range(len(self.chain))]
            out.append((place, share / self._point(shares).per_token))
        return out


def _rank(advice: Advice) -> tuple[bool, float]:
    return not advice.keeps, advice.per_hour if advice.keeps else advice.per_token


def _with_prompts(curve: Curve, rows_per_second: float) -> Curve:
    """The curve where prompts ride along: t = curve(n + rows t), at most ``STUCK``."""
    if rows_per_second <= 0:
        return curve
    costs: dict[int, float] = {}
    for n in POINTS:
        costs[n] = _fixed(lambda t, n=n: curve.seconds(n + rows_per_second * t), curve.seconds(n))  # type: ignore[misc]
    return Curve.of(costs)


def _fixed(step: Callable[[float], float], t: float) -> float:
    """The fixed point from below."""
    for _ in range(40):
        there = step(t)
        if there > STUCK:
            return STUCK
        if there <= t * 1.005:
            return there
        t = there
    return STUCK
