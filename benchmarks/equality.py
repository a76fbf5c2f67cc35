"""Is the chain's text the target's? The demo family in float32, real processes, every token compared.

Texts: prompts x (temperature 0; temperature 0.8 with top-p 0.95 and three seeds). Reference: the target alone, one
sequence at a time. Against it: chains of 1, 2 and 3 levels, lock-step and overlapped, windows of 1 to 8, 1 and 8
sequences together. The levels are started once; each (mode, window) has a router of its own, for these are settings
of a router's family file.

    .venv/bin/python benchmarks/equality.py [--prompts 50] [--tokens 24] [--windows 1 2 3 4 5 6 7 8]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress

import results
from specrouter_family import family as families
from specrouter_local import parts, process
from specrouter_local.launch import Launcher, Wanted, prepare
from specrouter_local.process import Child

TOPICS = (
    "the sea", "bread", "a clock", "winter", "the moon", "a bridge", "bees", "glass", "a river", "chess",
    "paper", "salt", "a garden", "thunder", "a violin", "maps", "coffee", "gravity", "a lighthouse", "silk",
    "volcanoes", "a bicycle", "rice", "shadows", "an orchestra",
)  # fmt: skip
PROMPTS = [f"Tell me about {topic}." for topic in TOPICS] + [
    f"Write two lines on {topic} and repeat them." for topic in TOPICS
]
SAMPLINGS = ({"temperature": 0.0, "seed": 0}, *({"temperature": 0.8, "top_p": 0.95, "seed": s} for s in (1, 2, 3)))


@dataclass(frozen=True)
class Case:
    """One text to be drawn."""

    prompt: str
    sampling: tuple[tuple[str, float], ...]


def cases(prompts: int) -> list[Case]:
    return [Case(p, tuple(s.items())) for p, s in itertools.product(PROMPTS[:prompts], SAMPLINGS)]


async def draw(
    url: str, todo: Sequence[Case], chain: Sequence[str], tokens: int, together: int
) -> dict[Case, list[int]]:
    """The ids of every case, ``together`` at a time."""
    gate = asyncio.Semaphore(together)
    out: dict[Case, list[int]] = {}
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:

        async def one(case: Case) -> None:
            async with gate:
                body: dict[str, Any] = {
                    "model": "demo",
                    "messages": [{"role": "user", "content": case.prompt}],
                    "max_tokens": tokens,
                    "specrouter": {"chain": list(chain), "report": True},
                    **dict(case.sampling),
                }
                body["seed"] = int(body["seed"])
                response = await client.post("/v1/chat/completions", json=body)
                response.raise_for_status()
                out[case] = response.json()["specrouter"]["tokens"]

        await asyncio.gather(*(one(case) for case in todo))
    return out


@contextmanager
def router(run_directory: Path, redis_url: str, mode: str, window: int) -> Iterator[str]:
    """A router over the levels that run already, with its own mode and windows."""
    family = families.load(run_directory / "family.yaml")
    windows = dict.fromkeys((level.name for level in family.levels), window)
    update = {"policy": "fixed", "mode": mode, "windows": windows, "lookahead": max(16, 2 * window)}
    chain = family.chain.model_copy(update=update)
    file = run_directory / f"family-{mode}-{window}.yaml"
    parts.write_family(family.model_copy(update={"chain": chain}), file)
    port, grpc_port = parts.free_ports(2)
    part = parts.router_part(file, redis_url, port, grpc_port, 0)
    child = Child(part.argv, part.env, run_directory / f"router-{mode}-{window}.log")
    try:
        wait_ready(part)
        yield f"http://{part.address}"
    finally:
        process.stop([child], 5.0, lambda: False)


def wait_ready(part: parts.Part) -> None:
    until = time.monotonic() + part.patience
    while part.probe() is None:
        if time.monotonic() > until:
            raise TimeoutError(f"{part.name} is not ready after {part.patience:g} s")
        time.sleep(0.1)


def compare(args: argparse.Namespace, launcher: Launcher, console: Console) -> tuple[list[dict[str, Any]], int, int]:
    """All rows, the texts compared, and those that differ."""
    state = launcher.wait(console)
    redis_url = next(f"redis://{part.address}/0" for part in state.parts if part.kind == "redis")
    todo, target = cases(args.prompts), state.levels[-1:]
    rows: list[dict[str, Any]] = []
    plans = list(itertools.product(("lockstep", "overlapped"), args.windows))
    with Progress(console=console) as progress:
        bar = progress.add_task("equality", total=2 + 2 * len(plans))
        reference = asyncio.run(draw(state.router, todo, target, args.tokens, 1))
        progress.advance(bar)
        again = asyncio.run(draw(state.router, todo, target, args.tokens, 8))
        progress.advance(bar)
        rows.append(row(target, "-", 0, 8, reference, again))
        for number, (mode, window) in enumerate(plans):
            with router(launcher.run.directory, redis_url, mode, window) as url:
                for chain in (state.levels[1:], state.levels):
                    together = (1, 8)[(number + len(chain)) % 2]
                    got = asyncio.run(draw(url, todo, chain, args.tokens, together))
                    rows.append(row(chain, mode, window, together, reference, got))
                    progress.advance(bar)
    return rows, sum(r["texts"] for r in rows), sum(r["different"] for r in rows)


def row(
    chain: Sequence[str], mode: str, window: int, together: int, want: dict[Case, list[int]], got: dict[Case, list[int]]
) -> dict[str, Any]:
    different = sum(got[case] != want[case] for case in want)
    return {
        "chain": " > ".join(chain), "mode": mode, "window": window, "together": together,
        "texts": len(want), "tokens": sum(map(len, got.values())), "different": different,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--windows", type=int, nargs="+", default=list(range(1, 9)))
    args = parser.parse_args()
    console = Console(stderr=True)
    wanted = Wanted(family=None, engine="demo", redis_url=None, port=0, grpc_port=0)
    launcher = Launcher(prepare(console, wanted).name, wanted, tied=True)
    try:
        rows, texts, different = compare(args, launcher, console)
    finally:
        launcher.end()
    results.write("equality", rows, {"texts": texts, "different": different, "identical": float(different == 0)})
    raise SystemExit(different > 0)


if __name__ == "__main__":
    main()
