"""An engine without a model: it goes on as the text went on before.

The draw at a position is the token that followed the most recent earlier occurrence of the text's last
three ids, or else of its last two; where neither occurred before, there is no draw. It is a pure function of
the text, sampling parameters play no part, and it takes any vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from specrouter_level.engine import Drawn, Info, Memory, Span

RULE = "ngram: most recent earlier occurrence of the last 3, then 2 ids"


class Index:
    """The text of one slot, and where its ids occurred before; a token is added or removed in constant time."""

    __slots__ = ("_before", "_last", "tokens")

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._last: dict[tuple[int, ...], int] = {}  # last 2 or 3 ids -> where the most recent one ends
        self._before: list[tuple[int, int]] = []  # per position: where its 3 and its 2 ids ended before, -1 = nowhere

    def push(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        own, last, before = self.tokens, self._last, self._before
        for token in tokens:
            own.append(token)
            end = len(own) - 1
            three = two = -1
            if end >= 1:
                gram: tuple[int, ...] = (own[end - 1], token)
                two = last.get(gram, -1)
                last[gram] = end
                if end >= 2:
                    gram = (own[end - 2], own[end - 1], token)
                    three = last.get(gram, -1)
                    last[gram] = end
            before.append((three, two))

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        own, last = self.tokens, self._last
        for end in range(len(own) - 1, length - 1, -1):
            for size, previous in zip((3, 2), self._before[end], strict=True):
                gram = tuple(own[max(end - size + 1, 0) : end + 1])
                if previous >= 0:
                    last[gram] = previous
                elif len(gram) == size:
                    del last[gram]
        del own[length:]
        del self._before[length:]

    def guess(self) -> int | None:
        """What follows, or None."""
        if not self._before:
            return None
        three, two = self._before[-1]
        earlier = three if three >= 0 else two
        return self.tokens[earlier + 1] if earlier >= 0 else None


class NgramEngine:
    """Prompt lookup behind the engine's interface. All draws of a call come in one step."""

    inline = True
    memory: Memory | None = None  # its index is quicker made anew than restored

    def __init__(self, *, max_length: int, slots: int, max_rows: int) -> None:
        self.info = Info(
            engine="ngram",
            model_digest=hashlib.sha256(RULE.encode()).hexdigest(),
            vocab_digest="",
            vocab_size=0,
            max_length=max_length,
            slots=slots,
            max_rows=max_rows,
            dtype="none",
            device="none",
            exactness="bitwise",
            stop_ids=(),
            costs=(),
        )
        self._slots = [Index() for _ in range(slots)]

    def step(self, spans: Sequence[Span]) -> list[Drawn]:
        """See ``Engine``. The confidence of a guess is 1: the level knows no other token."""
        return [self._draw(span) for span in spans]

    def _draw(self, span: Span) -> Drawn:
        index = self._slots[span.slot]
        index.truncate(span.start)
        stop_ids = span.params.stop_ids
        first = len(span.text) - span.draws + 1 if span.draws else len(span.text)
        index.push(span.text[span.start : first])
        drawn: list[int] = []
        for position in range(first, first + span.draws + span.more if span.draws else first):
            token = index.guess()
            if token is None:
                break
            drawn.append(token)
            if position < len(span.text):
                index.push(span.text[position : position + 1])
            elif token in stop_ids:
                break
            else:
                index.push((token,))
        probes = [[(token, 1.0)] for token in drawn] if span.probe else []
        return Drawn(tokens=drawn, confidence=[1.0] * len(drawn), probes=probes)
