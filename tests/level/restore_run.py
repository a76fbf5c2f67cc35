"""Three levels with one text: one writes checkpoints, one restores them, one computes all. Is all equal to the bit?

A program of its own, because the BLAS settings must be in the environment before torch loads. Usage:
restore_run.py DIRECTORY DTYPE EXACTNESS CODEC REDIS_URL; prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

from specrouter_level import reproducible

reproducible.prepare(1)

import numpy as np  # noqa: E402

from specrouter.v1 import level_pb2 as pb  # noqa: E402
from specrouter_level import torch_engine  # noqa: E402
from specrouter_level.checkpoint import Checkpoints  # noqa: E402
from specrouter_level.checkpoint_settings import Settings, where  # noqa: E402
from specrouter_level.held import Held  # noqa: E402
from specrouter_level.scheduler import Scheduler  # noqa: E402
from specrouter_level.stream import Stream  # noqa: E402

PROMPT = 150  # tokens: two blocks of the prompt, and one that its end falls into
MORE = 60  # drawn by the first life
AFTER = 30  # drawn by the second
SECONDS = 30.0


class Level:
    """A scheduler and its engine, stepped by hand."""

    def __init__(self, directory: Path, dtype: str, exactness: str, settings: Settings | None) -> None:
        self.engine = torch_engine.load(directory, dtype=dtype, exactness=exactness, max_length=256, slots=2)
        assert self.engine.memory is not None
        self.checkpoints = Checkpoints(settings, self.engine, self.engine.memory) if settings else None
        self.scheduler = Scheduler(self.engine.info, self.checkpoints)
        self.restored = asyncio.Event()
        if self.checkpoints is not None:
            self.checkpoints.prices._token = 1.0  # small models compute faster than anything can be fetched
            self.checkpoints.start(self._restored)
        self.stream = Stream(lambda: None)
        self.number = 0

    def _restored(self, held: Held) -> None:
        self.scheduler.restored(held)
        self.restored.set()

    async def ask(self, sequence: str, prefix: list[int], more: int) -> list[int]:
        """The tokens that follow."""
        self.number += 1
        params = pb.SequenceParams(sampling=pb.Sampling(seed=5, temperature=0.8), prompt_length=PROMPT)
        call = pb.ExtendCall(
            call=self.number, sequence=sequence, suffix=prefix, more=more - 1, params=params, deadline_ms=600_000
        )
        self.scheduler.receive(self.stream, pb.ExtendRequest(calls=[call]))
        held = self.scheduler.slots.get(sequence)
        assert held is not None
        if held.restoring:
            await asyncio.wait_for(self.restored.wait(), SECONDS)
        while spans := self.scheduler.form():
            self.scheduler.finish(self.engine.step(spans), 0.001)
            if self.checkpoints is not None:
                self.checkpoints.prices._token = 1.0
            await asyncio.sleep(0)
        response = self.stream.take()
        assert response is not None and response.replies[0].outcome == pb.OUTCOME_DONE
        return list(response.replies[0].tokens)

    def kv(self, sequence: str, length: int) -> list[np.ndarray]:
        held = self.scheduler.slots.get(sequence)
        assert held is not None and self.engine.memory is not None and held.valid >= length
        return self.engine.memory.read(held.slot, 0, length)


async def written(level: Level, blocks: int) -> None:
    assert level.checkpoints is not None
    for _ in range(int(SECONDS / 0.01)):
        if level.checkpoints.counts["written"] == blocks:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(f"written: {level.checkpoints.counts}")


async def main() -> None:
    directory, dtype, exactness, codec, url = sys.argv[1:6]
    settings = Settings("all", where(url), codec, 64 << 20, b"k" * 32)
    rng = random.Random(3)
    prompt = [rng.randrange(3, 90) for _ in range(PROMPT)]
    first = Level(Path(directory), dtype, exactness, settings)
    text = prompt + await first.ask("a", prompt, MORE)
    await written(first, (len(text) - 1) // 64)

    second = Level(Path(directory), dtype, exactness, settings)
    alone = Level(Path(directory), dtype, exactness, None)
    went_on, computed = await second.ask("b", text, AFTER), await alone.ask("c", text, AFTER)
    assert second.checkpoints is not None
    length = len(text) + AFTER - 1
    pairs = zip(second.kv("b", length), alone.kv("c", length), strict=True)
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
                "counts": dict(first.checkpoints.counts) if first.checkpoints else {},
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
