"""One level's part in a sequence: its text beyond the committed one, its calls, and what it did; see machine.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specrouter_core.event import NOTHING


@dataclass(slots=True)
class Tally:
    """What one level did for this sequence, in calls and tokens."""

    calls: int = 0
    drawn: int = 0
    offered: int = 0
    accepted: int = 0
    committed: int = 0

    def count(self, flight: Flight) -> None:
        """A call of it has ended."""
        self.drawn += len(flight.tokens)
        self.offered += min(len(flight.proposals), len(flight.tokens))
        for drawn, proposed in zip(flight.tokens, flight.proposals, strict=False):
            if drawn != proposed:
                break
            self.accepted += 1


@dataclass(slots=True)
class Flight:
    """A call and what is known of its answer."""

    level: str
    base: int  # length of the committed text when it was sent
    ahead: tuple[int, ...]
    proposals: tuple[int, ...]
    more: int
    tokens: Sequence[int] = ()
    silent: bool = False  # it had no guess after the last of them

    @property
    def asked(self) -> int:
        """Draws the answer may hold at most."""
        return len(self.proposals) + 1 + self.more

    def beyond(self, committed: list[int]) -> list[int] | None:
        """The text its answer makes, as tokens beyond the committed text; None if it does not extend that."""
        text = [*self.ahead, *self.tokens]
        settled = committed[self.base :]
        return text[len(settled) :] if text[: len(settled)] == settled else None

    def alive(self, committed: list[int], above: list[int]) -> bool:
        """Whether its answer may still extend the text of the level above, as far as both are known."""
        known = [*self.ahead, *self.tokens]
        wanted = [*committed[self.base :], *above]
        n = min(len(known), len(wanted))
        return known[:n] == wanted[:n]


@dataclass(slots=True)
class Lane:
    """One level's text beyond the committed one, and its call in flight."""

    level: str
    window: int
    ahead: list[int] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    flight: int | None = None
    recent: list[Flight] = field(default_factory=list)  # calls whose draws may lie beyond the committed text
    dry: bool = False  # it had no more to offer at the end of this very text
    failures: int = 0

    def become(self, ahead: Sequence[int], origins: Sequence[str]) -> None:
        """Its text is this one now."""
        self.ahead, self.origins, self.dry = list(ahead), list(origins), False

    def drew(self, committed: list[int], start: int) -> list[tuple[int, int]]:
        """Its draws on committed text from ``start`` on: (position, token or NOTHING). Older calls are forgotten."""
        out: list[tuple[int, int]] = []
        for flight in self.recent:
            settled = committed[flight.base :]
            first = len(flight.ahead)
            if settled[:first] != list(flight.ahead):
                continue
            drawn = [*flight.tokens, NOTHING] if flight.silent else flight.tokens
            for at, token in enumerate(drawn[: len(settled) - first], first + flight.base):
                if at >= start:
                    out.append((at, token))
                if token != committed[at]:
                    break
        self.recent = [f for f in self.recent if f.base + len(f.ahead) + f.asked > len(committed)]
        return out
