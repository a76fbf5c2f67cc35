"""What happens to a sequence (events) and what is to be done for it (actions); see machine.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from specrouter_core.chain import Plan

Reason = Literal["stop", "length", "cancelled", "error"]
NOTHING = -1  # the draw of a level that has no guess: as good as a wrong one


# Events: what happened.


@dataclass(frozen=True, slots=True)
class Reply:
    """All draws of a call so far, from its first."""

    call: int
    tokens: Sequence[int]
    done: bool  # nothing more of this call will come
    unsure: bool = False  # it ended because the level was not sure enough of its last draw


@dataclass(frozen=True, slots=True)
class Failed:
    """A call will not be answered (a reply may still come late)."""

    call: int
    fatal: bool = False  # the level is gone: do not try it again
    why: str = ""


@dataclass(frozen=True, slots=True)
class Replan:
    """Use another chain from now on; the target stays the same."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants the rest."""


Event = Reply | Failed | Replan | Cancel


# Actions: what to do.


@dataclass(frozen=True, slots=True)
class Call:
    """Ask ``level`` how its text goes on after ``committed[:base] + ahead``."""

    level: str
    call: int
    base: int
    ahead: tuple[int, ...]
    proposals: tuple[int, ...]
    more: int
    confidence: float = 0.0  # it may stop after a draw that it is less sure of


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The answer to this call has become useless."""

    level: str
    call: int


@dataclass(frozen=True, slots=True)
class Commit:
    """These tokens are final. ``start`` is the absolute position of the first."""

    start: int
    tokens: tuple[int, ...]
    origins: tuple[str, ...]  # per token, the level that first proposed it
    draws: tuple[Mapping[str, int], ...] = ()  # per token, what levels below the target drew there, or NOTHING


@dataclass(frozen=True, slots=True)
class Lost:
    """A level left the chain because it failed."""

    level: str
    why: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The sequence has ended; nothing follows."""

    reason: Reason
    why: str = ""


Action = Call | Withdraw | Commit | Lost | Finish
