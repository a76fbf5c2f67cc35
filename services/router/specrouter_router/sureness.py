"""How sure a sequence's lowest level was of its draws, kept until it is known whether they were right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specrouter_core.event import Commit

MOST = 256  # positions beyond the committed text


class Sureness:
    """Of one sequence."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: dict[int, tuple[str, float]] = {}  # position -> level, confidence

    def said(self, level: str, start: int, confidences: Sequence[float]) -> None:
        """A level's draws from position ``start`` on."""
        if len(self._said) < MOST:
            for position, confidence in enumerate(confidences, start):
                self._said[position] = level, confidence

    def settle(self, commit: Commit) -> Iterator[tuple[str, float, bool]]:
        """What was said of the positions that are committed now: level, confidence, whether its draw was right."""
        for position, (token, draws) in enumerate(zip(commit.tokens, commit.draws, strict=True), commit.start):
            level, confidence = self._said.pop(position, ("", 0.0))
            if level in draws:
                yield level, confidence, draws[level] == token
