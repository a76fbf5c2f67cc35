"""The chain a sequence uses: which levels, how far each guesses, and whether they overlap."""

from __future__ import annotations

from dataclasses import dataclass
from operator import gt

MAX_LEVELS = 8
MAX_WINDOW = 64
MAX_LOOKAHEAD = 256

Chain = tuple[tuple[str, ...], bool]  # levels, and whether they overlap


@dataclass(frozen=True, slots=True)
class Plan:
    """A chain with its windows. Raises ValueError that begins with the field's name.

    ``levels`` are names, lowest first; the last is the target. ``windows[i]`` is, for the lowest
    level, how many tokens it draws in one call; for every other, how many proposals it takes in
    one call. ``lookahead`` bounds how many tokens any level's text may run ahead of the committed one.
    ``least[i]`` is how many proposals level i waits for, when levels overlap, while a lower one is at work (its first
    entry means nothing); left out, 1 each. After a draw it is less sure of than ``confidence`` (0 to 1) the lowest
    level stops drafting.
    """

    levels: tuple[str, ...]
    windows: tuple[int, ...]
    lookahead: int = 16
    overlapped: bool = True
    least: tuple[int, ...] = ()
    confidence: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.levels) <= MAX_LEVELS:
            raise ValueError(f"levels: 1 to {MAX_LEVELS} are needed, got {len(self.levels)}")
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"levels: names must differ, got {', '.join(self.levels)}")
        if len(self.windows) != len(self.levels):
            raise ValueError(f"windows: one per level is needed, got {len(self.windows)} for {len(self.levels)}")
        if min(self.windows) < 1 or max(self.windows) > MAX_WINDOW:
            raise ValueError(f"windows: must be 1 to {MAX_WINDOW}, got {self.windows}")
        if not self.least:
            object.__setattr__(self, "least", (1,) * len(self.levels))
        if len(self.least) != len(self.levels) or min(self.least) < 1 or any(map(gt, self.least, self.windows)):
            raise ValueError(f"least: one per level of 1 to its window is needed, got {self.least} for {self.windows}")
        if not 1 <= self.lookahead <= MAX_LOOKAHEAD:
            raise ValueError(f"lookahead: must be 1 to {MAX_LOOKAHEAD}, got {self.lookahead}")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence: must be 0 to 1, got {self.confidence}")

    @property
    def chain(self) -> Chain:
        """What plans share that differ in their windows only; of one level that is its own, nothing overlaps."""
        return self.levels, self.overlapped and len(self.levels) > 1

    @property
    def target(self) -> str:
        """The level whose draws are committed."""
        return self.levels[-1]

    def without(self, level: str) -> Plan:
        """The same plan with one level below the target left out."""
        if level == self.target:
            raise ValueError(f"levels: the target {level} cannot be left out")
        keep = [i for i, name in enumerate(self.levels) if name != level]
        return Plan(
            levels=tuple(self.levels[i] for i in keep),
            windows=tuple(self.windows[i] for i in keep),
            lookahead=self.lookahead,
            overlapped=self.overlapped,
            least=tuple(self.least[i] for i in keep),
            confidence=self.confidence if keep[0] == 0 else 0.0,  # it is the lowest level's
        )
