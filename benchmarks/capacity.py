"""The capacity planner's advice against equal replicas, in the simulator, on five mixes of load.

Per mix: what `specrouter plan` advises, and the same levels with equally many replicas each, as many as are needed to
keep the objective (mean time per token under random arrivals) in simulated time, with the planner's best windows for
them. saving = the share of the equal replicas' cost that the advice saves. same_cost_ms: time per token of the fewest
equal replicas that cost at least what the advice costs.

    .venv/bin/python benchmarks/capacity.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import results
from specrouter_core.capacity import Advice, Load, Offer, priced
from specrouter_core.profile import Curve
from specrouter_core.rehearsal import rehearse, verified

HOP = 0.0003
MOST = 40  # equal replicas
DRAFT = Curve.of({1: 0.0025, 64: 0.003, 256: 0.006, 512: 0.010})
MID = Curve.of({1: 0.009, 32: 0.010, 128: 0.020, 512: 0.070})
TARGET = Curve.of({1: 0.035, 16: 0.037, 64: 0.048, 512: 0.160})
EARLY = Curve.of({1: 0.035, 8: 0.040, 32: 0.080, 512: 1.200})  # compute-bound from few rows on


@dataclass(frozen=True)
class Mix:
    """Levels and what is asked of them."""

    name: str
    load: Load
    draft: float = 0.65  # agreement
    mid: float = 0.82
    target: Curve = field(default_factory=lambda: TARGET)
    price: float = 1.0  # of the target's GPUs; the others cost 1
    gpus: int = 4  # of the target

    def offers(self) -> list[Offer]:
        return [
            Offer("draft", DRAFT, self.draft, 1.0, slots=256),
            Offer("mid", MID, self.mid, 1.0, slots=256),
            Offer("target", self.target, 1.0, self.price, self.gpus),
        ]


MIXES = (
    Mix("chat", Load(8, 96, 64, 0.028)),
    Mix("long prompts", Load(4, 64, 768, 0.036)),
    Mix("hard text", Load(6, 96, 64, 0.036), draft=0.35, mid=0.6),
    Mix("easy text", Load(10, 128, 64, 0.022), draft=0.85, mid=0.92),
    Mix("compute-bound", Load(6, 96, 64, 0.040), target=EARLY, price=2.0),
)


def equal(offers: list[Offer], names: tuple[str, ...], load: Load, least: float) -> tuple[Advice, float, float]:
    """The fewest equal replicas that keep the objective, their seconds per token, and those of what costs ``least``."""
    kept: tuple[Advice, float] | None = None
    same: float | None = None
    for count in range(1, MOST + 1):
        advice = priced(offers, dict.fromkeys(names, count), load, hop=HOP)
        seconds = rehearse(offers, advice, load, hop=HOP).per_token_mean if advice.per_token < 1 else 1e3
        if same is None and advice.per_hour >= least:
            same = seconds
        if kept is None and seconds <= (load.per_token or 1e9):
            kept = advice, seconds
        if kept is not None and same is not None:
            return *kept, same
    raise SystemExit(f"{MOST} replicas of each of {names} do not keep {load}")


def main() -> None:
    rows: list[dict[str, Any]] = []
    for mix in MIXES:
        offers, load = mix.offers(), mix.load
        best = verified(offers, load, hop=HOP)[0]
        names = best.plan.levels if len(best.plan.levels) > 1 else tuple(offer.name for offer in offers)
        other, seconds, same = equal(offers, names, load, best.per_hour)
        rows.append({
            "mix": mix.name, "objective_ms": 1000 * (load.per_token or 0), "chain": " > ".join(best.plan.levels),
            "replicas": " / ".join(map(str, best.replicas)), "cost_1m": round(best.per_million, 3),
            "ms_model": round(1000 * best.per_token, 2), "ms": round(1000 * (best.simulated or 0), 2),
            "keeps": best.keeps, "tokens_s_gpu": round(best.per_gpu, 1),
            "equal_replicas": " / ".join(map(str, other.replicas)), "equal_cost_1m": round(other.per_million, 3),
            "equal_ms": round(1000 * seconds, 2), "same_cost_ms": round(1000 * same, 2),
            "saving": round(1 - best.per_hour / other.per_hour, 4),
        })  # fmt: skip
    savings = [row["saving"] for row in rows]
    summary = {
        "mixes_won": sum(row["keeps"] and row["saving"] > 0 for row in rows),
        "saving_min": min(savings),
        "saving_mean": sum(savings) / len(savings),
        "model_error_max": max(abs(row["ms_model"] / row["ms"] - 1) for row in rows),
    }
    results.write("capacity", rows, summary)


if __name__ == "__main__":
    main()
