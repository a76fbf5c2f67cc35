"""The adaptive router against every static chain and window of a grid, while the world changes.

Stub levels (``--family stub``): real processes with step times as on GPUs (2.5, 9 and 35 ms for few rows) whose
agreement and speed are changed while they run. From 16 rows on the target is bound by compute, as a model with 4-bit
weights is: there a wrong guess costs what a token costs, and no one plan is good everywhere. The demo family
(``--family demo``): easy text is copied from the prompt, hard text is free.

One adaptive router lives through all phases in one go; in each it runs for ``--seconds``, with all it has to find
out. Another that learns nothing makes the same texts once with each static plan (pinned request by request).

- ms per token: whole requests, prompt and client included, over tokens; under load as each sequence sees it.
- worst_phase_vs_best_static: adaptive over the best static plan *of that phase*, the worst phase. The whole phase
  counts, also what is lost until the change is noticed; worst_settled_...: the second half of each phase.
- worst_vs_alone: adaptive over the target alone, the worst phase.
- vs_best_single_static: time of the best static plan over all phases, over the adaptive one's (equal tokens in each).
- prediction_error_median: of the predicted time per token, each over 50 rounds of a chain (the router's own count).
- three_vs_two_*, overlap_vs_lockstep_*: the best pinned plans of a small grid at 0.3, 1 and 5 ms a hop (``--hops``).
- identical: every text of every run equals the target's alone.

Results are written after each phase; what is left out of a run (``--no-phases``, no ``--hops``) is kept as it was.

    .venv/bin/python benchmarks/adaptive.py [--family stub] [--seconds 10] [--hops 0.3 1 5]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

import results
from drawing import bars
from prompts import LONG, SHORT
from specrouter_local import models
from world import Delay, Made, Requests, World, draw, texts
from world import stub as stub_level

CURVES = {
    "draft": "1:2.5,16:2.6,64:3.5,128:6,256:11",
    "mid": "1:9,16:9.5,64:13,128:22,256:42",
    "target": "1:35,16:40,32:70,64:135,128:265,256:525",
}
TOKENS = 32
DEMO_TOKENS = 64
TEXTS = 3  # of one sequence at a time
HOP_TEXTS = 4
WINDOWS = (2, 4, 8)
NATURAL_HOP_MS = 0.3  # of loopback, one way, about
REPLICA = "a replica added"


@dataclass(frozen=True)
class Phase:
    """A state of the world."""

    name: str
    draft: float = 0.65  # agreement
    mid: float = 0.82
    slowdown: float = 1.0  # of mid
    together: int = 1

    @property
    def world(self) -> tuple[float, ...]:
        """All but the name."""
        return self.draft, self.mid, self.slowdown, self.together, self.name == REPLICA


PHASES = (
    Phase("usual"),
    Phase("easy text", 0.85, 0.95),
    Phase("hard text", 0.30, 0.50),
    Phase("mid 5x slower", slowdown=5),
    Phase("draft at 0.2", draft=0.2),
    Phase("load 8", together=8),
    Phase("load 32", together=32),
    Phase("hard text at load 32", 0.30, 0.50, together=32),
    Phase(REPLICA, together=32),
    Phase("load 1 again"),
)


@dataclass
class Seen:
    """What one phase gave."""

    phase: Phase
    adaptive: float = 0.0  # ms per token
    settled: float = 0.0  # in the second half
    statics: dict[str, float] = field(default_factory=dict)
    chains: dict[str, int] = field(default_factory=dict)  # tokens of the adaptive's second half by chain
    switches: int = 0
    rounds: int = 0
    error: float | None = None
    identical: bool = True

    @property
    def best(self) -> str:
        """The best static plan."""
        return min(self.statics, key=lambda name: self.statics[name])


def grid() -> dict[str, dict[str, Any]]:
    """The static plans: every chain, windows of 2, 4 and 8 overlapped, 4 in lock-step."""
    plans: dict[str, dict[str, Any]] = {"alone": {"chain": ["target"], "windows": [8], "lookahead": 1}}
    for chain in (["draft", "target"], ["mid", "target"], ["draft", "mid", "target"]):
        for mode, window in [*(("overlapped", w) for w in WINDOWS), ("lockstep", 4)]:
            plans[f"{'+'.join(chain)} {mode} {window}"] = pin(chain, [window] * len(chain), mode, 2 * window)
    return plans


def pin(chain: Sequence[str], windows: Sequence[int], mode: str, lookahead: int, least: Sequence[int] = ()) -> dict:
    return {"chain": [*chain], "windows": [*windows], "mode": mode, "lookahead": lookahead, "least": [*least]}


class Contest:
    """One adaptive router and one that learns nothing, before the same levels."""

    def __init__(self, adaptive: str, fixed: str, plans: Mapping[str, dict[str, Any]], seconds: float) -> None:
        self.adaptive = adaptive
        self.fixed = fixed
        self.plans = plans
        self.seconds = seconds
        self.want: dict[int, list[int]] = {}

    def learn(self, requests: Requests, together: int) -> None:
        """What the texts must be."""
        missing = {number: request for number, request in requests.items() if number not in self.want}
        if missing:
            self.want |= asyncio.run(draw(self.fixed, missing, together, self.plans["alone"]))[1]

    def live(self, requests: Requests, seen: Seen) -> None:
        """The adaptive router's part of a phase."""
        begin = time.monotonic()
        passes = []
        while time.monotonic() - begin < self.seconds or len(passes) < 2:
            ms, got, accounts = asyncio.run(draw(self.adaptive, requests, seen.phase.together, {}))
            passes.append((time.monotonic() - begin, ms, accounts))
            seen.identical &= all(got[number] == self.want[number] for number in got)
        half = [entry for entry in passes if entry[0] > passes[-1][0] / 2]
        seen.adaptive = statistics.mean(ms for _, ms, _ in passes)
        seen.settled = statistics.mean(ms for _, ms, _ in half)
        for at, _, accounts in passes:
            for account in accounts:
                seen.switches += account["switches"]
                seen.rounds += account["rounds"]
                for chain in account["chains"] if at > passes[-1][0] / 2 else ():
                    name = f"{'+'.join(chain['levels'])} {chain['mode']}"
                    seen.chains[name] = seen.chains.get(name, 0) + chain["tokens"]

    def still(self, requests: Requests, seen: Seen) -> None:
        """The static plans' part."""
        for name, ours in self.plans.items():
            seen.statics[name], got, _ = asyncio.run(draw(self.fixed, requests, seen.phase.together, ours))
            seen.identical &= all(got[number] == self.want[number] for number in got)

    def run(self, phase: Phase, requests: Requests, before: Sequence[Seen], console: Console) -> Seen:
        """A whole phase."""
        self.learn(requests, phase.together)
        seen = Seen(phase)
        self.live(requests, seen)
        found = status(self.adaptive)
        seen.error = found["prediction_error_median"]
        same = next((old for old in before if old.phase.world == phase.world), None)
        if same is None:
            self.still(requests, seen)
        else:
            seen.statics = same.statics
        console.print(found["plans"][:4], highlight=False)
        console.print(
            f"{phase.name}: adaptive {seen.adaptive:.1f} (settled {seen.settled:.1f}), "
            f"best static {seen.statics[seen.best]:.1f} ({seen.best}), alone {seen.statics['alone']:.1f} ms; "
            f"{seen.switches} switches in {seen.rounds} rounds, error {seen.error}; {seen.chains}",
            highlight=False,
        )
        return seen


async def hops(world: World, hop_ms: float) -> dict[str, float]:
    """The best of a few pinned plans per kind, at a hop of so many milliseconds one way."""
    delays = [Delay(first, (hop_ms - NATURAL_HOP_MS) / 1000) for first, *_ in world.addresses.values()]
    addresses = dict(zip(world.addresses, [[await delay.start()] for delay in delays], strict=True))
    url = await asyncio.to_thread(world.router, "fixed", addresses if hop_ms > NATURAL_HOP_MS else world.addresses)
    kinds: dict[str, list[dict[str, Any]]] = {
        "two": [pin(["draft", "target"], [8, 8], "overlapped", n, [1, 3]) for n in (8, 12)]
        + [pin(["mid", "target"], [8, 8], "overlapped", 12, [1, 2])],
        "three": [
            pin(["draft", "mid", "target"], [8, 8, 8], "overlapped", n, least)
            for n, least in itertools.product((12, 16), ([1, 2, 2], [1, 4, 1]))
        ],
        "lockstep": [pin(["draft", "mid", "target"], [m, m, n], "lockstep", 16) for m, n in ((2, 4), (3, 5), (2, 6))],
    }
    best = {}
    for kind, plans in kinds.items():
        best[kind] = min([(await draw(url, texts(range(HOP_TEXTS), TOKENS), 1, plan))[0] for plan in plans])
    return best


def status(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/v1/status", timeout=10, trust_env=False).json()["adaptive"]
    return found


def stub_phases(args: argparse.Namespace, world: World, console: Console) -> Iterator[Seen]:
    """The phases on stub levels, one after the other."""
    contest = Contest(world.router("adaptive"), world.router("fixed"), grid(), args.seconds)
    before: list[Seen] = []
    for phase in PHASES:
        if args.phases and phase.name not in args.phases:
            continue
        world.become("draft", phase.draft)
        world.become("mid", phase.mid, phase.slowdown)
        if phase.name == REPLICA:
            world.add_replica("target")
        requests = texts(range(max(TEXTS, phase.together)), TOKENS)
        before.append(contest.run(phase, requests, before, console))
        yield before[-1]


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
    everything: list[Seen] = []
    with stub_world() as world:
        if not args.no_phases:
            for seen in stub_phases(args, world, console):
                everything.append(seen)
                report("adaptive", everything)
        world.become("draft", 0.65)
        world.become("mid", 0.82)
        crossed: dict[str, float] = {}
        for hop in args.hops:
            best = asyncio.run(hops(world, hop))
            label = f"{hop:g}".replace("0.", "0")
            crossed[f"three_vs_two_{label}"] = round(best["two"] / best["three"], 3)
            crossed[f"overlap_vs_lockstep_{label}"] = round(best["lockstep"] / best["three"], 3)
            console.print(f"hop {hop} ms: {best}", highlight=False)
            extend("adaptive", crossed)


def demo_requests(prompts: Sequence[str], first: int) -> Requests:
    """Greedy chat requests, numbered from ``first`` on."""
    body = {"model": "bench", "max_tokens": DEMO_TOKENS, "temperature": 0}
    return {
        first + i: ("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": prompt}]})
        for i, prompt in enumerate(prompts)
    }


def demo_grid() -> dict[str, dict[str, Any]]:
    """Every chain of the demo family, in lock-step: its levels share the cores."""
    plans: dict[str, dict[str, Any]] = {"alone": {"chain": ["target"], "windows": [8], "lookahead": 1}}
    for chain in (["draft", "target"], ["mid", "target"], ["draft", "mid", "target"]):
        for window in (3, 8):
            plans[f"{'+'.join(chain)} {window}"] = pin(chain, [window] * len(chain), "lockstep", 2 * window)
    return plans


@contextmanager
def demo_world() -> Iterator[World]:
    """The levels of the demo family, one thread each."""
    if not models.present():
        raise SystemExit("the demo's weights are missing: specrouter models pull demo")
    directory = str(models.directory())
    torch = ["--engine", "torch", "--model", directory, "--threads", "1"]
    fields = {"engine": "torch", "model": directory}
    levels = {
        "draft": Made(["--engine", "ngram"], {"engine": "ngram"}),
        "mid": Made([*torch, "--quantization", "int4"], fields),
        "target": Made([*torch, "--dtype", "float32"], fields),
    }
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), levels, tokenizer=directory, mode="lockstep")
        try:
            yield world
        finally:
            world.close()


def demo(args: argparse.Namespace, console: Console) -> None:
    """The phases on the demo family."""
    easy, hard = demo_requests(LONG, 0), demo_requests(SHORT, 10)
    both = {**easy, **hard}
    phases = (
        (Phase("easy text"), easy),
        (Phase("hard text"), hard),
        (Phase("load 2", together=2), both),
        (Phase("load 4", together=4), both),
        (Phase("easy text again"), easy),
    )
    everything: list[Seen] = []
    with demo_world() as world:
        contest = Contest(world.router("adaptive"), world.router("fixed"), demo_grid(), args.seconds)
        for phase, requests in phases:
            if not args.phases or phase.name in args.phases:
                everything.append(contest.run(phase, requests, [], console))
                report("adaptive-demo", everything)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("stub", "demo"), default="stub")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the adaptive router in each phase")
    parser.add_argument("--phases", nargs="*", help="only these")
    parser.add_argument("--no-phases", action="store_true", help="only the hops")
    parser.add_argument("--hops", type=float, nargs="*", default=[], help="milliseconds one way, for example 0.3 1 5")
    args = parser.parse_args()
    console = Console(stderr=True)
    if args.family == "stub":
        stub(args, console)
    else:
        demo(args, console)


def extend(name: str, summary: Mapping[str, float]) -> None:
    """Put figures into the results that there are."""
    path = results.FOLDER / f"{name}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": [], "summary": {}}
    results.write(name, old["rows"], {**old["summary"], **summary})


def report(name: str, everything: Sequence[Seen]) -> None:
    """The table, the plot and the JSON, as far as the phases have come."""
    rows: list[dict[str, Any]] = [
        {"plan": "adaptive", **{seen.phase.name: round(seen.adaptive, 2) for seen in everything}},
        {"plan": "adaptive, settled", **{seen.phase.name: round(seen.settled, 2) for seen in everything}},
    ]
    plans = list(everything[0].statics)
    for plan in plans:
        rows.append({"plan": plan, **{seen.phase.name: round(seen.statics[plan], 2) for seen in everything}})
    single = min(sum(seen.statics[plan] for seen in everything) for plan in plans)
    errors = [seen.error for seen in everything if seen.error is not None]
    summary: dict[str, float] = {
        "worst_phase_vs_best_static": max(seen.adaptive / seen.statics[seen.best] for seen in everything),
        "worst_settled_vs_best_static": max(seen.settled / seen.statics[seen.best] for seen in everything),
        "worst_vs_alone": max(seen.adaptive / seen.statics["alone"] for seen in everything),
        "vs_best_single_static": single / sum(seen.adaptive for seen in everything),
        "prediction_error_median": statistics.median(errors) if errors else 1.0,
        "switches_per_1000_rounds": 1000
        * sum(seen.switches for seen in everything)
        / max(sum(seen.rounds for seen in everything), 1),
        "identical": float(all(seen.identical for seen in everything)),
    }
    path = results.FOLDER / f"{name}.json"
    old = json.loads(path.read_text(encoding="utf-8"))["summary"] if path.is_file() else {}
    kept = {key: value for key, value in old.items() if "_vs_two_" in key or "_vs_lockstep_" in key}
    results.write(name, rows, {**{key: round(value, 3) for key, value in summary.items()}, **kept})
    series = {
        "adaptive": [seen.adaptive for seen in everything],
        "best static of the phase": [seen.statics[seen.best] for seen in everything],
        "target alone": [seen.statics["alone"] for seen in everything],
    }
    (results.FOLDER / f"{name}.svg").write_text(
        bars("Milliseconds per token", [seen.phase.name for seen in everything], series), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
