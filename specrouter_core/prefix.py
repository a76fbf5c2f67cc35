"""A rolling 64-bit hash of every prefix of a text.

A caller names the prefix of a sequence by its length and hash and sends only what follows. It is
a check that two parties mean the same text within one sequence, not a key for content, so 64 bits
and a fast mix are enough.

    hash(empty) = START;  hash(text + [token]) = mix(hash(text) ^ ((token + 1) * GOLDEN mod 2**64))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from specrouter_core.noise import GOLDEN, MASK, mix

START = 0x53706563526F7574


def step(value: int, token: int) -> int:
    """The hash of a text and one more token."""
    return mix(value ^ ((token + 1) * GOLDEN & MASK))


class Text:
    """Token ids of one sequence with the hash of each of its prefixes."""

    __slots__ = ("hashes", "tokens")

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self.hashes: list[int] = [START]  # hashes[n] is that of tokens[:n]
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        last = self.hashes[-1]
        for token in tokens:
            last = step(last, token)
            self.tokens.append(token)
            self.hashes.append(last)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        del self.tokens[length:]
        del self.hashes[length + 1 :]

    def shared(self, other: Sequence[int]) -> int:
        """How many leading tokens equal those of ``other``."""
        n = min(len(self.tokens), len(other))
        if self.tokens[:n] == list(other[:n]):
            return n
        return next(i for i in range(n) if self.tokens[i] != other[i])

    def holds(self, length: int, value: int) -> bool:
        """Whether the first ``length`` tokens are here and have this hash."""
        return length <= len(self.tokens) and self.hashes[length] == value
