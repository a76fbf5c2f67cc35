"""Writes large blocks of KV to Redis until it is killed. Usage: writer_run.py REDIS_URL SEED"""

from __future__ import annotations

import asyncio
import sys
import time

from remembering import Remembering

from specrouter_core.sampling import Sampling
from specrouter_level.checkpoint import Checkpoints
from specrouter_level.checkpoint_settings import Settings, where
from specrouter_level.engine import Params, Span
from specrouter_level.held import BLOCK, Held

KEY = b"k" * 32
BLOCKS = 6  # of a text
PARAMS = Params(Sampling(), BLOCKS * BLOCK)


def made(url: str) -> tuple[Remembering, Checkpoints]:
    """An engine with blocks of 1.5 MB, and room for 20 of them in Redis."""
    engine = Remembering(slots=1, max_length=BLOCKS * BLOCK, dim=2048)
    return engine, Checkpoints(Settings("all", where(url), "exact", 32 << 20, KEY), engine, engine)


def text(seed: int, number: int) -> list[int]:
    return [1 + (seed * 31 + number * 7 + i) % 250 for i in range(BLOCKS * BLOCK)]


def wait(checkpoints: Checkpoints) -> None:
    """Until the writer has done all it was offered: it gives up what Redis does not take."""
    while [copy for copy in checkpoints._pending[0] if not copy.over]:
        time.sleep(0.001)  # a look now and then


async def main() -> None:
    url, seed = sys.argv[1], int(sys.argv[2])
    engine, checkpoints = made(url)
    checkpoints.start(lambda held: None)
    for number in range(250):
        held = Held(str(number), 0, 0, PARAMS)
        held.text.extend(text(seed, number))
        engine.step([Span(0, 0, held.text.tokens, 0, PARAMS)])
        held.valid = BLOCKS * BLOCK
        checkpoints.full(held)
        wait(checkpoints)
        checkpoints.overwritten(0, 0)


if __name__ == "__main__":
    asyncio.run(main())
