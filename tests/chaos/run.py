"""The long run: episodes until so many sequences were hit by a fault, a table, and benchmarks/results/chaos.json.

    python tests/chaos/run.py --sequences 2000             # make chaos
    python tests/chaos/run.py --seed 7 --episode 31        # one episode again, with its history
    python tests/chaos/run.py --seed 7 --world models --episode 3
    python tests/chaos/run.py --kind "kill router" --sequences 200
    python tests/chaos/run.py --seed 1 --keep 1.json; python tests/chaos/run.py --merge 1.json 2.json

See docs/chaos.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from chaos_mesh import ChaosMesh
from episode import STILL_S, Outcome, late, run, story
from faults import Plan, World, plan
from report import KINDS, merged, piece, read, table

import results

PER_EPISODE = 48
ORPHAN_S = 75.0  # levels keep the sequences of a router that died for a minute
SHARES: dict[World, float] = {"stub": 0.7, "models": 0.2, "sentinel": 0.05, "cluster": 0.05}  # of the sequences
ONCE = ("sentinel", "cluster")  # these can fail over once: a mesh for each episode


class Run:
    """Episodes, one after the other, and what came of them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.outcomes: list[Outcome] = []
        self.void = 0  # episodes that do not count
        self.left = 0  # that was not free at the end
        self._options = options
        self._folder = folder
        self._begin = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether its time is."""
        return bool(time.monotonic() - self._begin > self._options.minutes * 60)

    async def world(self, world: World, sequences: float) -> None:
        """Until so many sequences of this world were hit."""
        options, done, number = self._options, 0, self._options.episode or 0
        one_each = options.episode is not None or world in ONCE
        while done < sequences and not self.over:
            folder = self._folder / f"{world}-{number}"
            folder.mkdir()
            async with ChaosMesh(folder, world) as mesh:
                while done < sequences and not self.over:
                    outcome = await run(mesh, plan(options.seed, number, options.per_episode, options.kind, world))
                    number += 1
                    if outcome.still_s > STILL_S:  # another mesh: this one has seen what no client does
                        print(f"{outcome.plan.seed} does not count: the test stood still for {outcome.still_s:.1f} s")
                        self.void += 1
                        break
                    self._tell(outcome)
                    done += outcome.faulted
                    if one_each:
                        break
                if outcome.still_s <= STILL_S:
                    await self._end(mesh)
            if options.episode is not None:
                return

    async def _end(self, mesh: ChaosMesh) -> None:
        for problem in late(mesh):
            print(f"{problem.kind} {problem.sequence}: {problem.what}")
            self.outcomes[-1].problems.append(problem)
        limit = time.monotonic() + ORPHAN_S
        while left := await asyncio.to_thread(mesh.leftovers, [], True):
            if time.monotonic() > limit:
                print(*(f"at the end: {what} at {where}" for what, where in left.items()), sep="\n")
                self.left += len(left)
                return
            await asyncio.sleep(1)  # before another look

    def _tell(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        done = sum(one.faulted for one in self.outcomes)
        bad = sum(bool(one.problems) for one in self.outcomes)
        print(
            f"{time.monotonic() - self._begin:6.0f} s  {done:5} faulted  {bad} bad  {outcome.seconds:5.1f} s  "
            f"{_line(outcome.plan)}",
            flush=True,
        )
        if outcome.problems:
            print(story(outcome), flush=True)
        elif self._options.episode is not None and self._options.history:
            print(*outcome.events, *outcome.commits, sep="\n")


def _line(one: Plan) -> str:
    return f"{one.seed} {one.world}: " + "; ".join(map(str, one.faults))


async def episodes(options: argparse.Namespace, folder: Path) -> Run:
    """All that was asked for."""
    made = Run(options, folder)
    shares: dict[World, float] = {options.world: 1.0} if options.world else {"stub": 1.0} if options.kind else SHARES
    if options.episode is not None:
        shares = {options.world or "stub": 1.0}
    for world, share in shares.items():
        await made.world(world, options.sequences * share)
    return made


def main() -> int:
    """Run it and write the results. The exit status is 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=2000, help="that were hit by a fault")
    parser.add_argument("--minutes", type=float, default=40, help="at most")
    parser.add_argument("--seed", type=int, help="of the run; left out: another one each time")
    parser.add_argument("--world", choices=get_args(World), help="only this; left out: each its share")
    parser.add_argument("--episode", type=int, help="only this one")
    parser.add_argument("--kind", default="", help='only such faults, for example "redis" or "kill router"')
    parser.add_argument("--per-episode", type=int, default=PER_EPISODE)
    parser.add_argument("--history", action="store_true", help="with --episode: print it in any case")
    parser.add_argument("--logs", type=Path, help="keep the processes' logs in this new folder")
    parser.add_argument("--keep", type=Path, help="write what it came to there, to be merged, and nowhere else")
    parser.add_argument("--merge", type=Path, nargs="+", help="run nothing: write the results of these runs as one")
    options = parser.parse_args()
    if options.merge:
        return _write(read(options.merge), whole=True)
    options.seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=options.logs is None)
        made = asyncio.run(episodes(options, folder))
    one = merged([piece(options.seed, made.outcomes, made.left, made.void)])
    if options.keep:
        options.keep.write_text(json.dumps(one, indent=1))
    return _write(one, whole=not (options.keep or options.kind or options.world or options.episode is not None))


def _write(one: dict[str, Any], *, whole: bool) -> int:
    rows, summary = table(one)
    if whole:
        results.write("chaos", rows, summary)
    else:
        print(*rows, summary, sep="\n")
    return int(any(summary[kind] for kind in KINDS))


if __name__ == "__main__":
    sys.exit(main())
