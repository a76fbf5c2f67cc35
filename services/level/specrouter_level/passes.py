"""From a step's spans to passes of the model: which token stands in which row.

Two ways. ``flat``: one pass with every row. ``fixed``: passes of a fixed shape, so that what a
row computes is, bit for bit, a function of its text and of where the prompt ended: the prompt in chunks
of CHUNK rows that begin at multiples of CHUNK, everything after it in passes of ROWS rows, attention over
spans of whole blocks. Rows of no piece are padding: their keys are not kept, their result is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specrouter_level.engine import Span
from specrouter_level.kv import BLOCK, Piece

CHUNK = 64  # rows of a pass over a prompt; a divisor of BLOCK
ROWS = 8  # rows of a pass over generated text


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw asked for: after row ``row`` of its pass, for position ``position`` of span ``span``."""

    row: int
    span: int  # index into the step's spans
    position: int


@dataclass(slots=True)
class Pass:
    """One run of the model."""

    tokens: list[int] = field(default_factory=list)  # by row
    positions: list[int] = field(default_factory=list)  # by row
    pieces: list[Piece] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)

    def pad(self, rows: int) -> None:
        """Add rows of padding until there are ``rows``."""
        missing = rows - len(self.tokens)
        self.tokens += [0] * missing
        self.positions += [0] * missing


def _add(into: Pass, spans: Sequence[Span], index: int, begin: int, end: int) -> int:
    """Append the tokens of ``text[begin:end]`` as rows, with their draws; returns the first row."""
    span = spans[index]
    first = len(into.tokens)
    into.tokens += list(span.text[begin:end])
    into.positions += range(begin, end)
    drawn = max(begin, len(span.text) - span.draws)
    into.draws += [Draw(first + at - begin, index, at + 1) for at in range(drawn, end)]
    return first


def flat(spans: Sequence[Span]) -> list[Pass]:
    """One pass with one piece a span."""
    one = Pass()
    for index, span in enumerate(spans):
        end, rows = len(span.text), len(span.text) - span.start
        first = _add(one, spans, index, span.start, end)
        one.pieces.append(Piece(span.slot, first, rows, span.start, rows, end))
    return [one]


def _blocks(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def fixed(spans: Sequence[Span]) -> list[Pass]:
    """Passes of fixed shape; a chunk that the span begins within is computed again from its start."""
    passes: list[Pass] = []
    for index, span in enumerate(spans):
        prompt_end = min(span.params.prompt_length, len(span.text))
        if span.start >= prompt_end:
            continue
        for begin in range(span.start - span.start % CHUNK, prompt_end, CHUNK):
            chunk, end = Pass(), min(begin + CHUNK, prompt_end)
            _add(chunk, spans, index, begin, end)
            chunk.pad(CHUNK)
            chunk.pieces.append(Piece(span.slot, 0, CHUNK, begin, end - begin, _blocks(begin + CHUNK)))
            passes.append(chunk)
    rows = [
        (index, at)
        for index, span in enumerate(spans)
        for at in range(max(span.start, min(span.params.prompt_length, len(span.text))), len(span.text))
    ]
    for begin in range(0, len(rows), ROWS):
        part = Pass()
        for index, at in rows[begin : begin + ROWS]:
            first = _add(part, spans, index, at, at + 1)
            part.pieces.append(Piece(spans[index].slot, first, 1, at, 1, _blocks(at + 1)))
        part.pad(ROWS)
        passes.append(part)
    return passes
