"""The generated text of one sequence, as its readers follow it.

Tokens are appended when they are committed and become visible when they are delivered (their record is written).
What text a token adds depends on the tokens before it alone, not on how they were grouped. A reader keeps a
position only: a slow one gets larger chunks, not a longer queue, and any number may follow, from any token on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from specrouter_router.refusal import RefusedError
from specrouter_router.stops import Piece, StopScanner
from specrouter_router.tokenizer import Detokenizer

Reason = Literal["stop", "length", "cancelled"]


@dataclass(slots=True)
class LevelAccount:
    """What one level did for a sequence. Calls, tokens, milliseconds."""

    level: str
    calls: int = 0
    drawn: int = 0
    offered: int = 0
    accepted: int = 0
    committed: int = 0
    compute_ms: float = 0.0
    queue_ms: float = 0.0


@dataclass(slots=True)
class ChainAccount:
    """What one chain did for a sequence. Rounds, tokens, milliseconds from commit to commit."""

    levels: list[str]
    mode: Literal["overlapped", "lockstep"]
    rounds: int = 0
    tokens: int = 0
    ms: float = 0.0


@dataclass(slots=True)
class Account:
    """What happened while a sequence ran."""

    rounds: int = 0
    levels: list[LevelAccount] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    chains: list[ChainAccount] = field(default_factory=list)  # in the order of their first use
    switches: int = 0  # of the chain


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some delivered tokens and the text they added."""

    offset: int  # index of the first among the generated tokens
    tokens: Sequence[int]
    origins: Sequence[str]  # per token, the level that first proposed it
    pieces: Sequence[Piece]

    @property
    def text(self) -> str:
        """The pieces, joined."""
        return "".join([text for text, _ in self.pieces])


@dataclass(frozen=True, slots=True)
class End:
    """Nothing follows. ``reason`` None: it broke off because of ``refusal``."""

    reason: Reason | None
    pieces: Sequence[Piece]  # text that was held back till now
    account: Account
    refusal: RefusedError | None = None


class Story:
    """See the module. ``stop_ids`` end the text and show no text of their own.

    ``abandoned`` is called when the last of its followers has gone before the end.
    """

    def __init__(
        self, tokens: list[int], detokenizer: Detokenizer, stops: Sequence[str], stop_ids: frozenset[int]
    ) -> None:
        self.tokens = tokens  # empty; shared with the record
        self.origins: list[str] = []
        self.delivered = 0
        self.end: End | None = None
        self.followers = 0
        self.abandoned: Callable[[], None] | None = None
        self._pieces: list[list[Piece]] = []  # per token
        self._detokenizer = detokenizer
        self._scanner = StopScanner(stops)
        self._stop_ids = stop_ids
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def matched(self) -> bool:
        """Whether a stop text is complete."""
        return self._scanner.matched

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While a client follows."""
        self.followers += 1
        try:
            yield
        finally:
            self.followers -= 1
            if not self.followers:
                self.abandon()

    def abandon(self) -> None:
        """Nobody follows any more."""
        if self.end is None and self.abandoned is not None:
            self.abandoned()

    def append(self, token: int, origin: str) -> bool:
        """Add a committed token. Returns whether it completes a stop text; nothing may be added after that."""
        text = "" if token in self._stop_ids else self._detokenizer.feed(token)
        self.tokens.append(token)
        self.origins.append(origin)
        self._pieces.append(self._scanner.feed(text, origin) if text else [])
        return self._scanner.matched

    def deliver(self, count: int) -> None:
        """The first ``count`` tokens may be shown."""
        if count > self.delivered:
            self.delivered = count
            self._wake()

    def close(self, reason: Reason | None, account: Account, refusal: RefusedError | None = None) -> None:
        """Nothing follows the tokens appended so far. At a proper end, all of them may be shown."""
        pieces: list[Piece] = []
        if not self._scanner.matched:
            origin = self.origins[-1] if self.origins else ""
            pieces += self._scanner.feed(self._detokenizer.flush(), origin)
            if not self._scanner.matched:
                pieces += self._scanner.flush()
        if refusal is None:
            self.delivered = len(self.tokens)
        self.end = End(reason, pieces, account, refusal)
        self._wake()

    def cut(self, reason: Reason, account: Account) -> None:
        """It was ended elsewhere: what has not been delivered is void."""
        for part in (self.tokens, self.origins, self._pieces):
            del part[self.delivered :]
        self.end = End(reason, (), account)
        self._wake()

    def chunk(self, position: int) -> Chunk | None:
        """The delivered tokens from ``position`` on, if there are any."""
        if position >= self.delivered:
            return None
        pieces: list[Piece] = []
        for some in self._pieces[position : self.delivered]:
            for text, origin in some:
                if pieces and pieces[-1][1] == origin:
                    pieces[-1] = (pieces[-1][0] + text, origin)
                else:
                    pieces.append((text, origin))
        tokens, origins = self.tokens[position : self.delivered], self.origins[position : self.delivered]
        return Chunk(position, tokens, origins, pieces)

    async def changed(self) -> None:
        """Returns when something new was delivered, or the end came."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    async def finished(self) -> None:
        """Returns when the end has come."""
        while self.end is None:
            await self.changed()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Reader:
    """Follows a story from a token on. One user at a time."""

    def __init__(self, story: Story, position: int = 0) -> None:
        self._story = story
        self.position = position

    async def next(self) -> Chunk | End:
        """The next delivered tokens, or the end."""
        while True:
            chunk = self._story.chunk(self.position)
            if chunk is not None:
                self.position += len(chunk.tokens)
                return chunk
            if self._story.end is not None:
                return self._story.end
            await self._story.changed()
