"""Prompts to token ids, in one thread beside the event loop: a long text must not hold up the others' tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from specrouter_router.refusal import RefusedError, busy
from specrouter_router.tokenizer import Tokenizer

TOKENIZE_S = 30.0


class Prompts:
    """See the module. At most ``most`` are worked on, or wait, at once."""

    def __init__(self, tokenizer: Tokenizer, most: int) -> None:
        self._tokenizer = tokenizer
        self._most = most
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "tokenizer")

    async def encode(self, text: str) -> list[int]:
        """The ids of a plain text. Raises RefusedError when that takes too long, or too many wait."""
        return await self._beside(partial(self._tokenizer.encode, text))

    async def render(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation. Raises TokenizerError, and RefusedError as ``encode``."""
        return await self._beside(partial(self._tokenizer.render, messages))

    async def _beside(self, work: Callable[[], list[int]]) -> list[int]:
        if self._waiting >= self._most:
            raise busy(self._most)
        self._waiting += 1
        try:
            async with asyncio.timeout(TOKENIZE_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError as error:
            raise RefusedError(f"the prompt was not tokenized within {TOKENIZE_S:g} s", status=503) from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the thread; what waits is not done any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
