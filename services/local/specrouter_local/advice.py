"""``specrouter plan``: which chain and how many replicas carry a load, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from specrouter_core.capacity import Advice, Load, frontier
from specrouter_core.rehearsal import verified
from specrouter_local import plot
from specrouter_local.errors import UserError
from specrouter_local.scenario import Scenario

BAR = 24  # characters
BEST_FIRST = 8  # rows of the table


@dataclass(frozen=True, slots=True)
class Plans:
    """The answer: per chain its cheapest way, the best first, and what a faster token costs."""

    load: Load
    table: Sequence[Advice]
    frontier: Sequence[Advice]

    def plain(self) -> dict[str, Any]:
        """For JSON; milliseconds, tokens a second, prices."""
        load = self.load
        return {
            "load": {
                "requests_per_second": load.rate,
                "tokens": load.tokens,
                "prompt": load.prompt,
                "objective_ms": None if load.per_token is None else 1000 * load.per_token,
                "utilisation_bound": load.bound,
            },
            "chains": [_plain(advice) for advice in self.table],
            "frontier": [_plain(advice) for advice in self.frontier],
        }

    def svg(self) -> str:
        """Cost over time per token."""
        points = [
            plot.Point(1000 * advice.per_token, advice.per_million, _replicas(advice)) for advice in self.frontier
        ]
        title = f"{self.load.rate:g} requests/s of {self.load.tokens:g} tokens: what a faster token costs"
        return plot.line(points, title=title, x="ms per token (predicted)", y="cost per million tokens")


def make(scenario: Scenario) -> Plans:
    """Search, and try the best in the simulator. Raises UserError."""
    load, hop = scenario.load(), scenario.hop_ms / 1000
    offers = scenario.offers()
    if not any(offer.price for offer in offers):
        raise UserError("levels.0.price: some level must cost something, or there is nothing to choose by")
    return Plans(load, verified(offers, load, hop=hop), frontier(offers, load, hop=hop))


def show(console: Console, plans: Plans) -> None:
    """The table, the advice in a sentence, and the frontier as bars."""
    load, best = plans.load, plans.table[0]
    names = ("replicas", "ms/token", "tried", "tok/s/GPU", "cost/h", "cost/1M", "keeps")
    table = Table("chain", *names, box=None, padding=(0, 1, 0, 0))
    for advice in plans.table[:BEST_FIRST]:
        table.add_row(
            " > ".join(advice.plan.levels),
            " / ".join(str(n) for n in advice.replicas),
            f"{1000 * advice.per_token:.1f}",
            "" if advice.simulated is None else f"{1000 * advice.simulated:.1f}",
            f"{advice.per_gpu:.1f}",
            f"{advice.per_hour:.2f}",
            f"{advice.per_million:.2f}",
            "yes" if advice.keeps else "no",
        )
    console.print(table)
    wish = "at the least cost" if load.per_token is None else f"within {1000 * load.per_token:g} ms a token"
    windows = ", ".join(f"{n} {w}" for n, w in zip(best.plan.levels, best.plan.windows, strict=True))
    mode = "overlapped" if best.plan.overlapped else "lockstep"
    used = ", ".join(f"{n} {share:.0%}" for n, share in zip(best.plan.levels, best.utilisation, strict=True))
    said = f"{_replicas(best)} replicas ({mode}, windows {windows}); in use: {used}"
    if not best.keeps:
        said = f"no chain does it; the nearest: {_replicas(best)} replicas"
    console.print(
        f"  {load.rate:g} requests/s of {load.tokens:g} tokens {wish}: {said}", highlight=False, soft_wrap=True
    )
    if plans.frontier:
        _bars(console, plans.frontier)


def _bars(console: Console, frontier: Sequence[Advice]) -> None:
    most = max(advice.per_million for advice in frontier)
    bars = Table("ms/token", "cost/1M", "", "replicas", box=None)
    for advice in frontier:
        length = max(1, round(BAR * advice.per_million / most)) if most else 1
        bars.add_row(f"{1000 * advice.per_token:.1f}", f"{advice.per_million:.2f}", "█" * length, _replicas(advice))
    console.print(bars)


def _replicas(advice: Advice) -> str:
    return ", ".join(f"{name} {n}" for name, n in zip(advice.plan.levels, advice.replicas, strict=True))


def _plain(advice: Advice) -> dict[str, Any]:
    plan = advice.plan
    return {
        "chain": list(plan.levels),
        "replicas": dict(zip(plan.levels, advice.replicas, strict=True)),
        "windows": dict(zip(plan.levels, plan.windows, strict=True)),
        "mode": "overlapped" if plan.overlapped else "lockstep",
        "lookahead": plan.lookahead,
        "ms_per_token": round(1000 * advice.per_token, 3),
        "ms_per_token_simulated": None if advice.simulated is None else round(1000 * advice.simulated, 3),
        "utilisation": {n: round(u, 4) for n, u in zip(plan.levels, advice.utilisation, strict=True)},
        "in_flight": round(advice.in_flight, 2),
        "gpus": advice.gpus,
        "tokens_per_second_per_gpu": round(advice.per_gpu, 3),
        "cost_per_hour": round(advice.per_hour, 4),
        "cost_per_million_tokens": round(advice.per_million, 4),
        "keeps_objective": advice.keeps,
    }
