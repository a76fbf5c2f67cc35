"""How the router chooses, as tables: plans, levels, who agrees with whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

PLANS = 8  # rows shown


def decisions(adaptive: Mapping[str, Any], levels: Sequence[str]) -> Group:
    """The ``adaptive`` part of /v1/status."""
    parts: list[RenderableType] = []
    if adaptive["plans"]:
        parts.append(_plans(adaptive["plans"][:PLANS]))
    parts.append(_profiles(adaptive["profiles"]))
    if adaptive["agreement"]:
        parts.append(_agreement(adaptive["agreement"], levels))
    if len(adaptive["tiers"]) > 1:
        parts.append(_tiers(adaptive["tiers"]))
    parts.append(Text(_summary(adaptive), style="dim"))
    return Group(*parts)


def _plans(plans: Sequence[Mapping[str, Any]]) -> Table:
    """Best first; what a common sequence would use is on top."""
    table = _table("chain", "mode", "windows", "predicted", "measured", "correction", "rounds", left=2)
    for i, plan in enumerate(plans):
        alone = len(plan["levels"]) == 1
        table.add_row(
            Text(" > ".join(plan["levels"]), style="bold green" if i == 0 else ""),
            "" if alone else plan["mode"],
            "" if alone else " ".join(map(str, plan["windows"])),
            f"{plan['predicted_ms']:.1f} ms",
            "" if plan["measured_ms"] is None else f"{plan['measured_ms']:.1f} ms",
            f"{plan['correction']:.2f}",
            str(plan["rounds"]),
        )
    return table


def _profiles(profiles: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = list(next(iter(profiles.values()))["step_ms"])
    columns = [f"{count} row{'s' * (count != '1')}" for count in rows]
    table = _table("level", *columns, "queue", "hop", "batch", "judged", left=1)
    for name, profile in profiles.items():
        steps = [f"{profile['step_ms'][count]:.1f} ms" for count in rows]
        table.add_row(
            Text(name, style="bold"),
            *steps,
            f"{profile['queue_ms']:.1f} ms",
            f"{profile['hop_ms']:.1f} ms",
            f"{profile['batch']:.1f}",
            f"{100 * profile['judged_share']:.1f} %",
        )
    return table


def _agreement(pairs: Sequence[Mapping[str, Any]], levels: Sequence[str]) -> Table:
    """Lower levels down, upper levels across."""
    rates = {(pair["lower"], pair["upper"]): f"{100 * pair['rate']:.0f} %" for pair in pairs}
    table = _table("agrees with", *levels[1:], left=1)
    for lower in levels[:-1]:
        table.add_row(Text(lower, style="bold"), *(rates.get((lower, upper), "") for upper in levels[1:]))
    return table


def _tiers(tiers: Sequence[Mapping[str, Any]]) -> Table:
    """Who goes first: what each tier's common sequence would use."""
    table = _table("priority", "chain", "windows", "sequences", "planned as", left=2)
    for tier in tiers:
        ranks = ", ".join(map(str, tier["priorities"])) + (", behind" if tier["behind"] else "")
        alone = len(tier["levels"]) == 1
        table.add_row(
            Text(ranks, style="bold"),
            " > ".join(tier["levels"]),
            "" if alone else " ".join(map(str, tier["windows"])),
            str(tier["sequences"]),
            f"{tier['sharing']:.0f} sharing + {tier['beside']:.0f}",
        )
    return table


def _summary(adaptive: Mapping[str, Any]) -> str:
    said = [f"{adaptive['switches_per_1000_rounds']:.1f} switches per 1000 rounds"]
    if adaptive["prediction_error_median"] is not None:
        said.append(f"predictions off by {100 * adaptive['prediction_error_median']:.0f} % (median)")
    if adaptive["absent"]:
        said.append(f"not usable: {', '.join(adaptive['absent'])}")
    return "  " + "; ".join(said)


def _table(*columns: str, left: int) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right")
    return table
