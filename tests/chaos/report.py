"""What a run came to: by kind of fault, by step of the protocol; and several runs as one."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from episode import Outcome

KINDS = ("wrong", "lost", "doubled", "fenced", "rounds", "leaked", "traced")
SUMS = ("episodes", "faults", "sequences", "all", "broken", *KINDS)


def row(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the episodes of one kind came to."""
    return {
        "fault": name,
        "episodes": len(outcomes),
        "faults": sum(len(outcome.plan.faults) for outcome in outcomes),
        "sequences": sum(outcome.faulted for outcome in outcomes),
        "all": sum(len(outcome.plan.asks) for outcome in outcomes),
        "broken": sum(outcome.broken for outcome in outcomes),
        "gap_s": round(max(outcome.gap_s for outcome in outcomes), 2),
        **{kind: sum(outcome.count(kind) for outcome in outcomes) for kind in KINDS},
    }


def piece(seed: int, outcomes: Sequence[Outcome], held: int, void: int) -> dict[str, Any]:
    """One run. ``held``: what levels still had when all was over; ``void``: episodes that do not count."""
    by_fault: dict[str, list[Outcome]] = defaultdict(list)
    steps: Counter[str] = Counter()
    for outcome in outcomes:
        by_fault[outcome.plan.name].append(outcome)
        for fault, cued in zip(outcome.plan.faults, outcome.cued, strict=True):
            steps[fault.moment if cued else "at no step: it did not come in time"] += 1
    rows = [row(name, some) for name, some in by_fault.items()]
    return {"seeds": [seed], "rows": rows, "steps": dict(steps), "held": held, "void": void}


def merged(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs as one."""
    rows: dict[str, dict[str, Any]] = {}
    steps: Counter[str] = Counter()
    for one in pieces:
        steps.update(one["steps"])
        for found in one["rows"]:
            name = found["fault"]
            if name not in rows:
                rows[name] = dict(found)
                continue
            rows[name] |= {key: rows[name][key] + found[key] for key in SUMS}
            rows[name]["gap_s"] = max(rows[name]["gap_s"], found["gap_s"])
    return {
        "seeds": [seed for one in pieces for seed in one["seeds"]],
        "rows": list(rows.values()),
        "steps": dict(steps),
        "held": sum(one["held"] for one in pieces),
        "void": sum(one["void"] for one in pieces),
    }


def table(one: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, first by kind and then by step, and the sums."""
    rows = one["rows"]
    sums = {key: sum(found[key] for found in rows) for key in SUMS if key != "all"}
    sums["leaked"] += one["held"]
    summary = {"seeds": " ".join(map(str, one["seeds"])), **sums, "gap_s": max(found["gap_s"] for found in rows)}
    summary["void"] = one["void"]
    steps = [{"fault": name, "faults": count} for name, count in sorted(one["steps"].items())]
    return [*rows, *steps], summary


def read(paths: Sequence[Path]) -> dict[str, Any]:
    """Runs that were kept, as one."""
    return merged([json.loads(path.read_text()) for path in paths])
