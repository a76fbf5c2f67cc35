"""The long run: episodes until so many sequences were hit by a fault, a table, and benchmarks/results/chaos.json.

    python tests/chaos/run.py --sequences 2000             # make chaos
    python tests/chaos/run.py --seed 7 --episode 31        # one episode again, with its history
    python tests/chaos/run.py --kind "kill router" --sequences 200

See docs/chaos.md.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from chaos_mesh import ChaosMesh
from episode import Outcome, late, run, story
from faults import plan

import results

KINDS = ("wrong", "lost", "doubled", "fenced", "rounds", "leaked", "traced")
PER_EPISODE = 48
ORPHAN_S = 75.0  # levels keep the sequences of a router that died for a minute


def row(name: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """What the episodes of one kind came to."""
    return {
        "fault": name,
        "episodes": len(outcomes),
        "sequences": sum(outcome.faulted for outcome in outcomes),
        "all": sum(len(outcome.plan.asks) for outcome in outcomes),
        "broken": sum(outcome.broken for outcome in outcomes),
        "gap_s": round(max(outcome.gap_s for outcome in outcomes), 2),
        **{kind: sum(outcome.count(kind) for outcome in outcomes) for kind in KINDS},
    }


def table(outcomes: list[Outcome]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows by kind of fault, and the sums."""
    by_fault: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_fault[f"{outcome.plan.fault.kind}, {outcome.plan.fault.where}"].append(outcome)
    rows = [row(name, some) for name, some in by_fault.items()]
    total = row("all", outcomes)
    return rows, {key: value for key, value in total.items() if key not in ("fault", "all")}


async def episodes(options: argparse.Namespace, folder: Path) -> tuple[list[Outcome], dict[str, str]]:
    """Run them; returns what came of each, and what levels still held when all was over."""
    outcomes: list[Outcome] = []
    numbers = [options.episode] if options.episode is not None else range(10**6)
    begin = time.monotonic()
    async with ChaosMesh(folder) as mesh:
        for number in numbers:
            outcome = await run(mesh, plan(options.seed, number, options.per_episode, options.kind))
            outcomes.append(outcome)
            done = sum(one.faulted for one in outcomes)
            bad = sum(bool(one.problems) for one in outcomes)
            print(
                f"{time.monotonic() - begin:6.0f} s  {done:5} faulted  {bad} bad  {outcome.seconds:5.1f} s  "
                f"{outcome.plan.seed}: {outcome.plan.fault}",
                flush=True,
            )
            if outcome.problems:
                print(story(outcome), flush=True)
            elif options.episode is not None and options.history:
                print(*outcome.events, *outcome.commits, sep="\n")
            if done >= options.sequences or time.monotonic() - begin > options.minutes * 60:
                break
        for problem in late(mesh):
            print(f"{problem.kind} {problem.sequence}: {problem.what}")
            outcomes[-1].problems.append(problem)
        limit = time.monotonic() + ORPHAN_S
        while (left := await asyncio.to_thread(mesh.leftovers, [], True)) and time.monotonic() < limit:  # noqa: ASYNC110
            await asyncio.sleep(1)
    return outcomes, dict(left)


def main() -> int:
    """Run it and write the results. The exit status is 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=2000, help="that were hit by a fault")
    parser.add_argument("--minutes", type=float, default=20, help="at most")
    parser.add_argument("--seed", type=int, help="of the run; left out: another one each time")
    parser.add_argument("--episode", type=int, help="only this one")
    parser.add_argument("--kind", default="", help='only such faults, for example "redis" or "kill router"')
    parser.add_argument("--per-episode", type=int, default=PER_EPISODE)
    parser.add_argument("--history", action="store_true", help="with --episode: print it in any case")
    parser.add_argument("--logs", type=Path, help="keep the processes' logs in this new folder")
    options = parser.parse_args()
    options.seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=options.logs is None)
        outcomes, left = asyncio.run(episodes(options, folder))
    rows, summary = table(outcomes)
    for what, where in left.items():
        print(f"at the end: {what} at {where}")
    summary["leaked"] += len(left)
    summary = {"seed": options.seed, **summary}
    if options.episode is None and not options.kind:
        results.write("chaos", rows, summary)
    else:
        print(*rows, summary, sep="\n")
    return int(any(summary[kind] for kind in KINDS))


if __name__ == "__main__":
    sys.exit(main())
