"""One level's part in a sequence: its text beyond the committed one, its calls, and what it did; see machine.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """What one level did for this sequence, in calls and tokens."""

    calls: int = 0
    drawn: int = 0
    offered: int = 0
    accepted: int = 0
    committed: int = 0


@dataclass(slots=True)
class Flight:
    """A call and what is known of its answer."""

    level: str
    base: int  # length of the committed text when it was sent
    ahead: tuple[int, ...]
    proposals: tuple[int, ...]
    more: int
    tokens: Sequence[int] = ()

    @property
    def asked(self) -> int:
        """Draws the answer may hold at most."""
        return len(self.proposals) + 1 + self.more


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
