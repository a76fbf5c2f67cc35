"""The simulator against the real stack, and how the router's cost grows.

Real: the stub family as real processes (draft 2.5, mid 9, target 35 ms a step), through HTTP. Of the real mesh only
four things are measured for the simulator, all on the target alone:

- step: a step's time as the level reports it (its sleep overshoots the curve),
- round trip: what a call adds, from windows of 1 and 8,
- overhead: what a step adds besides, at 1 and at 16 sequences: a part per step and a part per sequence in it,
- router: CPU time of the router process per token.

Then, per chain and per load (1, 4, 16 sequences), mean time per token of both. Growth: 100 to 100,000 sequences at once
over 1 to 256 replicas of each level; router_us_per_round is the real time that machines and planners took in the
simulation, for each round (a commit of some tokens). With adaptive plans the chains differ with the load of a replica,
and a chain of more levels has more replies in a round; so the growth is also measured with one pinned plan, from
which the router learns all the same. Table: what it takes to plan, by levels and loads. Hops: the best overlapped plan
of a fine grid for each chain, at 0.3, 1 and 5 ms one way, all in simulated time (only on request).

    .venv/bin/python benchmarks/simulator.py [--part real growth table hops] [--repeats 2]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from rich.console import Console

import results
from specrouter_core.adaptive import Adaptive
from specrouter_core.adaptive_policy import AdaptivePolicy
from specrouter_core.chain import Plan
from specrouter_core.planner import Planner
from specrouter_core.prediction import Level
from specrouter_core.profile import Curve, Profile
from specrouter_core.replica import SimLevel
from specrouter_core.simulator import Policy, Simulator
from specrouter_core.tables import Member
from specrouter_core.workload import Arrival, Summary, Workload
from specrouter_family.family import Family
from specrouter_local import weights
from specrouter_local.launch import Launcher, Wanted, prepare

PARTS = ("real", "growth", "table", "hops")
TOKENS = {1: 300, 4: 150, 16: 100}  # by sequences at once
PLANS = (
    Plan(("target",), (8,)),
    Plan(("draft", "target"), (4, 8), 16),
    Plan(("draft", "mid", "target"), (4, 4, 8), 16),
)
GROWTH = ((100, 1, 48), (1_000, 4, 24), (10_000, 32, 12), (100_000, 256, 6))  # sequences, replicas, tokens of each
COSTS = {
    "draft": {1: 0.0025, 64: 0.003, 512: 0.01},
    "mid": {1: 0.009, 32: 0.010, 128: 0.020, 512: 0.07},
    "target": {1: 0.035, 16: 0.037, 64: 0.060, 512: 0.4},
}
AGREEMENT = {"draft": 0.65, "mid": 0.82, "target": 1.0}


@dataclass(frozen=True)
class Run:
    """Requests at once through the real mesh."""

    per_token: float  # seconds, mean over requests
    step: float  # seconds of a step of the target, as it says
    router_cpu: float  # seconds of the router's CPU per token


@dataclass(frozen=True)
class Measured:
    """What the simulator is told of the real mesh; seconds."""

    step_over: float  # a step's time over what its curve says
    hop: float  # one way
    overhead: float  # per step
    overhead_each: float  # per sequence in a step
    router: float  # per reply


async def requests(url: str, model: str, plan: Plan, together: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    """Every request's seconds and report."""
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:

        async def one(number: int) -> dict[str, Any]:
            body = {
                "model": model, "prompt": "a prompt to go on from", "max_tokens": tokens, "temperature": 0.8,
                "seed": seed + number, "specrouter": {
                    "chain": list(plan.levels), "windows": list(plan.windows), "lookahead": plan.lookahead,
                    "mode": "overlapped", "report": True,
                },
            }  # fmt: skip
            begin = time.perf_counter()
            response = await client.post("/v1/completions", json=body)
            response.raise_for_status()
            answer = response.json()
            count = answer["usage"]["completion_tokens"]
            return {"per_token": (time.perf_counter() - begin) / count, "report": answer["specrouter"]["report"]}

        return await asyncio.gather(*(one(number) for number in range(together)))


def real(url: str, router: psutil.Process, model: str, plan: Plan, together: int, repeats: int) -> Run:
    """The mean over the repeats; different texts each time."""
    tokens = TOKENS[together]
    cpu = sum(router.cpu_times()[:2])
    done = [
        answer
        for repeat in range(repeats)
        for answer in asyncio.run(requests(url, model, plan, together, tokens, 1000 * repeat))
    ]
    cpu = sum(router.cpu_times()[:2]) - cpu
    targets = [next(x for x in answer["report"]["levels"] if x["level"] == plan.target) for answer in done]
    return Run(
        statistics.mean(answer["per_token"] for answer in done),
        sum(x["compute_ms"] for x in targets) / 1000 / sum(x["drawn"] for x in targets),
        cpu / (tokens * len(done)),
    )


def measured(alone: Run, short: Run, many: Run, step: float) -> Measured:
    """From the target alone: windows of 8 (1 and 16 sequences) and of 1."""
    trip = max(short.per_token - alone.per_token, 0.0) * 8 / 7
    overhead = max(alone.per_token - alone.step - trip / 8, 0.0)
    # at 16, a new call of one sequence waits for the step of the others: one step more every 8
    each = max(many.per_token - many.step - overhead - trip / 8 - many.step / 8, 0.0) / 15
    router = many.router_cpu
    hop = max((trip - router) / 2, 1e-5)
    return Measured(alone.step - step, hop, overhead, each, router)


def simulated(family: Family, plan: Plan, together: int, found: Measured) -> float:
    """Mean seconds per token in the simulator, over more texts than in the real mesh."""
    levels = []
    for level in family.levels:
        if level.name in plan.levels:
            seconds = float(str(level.step_ms).partition(":")[2]) / 1000 + found.step_over
            agreement = 1.0 if level.agreement is None else level.agreement
            each = found.overhead_each
            levels.append(
                SimLevel(level.name, Curve.of({1: seconds}), agreement, overhead=found.overhead, overhead_each=each)
            )
    arrivals = [Arrival(0.001 * i, TOKENS[together], prompt=22) for i in range(together)]
    done = []
    for seed in range(max(2, 24 // together)):
        simulator = Simulator(levels, Policy(plan), hop=found.hop, seed=seed, router_seconds=found.router)
        done += simulator.run(arrivals)
    return statistics.mean(outcome.per_token for outcome in done)


def fixed_family(folder: Path) -> Path:
    """The stub family, without the adaptive router's own calls."""
    family = weights.built_in("stub").model_dump(mode="json", exclude_none=True)
    file = folder / "family.yaml"
    file.write_text(yaml.safe_dump({**family, "chain": {"policy": "fixed"}}))
    return file


def against_real(repeats: int, console: Console, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per chain and load."""
    wanted = Wanted(family=fixed_family(folder), engine="stub", redis_url=None, port=0, grpc_port=0)
    family = prepare(console, wanted)
    launcher = Launcher(family.name, wanted, tied=True)
    rows: list[dict[str, Any]] = []
    try:
        state = launcher.wait(console)
        router = psutil.Process(next(part.pid for part in state.parts if part.kind == "router"))

        def run(plan: Plan, together: int, times: int) -> Run:
            return real(state.router, router, state.name, plan, together, times)

        alone, short = PLANS[0], Plan(PLANS[0].levels, (1,))
        asyncio.run(requests(state.router, state.name, PLANS[-1], 4, 16, 1))  # warm
        reals = {(alone, n): run(alone, n, 1 if n == 1 else 2 * repeats) for n in (1, 16)}
        step = float(str(family.target.step_ms).partition(":")[2]) / 1000
        found = measured(reals[alone, 1], run(short, 1, 1), reals[alone, 16], step)
        for together in TOKENS:
            for plan in PLANS:
                seen = reals.get((plan, together)) or run(plan, together, repeats if together > 1 else 2 * repeats)
                guess = simulated(family, plan, together, found)
                rows.append({
                    "chain": " > ".join(plan.levels), "sequences": together, "real_ms": round(1000 * seen.per_token, 3),
                    "simulated_ms": round(1000 * guess, 3), "error": round(guess / seen.per_token - 1, 4),
                    "router_cpu_us_per_token": round(1e6 * seen.router_cpu, 1),
                })  # fmt: skip
    finally:
        launcher.end()
    told = {f"{name}_us": round(1e6 * value, 1) for name, value in vars(found).items()}
    return rows, {"simulator_error_max": max(abs(row["error"]) for row in rows), **told}


def grown(sequences: int, replicas: int, tokens: int, pinned: Plan | None) -> dict[str, float]:
    """One size."""
    members = [Member(name, costs, replicas) for name, costs in COSTS.items()]
    levels = [SimLevel(name, Curve.of(costs), AGREEMENT[name], replicas) for name, costs in COSTS.items()]
    routers = max(1, sequences // 2000)
    policy = AdaptivePolicy(lambda: Adaptive(members), routers, pinned)
    simulator = Simulator(levels, policy, routers=routers, stopwatch=time.perf_counter)
    gc.collect()
    gc.disable()  # collections belong to the simulator's own heap of events
    begin = time.perf_counter()
    done = simulator.run(Workload(sequences, tokens=(tokens, tokens)).arrivals(1))
    seconds = time.perf_counter() - begin
    gc.enable()
    summary = Summary.of(done)
    return {
        "sequences": sequences, "replicas": replicas, "routers": routers, "tokens": summary.tokens,
        "rounds": simulator.rounds,
        "router_us_per_round": round(1e6 * simulator.router_cost / simulator.rounds, 1),
        "router_us_per_reply": round(1e6 * simulator.router_cost / simulator.router_events, 1),
        "replies_per_round": round(simulator.router_events / simulator.rounds, 2),
        "ms_per_token": round(1000 * summary.per_token_mean, 2), "wall_s": round(seconds, 1),
    }  # fmt: skip


def growth() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per size and kind of plans."""
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    for kind, pinned in (("pinned", Plan(("draft", "target"), (4, 4), 4, False)), ("adaptive", None)):
        mine: list[dict[str, Any]] = [{"plans": kind, **grown(*size, pinned)} for size in GROWTH]
        costs = [row["router_us_per_round"] for row in mine]
        replies = [row["router_us_per_reply"] for row in mine]
        summary[f"growth_per_round_{kind}"] = round(costs[-1] / costs[0], 3)
        summary[f"growth_per_round_{kind}_worst"] = round(max(costs) / costs[0], 3)
        summary[f"growth_per_reply_{kind}"] = round(replies[-1] / replies[0], 3)
        rows += mine
    return rows, summary


def table() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Milliseconds for all candidates of 2 to 5 levels in both modes, alone and with 16 sequences together."""
    names = (("a", 0.001), ("b", 0.002), ("c", 0.004), ("d", 0.009), ("e", 0.03))
    rows: list[dict[str, Any]] = []
    for count in (2, 3, 4, 5):
        for sharing in (1.0, 16.0):
            levels = [
                Level(name, Profile(curve=Curve.of({1: t, 16: 1.05 * t, 64: 1.5 * t})), sharing=sharing)
                for name, t in names[-count:]
            ]
            planner, took = Planner(), []
            for _ in range(200):
                begin = time.perf_counter()
                found = planner.table(levels, lambda lower, upper: [0.7] * 16)
                took.append(1000 * (time.perf_counter() - begin))
            rows.append({
                "levels": count, "sequences": sharing, "candidates": len(found),
                "median_ms": round(statistics.median(took), 3), "least_ms": round(min(took), 3),
            })  # fmt: skip
    return rows, {"table_ms_5_levels": max(row["median_ms"] for row in rows if row["levels"] == 5)}


def crossed() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per hop: milliseconds per token of each chain's best plan, with lookahead and waits from a fine grid."""
    texts = [Arrival(0.0, 48, prompt=4, text=text) for text in range(12)]
    rows: list[dict[str, Any]] = []
    for hop in (0.3, 1.0, 5.0):
        row: dict[str, float | str] = {"hop_ms": hop}
        for chain in (("draft", "target"), ("mid", "target"), ("draft", "mid", "target")):
            found: list[tuple[float, Plan]] = []
            for lookahead, *waits in itertools.product((8, 12, 16, 24), *[(1, 2, 3, 4, 6)] * (len(chain) - 1)):
                plan = Plan(chain, (8, *[16] * (len(chain) - 1)), lookahead, True, (1, *waits))
                levels = [SimLevel(name, Curve.of(COSTS[name]), AGREEMENT[name]) for name in chain]
                done = [out for text in texts for out in Simulator(levels, Policy(plan), hop=hop / 1000).run([text])]
                found.append((1000 * statistics.mean(out.per_token for out in done), plan))
            least, plan = min(found, key=lambda entry: entry[0])
            row["+".join(chain)] = round(least, 2)
            row[f"{'+'.join(chain)} plan"] = f"lookahead {plan.lookahead}, least {plan.least[1:]}"
        rows.append(row)
    ratios = {
        f"three_vs_two_{row['hop_ms']:g}".replace("0.", "0"): round(
            min(float(row["draft+target"]), float(row["mid+target"])) / float(row["draft+mid+target"]), 3
        )
        for row in rows
    }
    return rows, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS[:3])
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    if "real" in args.part:
        with tempfile.TemporaryDirectory() as folder:
            results.write("simulator", *against_real(args.repeats, Console(stderr=True), Path(folder)))
    if "growth" in args.part:
        results.write("growth", *growth())
    if "table" in args.part:
        results.write("table", *table())
    if "hops" in args.part:
        results.write("hops", *crossed())


if __name__ == "__main__":
    main()
