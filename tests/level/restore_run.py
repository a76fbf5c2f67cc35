"""Three levels with one text: one writes checkpoints, one restores them, one computes all. Is all equal to the bit?

A program for exact.py. Usage: restore_run.py DIRECTORY DTYPE REDIS_URL; prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

import numpy as np
from stepped_level import SteppedLevel

from specrouter.v1 import level_pb2 as pb
from specrouter_level import torch_engine
from specrouter_level.checkpoint_settings import Settings, where

PROMPT = 150  # tokens: two blocks of the prompt, and one that its end falls into
MORE = 60  # drawn by the first life
AFTER = 30  # drawn by the second
TOKEN_S = 1.0  # small models compute faster than anything can be fetched


def level(directory: str, dtype: str, settings: Settings | None) -> SteppedLevel:
    engine = torch_engine.load(Path(directory), dtype=dtype, exactness="bitwise", max_length=256, slots=2)
    made = SteppedLevel(engine, settings, pb.Sampling(seed=5, temperature=0.8), TOKEN_S)
    if settings is not None:
        made.checkpoints.prices._token = TOKEN_S
    return made


def kv(level: SteppedLevel, sequence: str, length: int) -> list[np.ndarray]:
    held = level.held(sequence)
    assert held.valid >= length
    read: list[np.ndarray] = level.engine.memory.read(held.slot, 0, length)
    return read


async def main() -> None:
    directory, dtype, url = sys.argv[1:]
    settings = Settings("all", where(url), "exact", 64 << 20, b"k" * 32)
    rng = random.Random(3)
    prompt = [rng.randrange(3, 90) for _ in range(PROMPT)]
    first, second = (level(directory, dtype, settings) for _ in range(2))
    alone = level(directory, dtype, None)
    text = prompt + await first.ask("a", prompt, MORE - 1)
    await first.until("written", (len(text) - 1) // 64)
    went_on, computed = [await one.ask("b", text, AFTER - 1, PROMPT) for one in (second, alone)]
    length = len(text) + AFTER - 1
    pairs = zip(kv(second, "b", length), kv(alone, "b", length), strict=True)
    differ = sum(not np.array_equal(one, other) for one, other in pairs)
    print(
        json.dumps(
            {
                "restored_tokens": second.checkpoints.counts["restored_tokens"],
                "fed": second.scheduler.counts.fed,
                "fed_alone": alone.scheduler.counts.fed,
                "draws_equal": went_on == computed,
                "kv_differ": differ,
                "ignored": dict(second.checkpoints.ignored),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
