"""How many replicas of each level, when GPUs are limited: where they cut most time per token. Pure.

The search's oracle is ``specrouter_core.capacity`` (tested against the simulator), fed with measured step curves,
agreement and load. For each promising chain of the levels: begin with the replicas that carry the load within the
bound of utilisation, add more one at a time where the time per token falls most for a GPU, and stop when the objective
is kept, the GPUs are spent, or nothing gains ``WORTH``. Of the chains: the cheapest that keeps the objective, without
one (or when none does) the fastest. Levels outside the chosen chain get their least: 0 where the policy allows it, so
a level that does not pay is switched off, and comes back when it pays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from specrouter_core.capacity import STUCK, Advice, Load, Offer, pricer
from specrouter_core.prediction import Level, candidates
from specrouter_core.profile import Profile

BEST = 3  # chains that are looked at, of the quickest for a single sequence, and of those for CROWD
CROWD = 16.0  # sequences that share each step
WORTH = 0.02  # least share of the time per token that one more GPU must cut
DOUBT = 1.1  # by which what is in use may miss objective and bound
MARGIN = 1.3  # times the load for which fewer replicas must be enough
KEEP = 0.05  # a chain that is in use stays unless another is better by this share

Price = Callable[[Sequence[int]], Advice]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one level's replicas."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Spent:
    """The replicas of every level, and what they are predicted to do."""

    replicas: dict[str, int]
    chain: tuple[str, ...]
    per_token: float  # predicted seconds
    gpus: int
    keeps: bool  # the objective and the bound of utilisation
    reason: str


def spend(
    offers: Sequence[Offer],
    bounds: Mapping[str, Bounds],
    load: Load,
    *,
    gpus: int | None = None,
    used: Sequence[str] = (),
    hop: float = 0.0003,
) -> Spent:
    """The best use of at most ``gpus`` GPUs (None: the bounds only). ``used``: the levels that have replicas now.

    ``offers``: lowest first, the target last. Raises ValueError when the least replicas of all levels need more.
    """
    floor = sum(offer.gpus * _least(offers, bounds, offer) for offer in offers)
    if gpus is not None and floor > gpus:
        raise ValueError(f"gpus: the least replicas of all levels need {floor}, got {gpus}")
    room = math.inf if gpus is None else gpus - floor
    found: list[Spent] = []
    for chain in _promising([offer for offer in offers if bounds[offer.name].most > 0], used):
        spent = _chain(offers, chain, bounds, load, room, hop)
        found += [spent] if spent is not None else []
    return min(found, key=lambda spent: _rank(spent, load, used))  # the target alone is always among them


def revised(
    offers: Sequence[Offer],
    bounds: Mapping[str, Bounds],
    load: Load,
    old: Spent,
    *,
    gpus: int | None = None,
    hop: float = 0.0003,
) -> Spent:
    """What ``old`` should become under ``load``: itself, as long as it serves.

    The oracle is rough (another window here, a rounding there), so what is in use has the benefit of the doubt: it goes
    when it misses the objective or the bound by more than ``DOUBT``, or when something cheaper would serve even
    ``MARGIN`` more load; without an objective, when something is quicker by more than ``KEEP``.
    Raises ValueError as ``spend`` does.
    """
    chain = [offer for offer in offers if offer.name in old.chain and old.replicas.get(offer.name, 0) > 0]
    new = spend(offers, bounds, load, gpus=gpus, used=old.chain, hop=hop)
    inside = all(one.least <= old.replicas.get(name, 0) <= one.most for name, one in bounds.items())
    if not inside or not chain or chain[-1].name != offers[-1].name:
        return new
    now = pricer(chain, load, hop=hop)([old.replicas[offer.name] for offer in chain])
    total = sum(offer.gpus * old.replicas.get(offer.name, 0) for offer in offers)
    if (gpus is not None and total > gpus) or max(now.utilisation) > load.bound * DOUBT or not _carries(now):
        return new
    kept = replace(old, per_token=now.per_token, gpus=total, keeps=True, reason=_told(old.chain, now.per_token))
    if load.per_token is None:
        return new if new.per_token < now.per_token * (1 - KEEP) else kept
    if now.per_token > load.per_token * DOUBT:
        return new if new.per_token < now.per_token else kept
    ample = spend(offers, bounds, replace(load, rate=load.rate * MARGIN), gpus=gpus, used=old.chain, hop=hop)
    return ample if ample.keeps and ample.gpus < total else kept


def fit(wanted: Mapping[str, int], planned: Mapping[str, int], cost: Mapping[str, int], gpus: int) -> dict[str, int]:
    """``wanted`` replicas cut to ``gpus`` GPUs: the level that has most beyond its plan gives first, then any."""
    fitted = dict(wanted)
    while sum(cost[name] * count for name, count in fitted.items()) > gpus:
        above = {n: c - planned.get(n, 1) for n, c in fitted.items() if cost[n] and c > min(planned.get(n, 1), 1)}
        if not above:
            break
        fitted[max(above, key=lambda name: above[name])] -= 1
    return fitted


def _promising(offers: Sequence[Offer], used: Sequence[str]) -> list[list[Offer]]:
    """The quickest chains by the planner, with few and with many sequences; the target alone, and what is used now."""
    rates = {offer.name: offer.agreement for offer in offers}
    names = {(offers[-1].name,), tuple(offer.name for offer in offers if offer.name in used or offer is offers[-1])}
    for sharing in (1.0, CROWD):
        levels = [Level(offer.name, Profile(curve=offer.curve), sharing=sharing) for offer in offers]
        table = candidates(levels, lambda lower, upper: [min(rates[lower], rates[upper])], overlapped=True)
        names |= {plan.levels for plan, _ in sorted(table, key=lambda one: one[1])[:BEST]}
    return [[offer for offer in offers if offer.name in chain] for chain in sorted(names)]


def _least(offers: Sequence[Offer], bounds: Mapping[str, Bounds], offer: Offer) -> int:
    return max(bounds[offer.name].least, 1 if offer is offers[-1] else 0)


def _rank(spent: Spent, load: Load, used: Sequence[str]) -> tuple[bool, float, float]:
    stay = 1.0 if {*spent.chain} == {*used} else 1.0 + KEEP
    if spent.keeps and load.per_token is not None:
        return False, spent.gpus * stay, spent.per_token * stay
    return not spent.keeps, spent.per_token * stay, float(spent.gpus)


def _chain(
    offers: Sequence[Offer],
    chain: Sequence[Offer],
    bounds: Mapping[str, Bounds],
    load: Load,
    room: float,
    hop: float,
) -> Spent | None:
    """The best replicas of one chain, with ``room`` GPUs beyond everybody's least; None when it does not fit."""
    least = [_least(offers, bounds, offer) for offer in chain]
    replicas = [max(1, count) for count in least]
    room -= sum(offer.gpus * (r - low) for offer, r, low in zip(chain, replicas, least, strict=True))
    if room < 0:
        return None
    price = pricer(chain, load, hop=hop)
    now = price(replicas)
    for i in sorted(range(len(chain)), key=lambda i: -now.utilisation[i]):  # a level's own, whatever the others have
        wanted = math.ceil(replicas[i] * now.utilisation[i] / load.bound - 1e-6) - replicas[i]
        fits = int(min(bounds[chain[i].name].most - replicas[i], room / max(chain[i].gpus, 1e-9)))
        more = max(min(wanted, fits), 0)
        replicas[i] += more
        room -= more * chain[i].gpus
    now = price(replicas)
    while not (now.keeps and load.per_token is not None):
        better = _cheapest_gain(chain, bounds, replicas, now, price, room)
        if better is None:
            break
        i, now = better
        replicas[i] += 1
        room -= chain[i].gpus
    full = {offer.name: _least(offers, bounds, offer) for offer in offers}
    full.update({offer.name: r for offer, r in zip(chain, replicas, strict=True)})
    spent = sum(offer.gpus * full[offer.name] for offer in offers)
    names = tuple(offer.name for offer in chain)
    return Spent(full, names, now.per_token, spent, now.keeps, _told(names, now.per_token))


def _told(chain: Sequence[str], per_token: float) -> str:
    what = "+".join(chain)
    return f"{what} at {1000 * per_token:.1f} ms a token" if per_token < STUCK else f"{what} does not keep up"


def _cheapest_gain(
    chain: Sequence[Offer],
    bounds: Mapping[str, Bounds],
    replicas: list[int],
    now: Advice,
    price: Price,
    room: float,
) -> tuple[int, Advice] | None:
    """The level whose next replica gains most for its GPUs, and what it then is; None when none is worth it."""
    best: tuple[float, int, Advice] | None = None
    carries = _carries(now)
    for i, offer in enumerate(chain):
        if replicas[i] >= bounds[offer.name].most or offer.gpus > room:
            continue
        there = price([r + (j == i) for j, r in enumerate(replicas)])
        gain = 1 - _strain(there) / _strain(now)
        gain /= max(offer.gpus, 0.1)
        if gain >= (WORTH if carries else 1e-6) and (best is None or gain > best[0]):
            best = gain, i, there
    return None if best is None else (best[1], best[2])


def _carries(advice: Advice) -> bool:
    """Whether the load is kept up with, however slowly."""
    return advice.per_token < STUCK and max(advice.utilisation) < 1


def _strain(advice: Advice) -> float:
    """What to make small: the time per token; while the load is not kept up with, the utilisation."""
    if _carries(advice):
        return advice.per_token
    return STUCK * (1 + sum(max(share, 0.0) ** 4 for share in advice.utilisation))
