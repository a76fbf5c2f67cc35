"""Levels with KV checkpoints that are stepped by hand, and what they leave in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis import Redis
from remembering import Remembering

from processes import become
from specrouter.v1 import level_pb2 as pb
from specrouter_level.block_name import tenant
from specrouter_level.checkpoint import Checkpoints
from specrouter_level.checkpoint_settings import Settings, where
from specrouter_level.held import Held
from specrouter_level.scheduler import Scheduler
from specrouter_level.stream import Stream

KEY = b"k" * 32
PREFIX = f"specrouter:kv:{tenant(KEY)}:"
PROMPT = [1 + i % 90 for i in range(200)]
SECONDS = 30.0  # nothing here may take longer
SEED = pb.Sampling(seed=1)


class SteppedLevel:
    """A scheduler on an engine, with checkpoints or without (None)."""

    checkpoints: Checkpoints  # where there are settings

    def __init__(
        self, engine: Any, settings: Settings | None, sampling: pb.Sampling = SEED, token_s: float = 0.01
    ) -> None:
        """``token_s``: what a token is said to have taken in each step, whatever it did: restoring is worth it."""
        self.engine = engine
        self.token_s = token_s
        self.sampling = sampling
        made = Checkpoints(settings, engine, engine.memory) if settings else None
        self.scheduler = Scheduler(engine.info, made)
        self.stream = Stream(lambda: None)
        self.number = 0
        self.over = asyncio.Event()
        if made is not None:
            self.checkpoints = made
            made.start(self._restored)

    def _restored(self, held: Held) -> None:
        self.scheduler.restored(held)
        self.over.set()

    def call(self, sequence: str, prefix: Sequence[int], more: int = 0, prompt: int = 0) -> None:
        """``prompt``: its length, if it is not all of the prefix."""
        self.number += 1
        params = pb.SequenceParams(sampling=self.sampling, prompt_length=prompt or len(prefix))
        call = pb.ExtendCall(
            call=self.number, sequence=sequence, suffix=prefix, more=more, params=params, deadline_ms=60_000
        )
        self.scheduler.receive(self.stream, pb.ExtendRequest(calls=[call]))

    def held(self, sequence: str) -> Held:
        found = self.scheduler.slots.get(sequence)
        assert found is not None
        return found

    def run(self) -> None:
        """All steps that there are."""
        while spans := self.scheduler.form():
            self.scheduler.finish(self.engine.step(spans), 0.0)
            if self.scheduler.checkpoints is not None:
                self.checkpoints.prices._token = self.token_s

    async def ask(self, sequence: str, prefix: Sequence[int], more: int = 0, prompt: int = 0) -> list[int]:
        """The tokens that follow, with whatever is restored before."""
        self.over.clear()
        self.call(sequence, prefix, more, prompt)
        if self.held(sequence).restoring:
            await asyncio.wait_for(self.over.wait(), SECONDS)
        self.run()
        while (response := self.stream.take()) is not None:
            last = response.replies[-1]
        assert last.outcome == pb.OUTCOME_DONE
        return list(last.tokens)

    async def until(self, event: str, count: int) -> None:
        """So many of a kind have been counted."""
        await become(lambda: self.checkpoints.counts[event] >= count, SECONDS, lambda: self.checkpoints.counts)

    async def close(self) -> None:
        await asyncio.to_thread(self.checkpoints.stop)


class Level(SteppedLevel):
    """One with an engine that checks its memory."""

    def __init__(
        self, redis: Redis | str, policy: str = "all", engine: Remembering | None = None, **changes: Any
    ) -> None:
        at = where(redis if isinstance(redis, str) else url(redis))
        usual: dict[str, Any] = {"policy": policy, "url": at, "codec": "exact", "budget": 1 << 30, "key": KEY}
        super().__init__(engine or Remembering(), Settings(**(usual | changes)))


def url(redis: Redis) -> str:
    return f"redis://127.0.0.1:{redis.connection_pool.connection_kwargs['port']}/0"


def blobs(redis: Redis) -> list[bytes]:
    """The names of the blocks that are there."""
    return [key for key in redis.keys(PREFIX + "*") if b":index:" not in key]
