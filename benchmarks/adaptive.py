"""The adaptive router against every static chain and window of a grid, while the world changes.

Real processes: stub levels with step times as on GPUs (2.5, 9 and 35 ms for few rows), whose agreement and speed are
changed while they run, Valkey, and two routers over them: one adaptive, which lives through all phases in one go,
and one that learns nothing, for the static plans (pinned request by request). In each phase the adaptive one runs for
``--seconds``, with all it has to find out, then each static plan makes the same texts once.

- ms per token: whole requests, prompt and client included, over tokens; under load as each sequence sees it.
- worst_phase_vs_best_static: adaptive over the best static plan *of that phase*, the worst phase. The whole phase
  counts, also what is lost until the change is noticed; worst_settled_...: the second half of each phase.
- worst_vs_alone: adaptive over the target alone, the worst phase.
- vs_best_single_static: time of the best static plan over all phases, over the adaptive one's (equal tokens in each).
- prediction_error_median: of the predicted time per token, over all phases (the router's own count).
- three_vs_two_*, overlap_vs_lockstep_*: the best pinned plans of a small grid at 0.3, 1 and 5 ms a hop.
- identical: every text of every run equals the target's alone.

No phase adds a replica: a router drives one replica of each level so far.

    .venv/bin/python benchmarks/adaptive.py [--seconds 16]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

import results
from drawing import bars
from world import Delay, World, draw

CURVES = {
    "draft": "1:2.5,16:2.6,64:3.5,128:6,256:11",
    "mid": "1:9,16:9.5,64:13,128:22,256:42",
    "target": "1:35,16:37,64:50,128:85,256:160",
}
TOKENS = 32
TEXTS = 4
WINDOWS = (2, 4, 8)
NATURAL_HOP_MS = 0.3  # of loopback, one way, about


@dataclass(frozen=True)
class Phase:
    """A state of the world."""

    name: str
    draft: float  # agreement
    mid: float
    slowdown: float = 1.0  # of mid
    together: int = 1

    @property
    def world(self) -> tuple[float, ...]:
        """All but the name."""
        return self.draft, self.mid, self.slowdown, self.together


PHASES = (
    Phase("usual", 0.65, 0.82),
    Phase("easy text", 0.85, 0.95),
    Phase("hard text", 0.30, 0.50),
    Phase("mid 5x slower", 0.65, 0.82, slowdown=5),
    Phase("draft at 0.2", 0.20, 0.82),
    Phase("load 8", 0.65, 0.82, together=8),
    Phase("load 32", 0.65, 0.82, together=32),
    Phase("load 1 again", 0.65, 0.82),
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


def live(world: World, url: str, phase: Phase, seconds: float, want: Mapping[int, list[int]], seen: Seen) -> None:
    """The adaptive router's part of a phase."""
    texts = range(max(TEXTS, phase.together))
    begin = time.monotonic()
    passes = []
    while time.monotonic() - begin < seconds or len(passes) < 2:
        ms, got, accounts = asyncio.run(draw(url, texts, TOKENS, phase.together, {}))
        passes.append((time.monotonic() - begin, ms, accounts))
        seen.identical &= all(got[number] == want[number] for number in got)
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


def still(url: str, phase: Phase, want: Mapping[int, list[int]], seen: Seen) -> None:
    """The static plans' part."""
    texts = range(max(TEXTS, phase.together))
    for name, ours in grid().items():
        seen.statics[name], got, _ = asyncio.run(draw(url, texts, TOKENS, phase.together, ours))
        seen.identical &= all(got[number] == want[number] for number in got)


async def hops(world: World, hop_ms: float) -> dict[str, float]:
    """The best of a few pinned plans per kind, at a hop of so many milliseconds one way."""
    delays = [Delay(address, (hop_ms - NATURAL_HOP_MS) / 1000) for address in world.addresses.values()]
    addresses = dict(zip(world.addresses, [await delay.start() for delay in delays], strict=True))
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
        best[kind] = min([(await draw(url, range(TEXTS), TOKENS, 1, plan))[0] for plan in plans])
    return best


def status(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/v1/status", timeout=10, trust_env=False).json()["adaptive"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=16.0, help="of the adaptive router in each phase")
    parser.add_argument("--phases", nargs="*", help="only these")
    parser.add_argument("--hops", type=float, nargs="*", default=[0.3, 1.0, 5.0], help="milliseconds one way")
    args = parser.parse_args()
    console = Console(stderr=True)
    everything: list[Seen] = []
    errors: list[float] = []
    crossed: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), CURVES)
        try:
            adaptive, fixed = world.router("adaptive"), world.router("fixed")
            most = max(phase.together for phase in PHASES)
            _, want, _ = asyncio.run(draw(fixed, range(most), TOKENS, 8, grid()["alone"]))
            for phase in PHASES:
                if args.phases and phase.name not in args.phases:
                    continue
                world.become("draft", phase.draft)
                world.become("mid", phase.mid, phase.slowdown)
                seen = Seen(phase)
                live(world, adaptive, phase, args.seconds, want, seen)
                errors.append(status(adaptive)["prediction_error_median"])
                same = next((old for old in everything if old.phase.world == phase.world), None)
                if same is None:
                    still(fixed, phase, want, seen)
                else:
                    seen.statics = same.statics
                everything.append(seen)
                console.print(status(adaptive)["plans"][:6], highlight=False)
                console.print(
                    f"{phase.name}: adaptive {seen.adaptive:.1f} (settled {seen.settled:.1f}), "
                    f"best static {seen.statics[seen.best]:.1f} ({seen.best}), alone {seen.statics['alone']:.1f} ms; "
                    f"{seen.switches} switches in {seen.rounds} rounds, error {errors[-1]}; {seen.chains}",
                    highlight=False,
                )
            world.become("draft", 0.65)
            world.become("mid", 0.82)
            for hop in args.hops:
                best = asyncio.run(hops(world, hop))
                label = f"{hop:g}".replace("0.", "0")
                crossed[f"three_vs_two_{label}"] = best["two"] / best["three"]
                crossed[f"overlap_vs_lockstep_{label}"] = best["lockstep"] / best["three"]
                console.print(f"hop {hop} ms: {best}", highlight=False)
        finally:
            world.close()
    report(everything, errors, crossed)


def report(everything: Sequence[Seen], errors: Sequence[float], crossed: Mapping[str, float]) -> None:
    """The table, the plot and the JSON."""
    rows: list[dict[str, Any]] = [
        {"plan": "adaptive", **{seen.phase.name: round(seen.adaptive, 2) for seen in everything}},
        {"plan": "adaptive, settled", **{seen.phase.name: round(seen.settled, 2) for seen in everything}},
    ]
    for name in grid():
        rows.append({"plan": name, **{seen.phase.name: round(seen.statics[name], 2) for seen in everything}})
    names = everything[0].statics
    single = min(sum(seen.statics[name] for seen in everything) for name in names)
    summary: dict[str, float] = {
        "worst_phase_vs_best_static": max(seen.adaptive / seen.statics[seen.best] for seen in everything),
        "worst_settled_vs_best_static": max(seen.settled / seen.statics[seen.best] for seen in everything),
        "worst_vs_alone": max(seen.adaptive / seen.statics["alone"] for seen in everything),
        "vs_best_single_static": single / sum(seen.adaptive for seen in everything),
        "prediction_error_median": statistics.median(errors),
        "switches_per_1000_rounds": 1000
        * sum(seen.switches for seen in everything)
        / max(sum(seen.rounds for seen in everything), 1),
        **crossed,
        "identical": float(all(seen.identical for seen in everything)),
    }
    results.write("adaptive", rows, {name: round(value, 3) for name, value in summary.items()})
    series = {
        "adaptive": [seen.adaptive for seen in everything],
        "best static of the phase": [seen.statics[seen.best] for seen in everything],
        "target alone": [seen.statics["alone"] for seen in everything],
    }
    (results.FOLDER / "adaptive.svg").write_text(
        bars("Milliseconds per token", [seen.phase.name for seen in everything], series), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
