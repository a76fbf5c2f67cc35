"""The adaptive router against every static chain and window of a grid, while the world changes.

Stub levels (``--family stub``): real processes with step times as on GPUs (2.5, 9 and 35 ms for few rows) whose
agreement and speed are changed while they run. From 16 rows on the target is bound by compute, as a model with 4-bit
weights is: there a wrong guess costs what a token costs, and no one plan is good everywhere. The demo family
(``--family demo``): real models, and a lookup as the draft; easy text is copied from the prompt, hard text is free.

One adaptive router lives through all phases in one go; in each it runs for ``--seconds``, with all it has to find
out. Another that learns nothing makes the same texts once with each static plan (pinned request by request).

- ms per token: whole requests, prompt and client included, over tokens; under load as each sequence sees it.
- worst_phase_vs_best_static: adaptive over the best static plan *of that phase*, the worst phase. The whole phase
  counts, also what is lost until the change is noticed; worst_settled_...: the second half of each phase.
- worst_vs_alone: adaptive over the target alone, the worst phase.
- vs_best_single_static: time of the best static plan over all phases, over the adaptive one's (equal tokens in each),
  as each sequence sees it; ..._on_the_clock: the same of the whole run, where sequences that run together share time.
- prediction_error_median: of the predicted time per token, each over 50 rounds of a chain (the router's own count).
- three_vs_two_*, overlap_vs_lockstep_*: the best pinned plans of a small grid at 0.3, 1 and 5 ms a hop (``--hops``);
  three_vs_draft_target_*: over the best of draft + target alone, as *two* may be mid + target.
- identical: every text of every run equals the target's alone.

A phase's plans within 10 % of its best, and the target alone, are measured once more, and the mean counts: else the
least of a dozen would be the luckiest. static_noise: the largest deviation of one measurement from its mean.
Results are written after each phase; what is left out of a run (``--parts``, ``--phases``, no ``--hops``) is kept.

    .venv/bin/python benchmarks/adaptive.py [--family stub] [--seconds 10] [--hops 0.3 1 5] [--parts adaptive]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

import results
from drawing import bars
from phases import CURVES, PHASES, Phase, grid
from prompts import LONG, SHORT
from specrouter_core.chain import Plan
from specrouter_local import models
from world import Delay, Made, Requests, World, draw, texts
from world import stub as stub_level

TOKENS = 32
DEMO_TOKENS = 48
DEMO_TEXTS = 2  # easy, and as many hard
DEMO_LOAD = 32
TEXTS = 3  # of one sequence at a time
HOP_TEXTS = 4
NATURAL_HOP_MS = 0.3  # of loopback, one way, about
NEAR = 1.10  # of the best: worth measuring again
REPEATS = 1


class Sheet:
    """All that was measured, by row and phase; as NAME.json has it, and goes back to it after each phase."""

    def __init__(self, name: str, plans: Sequence[str], phases: Collection[Phase]) -> None:
        self.name = name
        self._plans = plans
        self._phases = [phase.name for phase in phases]
        self._together = {phase.name: phase.together for phase in phases}
        self._path = results.FOLDER / f"{name}.json"
        old = (
            json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {"rows": [], "summary": {}}
        )
        self.rows: dict[str, dict[str, float]] = {
            row["plan"]: {phase: row[phase] for phase in self._phases if phase in row} for row in old["rows"]
        }
        self.crossed: dict[str, float] = {
            key: x for key, x in old["summary"].items() if key.startswith(("three_", "overlap_"))
        }

    def put(self, phase: str, found: Mapping[str, float]) -> None:
        """One phase's values, by row."""
        for row, value in found.items():
            self.rows.setdefault(row, {})[phase] = round(value, 4)

    def best(self, phase: str) -> str:
        """The best static plan."""
        return min(self._plans, key=lambda plan: self.rows[plan][phase])

    def write(self) -> None:
        """The table, the plot and the JSON, of the phases that have all."""
        needed = [*self._plans, "static noise", "adaptive", "rounds"]
        names = [name for name in self._phases if all(name in self.rows.get(row, {}) for row in needed)]
        if names:
            self._write(names)
        else:
            results.write(self.name, self._table(), self.crossed)

    def _ahead(self, together: Mapping[str, int]) -> float:
        """How far the best static plan of all phases is behind; sequences that run together share their time."""

        def spent(row: str) -> float:
            return sum(self.rows[row][name] / count for name, count in together.items())

        return min(map(spent, self._plans)) / spent("adaptive")

    def _table(self) -> list[dict[str, Any]]:
        return [{"plan": plan, **{p: row[p] for p in self._phases if p in row}} for plan, row in self.rows.items()]

    def _write(self, names: Sequence[str]) -> None:
        rows, best = self.rows, [self.rows[self.best(name)][name] for name in names]
        ours, settled = rows["adaptive"], rows["adaptive, settled"]
        errors = [rows["prediction error"][name] for name in names if name in rows.get("prediction error", {})]
        summary: dict[str, float] = {
            "worst_phase_vs_best_static": max(ours[n] / least for n, least in zip(names, best, strict=True)),
            "worst_settled_vs_best_static": max(settled[n] / least for n, least in zip(names, best, strict=True)),
            "worst_vs_alone": max(ours[n] / rows["alone"][n] for n in names),
            "vs_best_single_static": self._ahead({name: 1 for name in names}),
            "vs_best_single_static_on_the_clock": self._ahead({name: self._together[name] for name in names}),
            "static_noise": max(rows["static noise"][n] for n in names),
            "prediction_error_median": statistics.median(errors) if errors else 1.0,
            "switches_per_1000_rounds": 1000
            * sum(rows["switches"][n] for n in names)
            / max(sum(rows["rounds"][n] for n in names), 1),
            "identical": min(min(rows["identical"][n], rows["static identical"][n]) for n in names),
        }
        results.write(self.name, self._table(), {**{key: round(x, 3) for key, x in summary.items()}, **self.crossed})
        series = {
            "adaptive": [ours[name] for name in names],
            "best static of the phase": best,
            "target alone": [rows["alone"][name] for name in names],
        }
        plot = bars("Milliseconds per token", names, series)
        (results.FOLDER / f"{self.name}.svg").write_text(plot, encoding="utf-8")


def pin(plan: Plan) -> dict[str, Any]:
    """A plan as a request asks for it."""
    return {
        "chain": [*plan.levels],
        "windows": [*plan.windows],
        "mode": "overlapped" if plan.overlapped else "lockstep",
        "lookahead": plan.lookahead,
        "least": [*plan.least],
    }


class Contest:
    """One adaptive router and one that learns nothing, before the same levels."""

    def __init__(self, world: World, sheet: Sheet, plans: Mapping[str, Plan], args: argparse.Namespace) -> None:
        self.sheet = sheet
        self.plans = {name: pin(plan) for name, plan in plans.items()}
        self.parts = args.parts
        self.seconds = args.seconds
        self.fixed = world.router("fixed")
        self.adaptive = world.router("adaptive") if "adaptive" in args.parts else ""
        self.want: dict[int, list[int]] = {}
        self._console = Console(stderr=True)
        self._found: dict[tuple[Any, ...], dict[str, float]] = {}  # of the static plans, by world and texts

    def run(self, phase: Phase, requests: Requests) -> None:
        """A whole phase."""
        missing = {number: request for number, request in requests.items() if number not in self.want}
        if missing:  # what the texts must be
            self.want |= asyncio.run(draw(self.fixed, missing, phase.together, self.plans["alone"]))[1]
        if "adaptive" in self.parts:
            self.sheet.put(phase.name, self.live(requests, phase.together))
        if "static" in self.parts:
            same = phase.world, tuple(requests)
            if same not in self._found:
                self._found[same] = self.still(requests, phase.together)
            self.sheet.put(phase.name, self._found[same])
        self.sheet.write()

    def live(self, requests: Requests, together: int) -> dict[str, float]:
        """The adaptive router's part of a phase."""
        begin = time.monotonic()
        passes: list[tuple[float, float]] = []
        count: Counter[str] = Counter()
        chains: Counter[str] = Counter()
        identical = True
        while time.monotonic() - begin < self.seconds or len(passes) < 2:
            ms, got, accounts = asyncio.run(draw(self.adaptive, requests, together, {}))
            passes.append((time.monotonic() - begin, ms))
            identical &= all(got[number] == self.want[number] for number in got)
            for account in accounts:
                count.update(switches=account["switches"], rounds=account["rounds"])
                for chain in account["chains"]:
                    chains[f"{'+'.join(chain['levels'])} {chain['mode']}"] += chain["tokens"]
        found = status(self.adaptive)
        self._console.print(found["plans"][:4], dict(chains), highlight=False)
        values = {
            "adaptive": statistics.mean(ms for _, ms in passes),
            "adaptive, settled": statistics.mean(ms for at, ms in passes if at > passes[-1][0] / 2),
            "identical": float(identical),
            **count,
        }
        error = found["prediction_error_median"]
        return values if error is None else {**values, "prediction error": error}

    def still(self, requests: Requests, together: int) -> dict[str, float]:
        """The static plans' part."""
        seen: dict[str, list[float]] = {name: [] for name in self.plans}
        identical = True

        def measure(names: Iterable[str]) -> None:
            nonlocal identical
            for name in names:
                ms, got, _ = asyncio.run(draw(self.fixed, requests, together, self.plans[name]))
                seen[name].append(ms)
                identical &= all(got[number] == self.want[number] for number in got)

        measure(self.plans)
        least = min(ms for (ms,) in seen.values())
        near = [name for name, (ms,) in seen.items() if ms <= NEAR * least or name == "alone"]
        for _ in range(REPEATS):
            measure(near)
        means = {name: statistics.mean(ms) for name, ms in seen.items()}
        noise = max(abs(ms / means[name] - 1) for name in near for ms in seen[name])
        return {**means, "static noise": noise, "static identical": float(identical)}


async def hops(world: World, hop_ms: float) -> dict[str, float]:
    """The best of a few pinned plans per kind, at a hop of so many milliseconds one way."""
    delays = [Delay(first, (hop_ms - NATURAL_HOP_MS) / 1000) for first, *_ in world.addresses.values()]
    addresses = dict(zip(world.addresses, [[await delay.start()] for delay in delays], strict=True))
    url = await asyncio.to_thread(world.router, "fixed", addresses if hop_ms > NATURAL_HOP_MS else world.addresses)
    three = ("draft", "mid", "target")
    kinds = {
        "draft_target": [Plan(("draft", "target"), (8, 8), n, least=(1, 3)) for n in (8, 12)],
        "mid_target": [Plan(("mid", "target"), (8, 8), n, least=(1, 2)) for n in (8, 12)],
        "three": [
            Plan(three, (8, 8, 8), n, least=least) for n, least in itertools.product((12, 16), ((1, 2, 2), (1, 4, 1)))
        ],
        "lockstep": [Plan(three, (m, m, n), 16, overlapped=False) for m, n in ((2, 4), (3, 5), (2, 6))],
    }
    best = {}
    for kind, plans in kinds.items():
        best[kind] = min([(await draw(url, texts(range(HOP_TEXTS), TOKENS), 1, pin(plan)))[0] for plan in plans])
    return {**best, "two": min(best["draft_target"], best["mid_target"])}


def status(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/v1/status", timeout=10, trust_env=False).json()["adaptive"]
    return found


def stub_phases(args: argparse.Namespace, world: World, sheet: Sheet) -> None:
    """The phases on stub levels, one after the other."""
    contest = Contest(world, sheet, grid(), args)
    for phase in PHASES:
        if args.phases and phase.name not in args.phases:
            continue
        world.become("draft", phase.draft)
        world.become("mid", phase.mid, phase.slowdown)
        if phase.replicas > 1:
            world.add_replica("target")
        contest.run(phase, texts(range(max(TEXTS, phase.together)), TOKENS))


@contextmanager
def stub_world() -> Iterator[World]:
    """Controlled stub levels."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), {name: stub_level(curve) for name, curve in CURVES.items()}, spare="target")
        try:
            yield world
        finally:
            world.close()


def stub(args: argparse.Namespace, console: Console) -> None:
    """Phases and hops on stub levels."""
    sheet = Sheet("adaptive", list(grid()), PHASES)
    with stub_world() as world:
        if args.parts:
            stub_phases(args, world, sheet)
        world.become("draft", 0.65)
        world.become("mid", 0.82)
        for hop in args.hops:
            best = asyncio.run(hops(world, hop))
            label = f"{hop:g}".replace("0.", "0")
            for kind in ("two", "draft_target"):
                sheet.crossed[f"three_vs_{kind}_{label}"] = round(best[kind] / best["three"], 3)
            sheet.crossed[f"overlap_vs_lockstep_{label}"] = round(best["lockstep"] / best["three"], 3)
            console.print(f"hop {hop} ms: {best}", highlight=False)
            sheet.write()


def demo_requests(prompts: Sequence[str], first: int) -> Requests:
    """Greedy chat requests, numbered from ``first`` on."""
    body = {"model": "bench", "max_tokens": DEMO_TOKENS, "temperature": 0}
    return {
        first + i: ("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": prompt}]})
        for i, prompt in enumerate(prompts)
    }


def demo_grid() -> dict[str, Plan]:
    """Every chain of the demo family, in lock-step: its levels share the cores."""
    plans = {"alone": Plan(("target",), (8,), 1, overlapped=False)}
    for chain in (("draft", "target"), ("mid", "target"), ("draft", "mid", "target")):
        for window in (3, 8):
            plans[f"{'+'.join(chain)} {window}"] = Plan(chain, (window,) * len(chain), 2 * window, overlapped=False)
    return plans


@contextmanager
def demo_world() -> Iterator[World]:
    """The levels of the demo family, one thread each."""
    if not models.present():
        raise SystemExit("the demo's weights are missing: specrouter models pull demo")
    directory = str(models.directory())
    slots = ["--slots", str(2 * DEMO_LOAD)]  # for the sequences of two routers
    torch = ["--engine", "torch", "--model", directory, "--threads", "1", "--max-length", "512", *slots]
    fields = {"engine": "torch", "model": directory}
    levels = {
        "draft": Made(["--engine", "ngram", *slots], {"engine": "ngram"}),
        "mid": Made([*torch, "--quantization", "int4"], fields),
        "target": Made([*torch, "--dtype", "float32"], fields),
    }
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), levels, tokenizer=directory, mode="lockstep")
        try:
            yield world
        finally:
            world.close()


def demo_phases() -> dict[Phase, Requests]:
    """What is asked in each phase: easy texts, hard ones, or both."""
    easy, hard = demo_requests(LONG[:DEMO_TEXTS], 0), demo_requests(SHORT[:DEMO_TEXTS], 10)
    prompts = [(LONG, SHORT)[i % 2][i // 2 % 3] for i in range(DEMO_LOAD)]
    many = demo_requests([f"{prompt}\n\n({i})" for i, prompt in enumerate(prompts)], 100)
    return {
        Phase("easy text", 1.0): easy,
        Phase("hard text", 1.0): hard,
        Phase("mid 5x slower", 1.0, slowdown=5): {**easy, **hard},
        Phase("draft at 0.2", 0.2): easy,
        Phase("load 4", 1.0, together=4): {**easy, **hard},
        Phase("load 32", 1.0, together=DEMO_LOAD): many,
        Phase("load 1 again", 1.0): easy,
    }


def demo(args: argparse.Namespace) -> None:
    """The phases on the demo family."""
    phases = demo_phases()
    sheet = Sheet("adaptive-demo", list(demo_grid()), phases)
    with demo_world() as world:
        contest = Contest(world, sheet, demo_grid(), args)
        for phase, requests in phases.items():
            if args.phases and phase.name not in args.phases:
                continue
            world.become("draft", phase.draft)
            world.become("mid", 1.0, phase.slowdown)
            contest.run(phase, requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("stub", "demo"), default="stub")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the adaptive router in each phase")
    parser.add_argument("--phases", nargs="*", help="only these")
    parser.add_argument("--parts", nargs="*", choices=("adaptive", "static"), default=["adaptive", "static"])
    parser.add_argument("--hops", type=float, nargs="*", default=[], help="milliseconds one way, for example 0.3 1 5")
    args = parser.parse_args()
    console = Console(stderr=True)
    if args.family == "stub":
        stub(args, console)
    else:
        demo(args)


if __name__ == "__main__":
    main()
