"""What a client asks for, and what it sees: the history of a sequence from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Ask:
    """One request. ``cancel_after`` tokens the client ends it; 0 = never."""

    name: str
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    temperature: float
    mode: str = ""
    chain: tuple[str, ...] = ()
    stop: str = ""
    cancel_after: int = 0
    interface: Literal["grpc", "rest"] = "grpc"


@dataclass(frozen=True)
class Event:
    """Something that happened to a sequence, as its client saw it. ``stream`` counts its connections."""

    at: float  # seconds of time.monotonic
    sequence: str
    stream: int


@dataclass(frozen=True)
class Opened(Event):
    """A stream was asked for: the rest from ``offset`` on. ``anew``: by the request itself."""

    router: int
    offset: int
    anew: bool


@dataclass(frozen=True)
class Got(Event):
    """Tokens came, the first of them with this index."""

    offset: int
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Ended(Event):
    """The router said that the text has ended. ``text`` had been held back till then."""

    finish: str
    tokens: int
    text: str


@dataclass(frozen=True)
class Broke(Event):
    """The stream ended otherwise."""

    code: str
    why: str


@dataclass(frozen=True)
class GaveUp(Event):
    """The client's patience was over."""

    seconds: float


@dataclass
class Course:
    """Where one sequence's client stands."""

    ask: Ask
    stream: int = 0
    got: int = 0
    place: str = ""  # the same as REST has it: the id of the last event
    known: bool = False  # a router has answered for it
    finish: str = ""  # as REST said it, before the end
    cancelled: bool = False
    done: bool = False


Note = Callable[[Event], None]
