"""What the planner knows and decides, for people. Times in milliseconds, rates 0 to 1."""

from __future__ import annotations

import statistics
from typing import Any

from specrouter_core.trust import BINS
from specrouter_router.judge import Judge
from specrouter_router.planner import AdaptivePlanner, chain_of

ROWS = (1, 4, 8)
MAX_PLANS = 24
EVIDENCE = 0.5  # observations from which a pair is shown


def adaptive_body(planner: AdaptivePlanner, judge: Judge) -> dict[str, Any]:
    """The part of /v1/status that tells how chains are chosen."""
    adaptive = planner.adaptive
    planner.look(planner.now())
    adaptive.look(planner.now())
    rounds = sum(pace.rounds for pace in planner.paces.values())
    return {
        "plans": _plans(planner),
        "agreement": _agreement(planner),
        "profiles": {name: _profile(planner, judge, name) for name in adaptive.profiles},
        "tiers": _tiers(planner),
        "confidence": {name: _sure(planner, name) for name in adaptive.profiles if adaptive.trust.rates(name)},
        "classes": {name: round(ease, 3) for name, ease in planner.classes.known().items()},
        "absent": sorted(adaptive.absent),
        "prediction_error_median": round(statistics.median(adaptive.errors), 4) if adaptive.errors else None,
        "rounds": rounds,
        "switches": planner.switches,
        "switches_per_1000_rounds": round(1000 * planner.switches / rounds, 2) if rounds else 0.0,
    }


def _plans(planner: AdaptivePlanner) -> list[dict[str, Any]]:
    """The table that a common sequence is planned from, best first."""
    plans = []
    for choice in planner.adaptive.explain()[:MAX_PLANS]:
        plan = choice.plan
        chain = chain_of(plan)
        pace = planner.paces.get(chain)
        measured = 1000 * pace.seconds / pace.tokens if pace is not None and pace.tokens else None
        plans.append(
            {
                "levels": list(plan.levels),
                "mode": "overlapped" if chain[1] else "lockstep",
                "windows": list(plan.windows),
                "least": list(plan.least),
                "lookahead": plan.lookahead,
                "confidence": plan.confidence,
                "predicted_ms": round(1000 * choice.seconds, 3),
                "correction": round(choice.expected / choice.model, 3),
                "measured_ms": None if measured is None else round(measured, 3),
                "rounds": pace.rounds if pace is not None else 0,
            }
        )
    return plans


def _tiers(planner: AdaptivePlanner) -> list[dict[str, Any]]:
    """Who gives way to whom among the running sequences, those that go first first."""
    found = []
    for number, tier in enumerate(planner.adaptive.tables.tiers):
        made = planner.adaptive.explain(tier=number)
        found.append(
            {
                "priorities": sorted({rank // 2 for rank in tier.ranks}, reverse=True),
                "behind": any(rank % 2 for rank in tier.ranks),
                "sequences": tier.sequences,
                "sharing": tier.sharing,
                "beside": tier.beside,
                "levels": list(made[0].plan.levels) if made else [],
                "windows": list(made[0].plan.windows) if made else [],
            }
        )
    return found


def _sure(planner: AdaptivePlanner, name: str) -> list[dict[str, float]]:
    """How often a level's draws are right, by tenths of how sure it was."""
    return [
        {"from": place / BINS, "right": round(rate, 3), "seen": round(seen, 1)}
        for place, (rate, seen) in enumerate(planner.adaptive.trust.rates(name))
        if seen >= EVIDENCE
    ]


def _agreement(planner: AdaptivePlanner) -> list[dict[str, Any]]:
    """Every pair of which something is known."""
    adaptive = planner.adaptive
    names = list(adaptive.profiles)
    pairs = []
    for j, upper in enumerate(names):
        for lower in names[:j]:
            seen, score = adaptive.agreement.seen(lower, upper), adaptive.similarity.score(lower, upper)
            if seen >= EVIDENCE or score is not None:
                pairs.append(
                    {
                        "lower": lower,
                        "upper": upper,
                        "rate": round(adaptive.agreement.rate(lower, upper), 4),
                        "seen": round(seen, 1),
                        "similarity": None if score is None else round(score, 4),
                    }
                )
    return pairs


def _profile(planner: AdaptivePlanner, judge: Judge, name: str) -> dict[str, Any]:
    """What a level costs."""
    profile, budget = planner.adaptive.profiles[name], judge.budgets.get(name)
    return {
        "step_ms": {str(rows): round(1000 * profile.curve.seconds(rows), 3) for rows in ROWS},
        "steps_seen": profile.curve.seen,
        "queue_ms": round(1000 * profile.queue.value, 3),
        "hop_ms": round(1000 * profile.hop.value, 3),
        "batch": round(profile.batch.value, 2),
        "judged": budget.calls if budget is not None else 0,
        "judged_share": round(judge.share(name), 5) if budget is not None else 0.0,
    }
