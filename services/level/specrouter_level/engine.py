"""What a level needs of a model: feed some tokens, draw after some of them.

An engine holds ``slots`` sequences. What a slot holds is known by the caller: ``start`` of a
span says how many of the slot's leading positions count, so a rollback is a smaller number and
costs nothing. An engine is used from one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from specrouter_core.sampling import Sampling
from specrouter_level.codec import Array, Layout


@dataclass(frozen=True, slots=True)
class Params:
    """What a sequence's draws depend on besides its text; fixed for its life."""

    sampling: Sampling
    prompt_length: int  # tokens; draws at this position or later are generated text
    stop_ids: frozenset[int] = frozenset()  # a drawn one ends the text


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of a step: feed ``text[start:]``, draw after its last ``draws`` tokens."""

    slot: int  # 0 .. slots-1
    start: int  # leading positions of the slot that hold text[:start]
    text: Sequence[int]  # the whole text up to the last token fed; longer than start
    draws: int  # 0 .. len(text) - start
    params: Params
    probe: int = 0  # how many top probabilities to report for each draw
    # Further draws the caller wants after the last. An engine that need not be fed to go on (ngram) may answer
    # them at once, as if each draw had been fed; it stops at a stop id. Others leave them to the next steps.
    more: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """The answer to one span."""

    # Draw i is the token at position len(text) - draws + 1 + i. Fewer than ``draws``: the engine has no guess
    # there. Up to ``more`` further ones may follow.
    tokens: list[int]
    confidence: list[float]  # per draw, the probability of the most likely token (before the noise)
    probes: list[list[tuple[int, float]]] = field(default_factory=list)  # per draw: (id, probability), likeliest first


@dataclass(frozen=True, slots=True)
class StepCost:
    """One point of an engine's cost curve."""

    rows: int  # tokens fed in one step
    seconds: float  # median time of such a step


@dataclass(frozen=True, slots=True)
class Info:
    """What an engine says of itself."""

    engine: str  # torch | stub | ngram
    model_digest: str  # hex SHA-256 over weights, config and quantization; of the settings for engines without weights
    vocab_digest: str  # hex SHA-256 over the id -> token table; "" = takes any vocabulary
    vocab_size: int  # 0 = takes any
    max_length: int  # tokens of one slot
    slots: int  # sequences held at once
    max_rows: int  # tokens fed in one step at most, over all its spans
    dtype: str  # float32 | bfloat16 | float16 | int8 | int4 | none
    device: str  # cpu | cuda:0 | none
    exactness: str  # "bitwise" | "shape" (equal up to the step's shape)
    stop_ids: tuple[int, ...]  # the model's own end-of-turn ids
    costs: tuple[StepCost, ...]  # from the calibration at start, by rows


class Memory(Protocol):
    """What an engine keeps of its slots' positions, to copy out and in again.

    Used from threads of its own while steps run: of positions that no step writes meanwhile, or else the copy is void.
    """

    layout: Layout

    def read(self, slot: int, begin: int, end: int) -> list[Array]:
        """Copies of the positions, one array [heads, end - begin, dim] for each part of the layout."""
        ...

    def write(self, slot: int, begin: int, block: Sequence[Array]) -> None:
        """Put them back, from position ``begin`` on."""
        ...


class Engine(Protocol):
    """A model behind the scheduler."""

    info: Info
    inline: bool  # a step takes microseconds: run it where the calls arrive, not in a thread
    memory: Memory | None  # None: it keeps nothing worth a checkpoint

    def step(self, spans: Sequence[Span]) -> list[Drawn]:
        """One pass over all spans (different slots, at most ``max_rows`` tokens together)."""
        ...
