"""The capacity planner's advice in the simulator, and what its model is wrong by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specrouter_core.capacity import Advice, Load, Offer, advise, cheaper, priced
from specrouter_core.replica import SimLevel
from specrouter_core.simulator import Policy, Simulator
from specrouter_core.workload import Summary, Workload

MIN_REQUESTS, MAX_REQUESTS = 60, 500
CHAINS = 2  # of the table that are tried
TRIES = 6  # changes to each
SLACK = 1.05  # over the objective by the model: worth a try
LONGEST = 64  # tokens of a rehearsed request
TURNOVERS = 3  # requests simulated, over those in flight at once


def rehearse(offers: Sequence[Offer], advice: Advice, load: Load, *, hop: float = 0.0003, seed: int = 1) -> Summary:
    """The advice under random arrivals of the load, for a few times as many requests as are in flight."""
    wanted = dict(zip(advice.plan.levels, advice.replicas, strict=True))
    levels = [
        SimLevel(offer.name, offer.curve, offer.agreement, wanted[offer.name], offer.max_rows)
        for offer in offers
        if offer.name in wanted
    ]
    shorter = min(1.0, LONGEST / load.tokens)  # as many tokens a second and sequences in flight, in less simulated time
    tokens, prompt = max(round(load.tokens * shorter), 1), max(round(load.prompt * shorter), 1)
    requests = min(max(round(TURNOVERS * advice.in_flight), MIN_REQUESTS), MAX_REQUESTS)
    workload = Workload(requests, load.rate / shorter, (tokens, tokens), (prompt, prompt))
    outcomes = Simulator(levels, Policy(advice.plan), hop=hop, seed=seed).run(workload.arrivals(seed))
    return Summary.of(outcomes, load.per_token)


def verified(offers: Sequence[Offer], load: Load, *, hop: float = 0.0003) -> list[Advice]:
    """``advise``, where the first chains of the table are put right in the simulator; the best first."""
    right: list[Advice] = []
    rest: list[Advice] = []
    for advice in advise(offers, load, hop=hop):
        done = len(right) >= CHAINS and any(found.keeps for found in right)
        if advice.keeps and not done:
            right.append(_put_right(offers, advice, load, hop))
        else:
            rest.append(advice)
    return sorted([*right, *rest], key=_rank)


def _put_right(offers: Sequence[Offer], advice: Advice, load: Load, hop: float) -> Advice:
    """Add replicas until the objective is kept in simulated time, then exchange for cheaper ones while it is."""
    now = _rehearsed(offers, advice, load, hop)
    tried = {now.replicas}
    for _ in range(TRIES):
        step = _step(offers, now, load, hop, tried)
        if step is None:
            break
        tried.add(step.replicas)
        found = _rehearsed(offers, step, load, hop)
        if found.keeps or not now.keeps:
            now = found
    return now


def _step(offers: Sequence[Offer], now: Advice, load: Load, hop: float, tried: set[tuple[int, ...]]) -> Advice | None:
    """The most promising change by the model."""
    chain = [offer for offer in offers if offer.name in now.plan.levels]
    if now.keeps:
        changes = [*cheaper(chain, now.replicas), *_fewer(now.replicas)]
    else:
        missed = (now.simulated or 0.0) / (load.per_token or 1.0) - 1
        more = [max(1, round(r * missed)) for r in now.replicas]
        changes = [tuple(r + (i == j) * more[i] for i, r in enumerate(now.replicas)) for j in range(len(chain))]
    steps = [
        priced(offers, dict(zip(now.plan.levels, change, strict=True)), load, hop=hop)
        for change in changes
        if change not in tried
    ]
    steps = [step for step in steps if max(step.utilisation) <= load.bound]
    if now.keeps:  # the cheapest of those that the model thinks not much slower
        most = now.per_token if load.per_token is None else now.per_token * load.per_token / (now.simulated or 1)
        steps = [step for step in steps if step.per_token <= most * SLACK]
        return min(steps, key=lambda s: (s.per_hour, s.per_token), default=None)
    return max(steps, key=lambda s: (now.per_token - s.per_token) / max(s.per_hour - now.per_hour, 1e-9), default=None)


def _fewer(replicas: Sequence[int]) -> list[tuple[int, ...]]:
    """A quarter less of one level: the model may have asked for far too many."""
    return [tuple(r - (i == j) * (r // 4) for j, r in enumerate(replicas)) for i, of in enumerate(replicas) if of >= 4]


def _rehearsed(offers: Sequence[Offer], advice: Advice, load: Load, hop: float) -> Advice:
    """The same replicas in the mode that the simulator finds faster: the model may err by more."""
    replicas = dict(zip(advice.plan.levels, advice.replicas, strict=True))
    modes = (True, False) if len(replicas) > 1 else (True,)
    tried = [priced(offers, replicas, load, hop=hop, modes=(mode,)) for mode in modes]
    paces = [rehearse(offers, each, load, hop=hop).per_token_mean for each in tried]
    seconds, best = min(zip(paces, tried, strict=True), key=lambda entry: entry[0])
    in_time = load.per_token is None or seconds <= load.per_token
    return replace(best, simulated=seconds, keeps=in_time and max(best.utilisation) <= load.bound)


def _rank(advice: Advice) -> tuple[bool, bool, float]:
    """Better first: keeps the objective, was rehearsed, costs less (or is faster when it does not keep it)."""
    return not advice.keeps, advice.simulated is None, advice.per_hour if advice.keeps else advice.per_token
