"""Stop texts: finds them in a stream of pieces, and holds back what may be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence

Piece = tuple[str, str]  # text, and the level that first proposed it


class StopScanner:
    """Feed it pieces; it returns those that are safe to show. After a match nothing more comes."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held: list[Piece] = []
        self.matched = False

    def feed(self, text: str, origin: str) -> list[Piece]:
        """Pieces that can't be part of a stop text any more. On a match: those before it."""
        if not text:
            return []
        if not self._stops:
            return [(text, origin)]
        self._held.append((text, origin))
        joined = "".join(piece for piece, _ in self._held)
        found = [at for at in map(joined.find, self._stops) if at >= 0]
        if found:
            self.matched = True
            return self._release(min(found), drop_rest=True)
        return self._release(len(joined) - self._beginning(joined))

    def flush(self) -> list[Piece]:
        """What was held back; the text has ended."""
        rest, self._held = self._held, []
        return rest

    def _beginning(self, text: str) -> int:
        """Length of the longest end of the text that a stop text begins with."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0

    def _release(self, size: int, drop_rest: bool = False) -> list[Piece]:
        """Take ``size`` characters off the held pieces."""
        out: list[Piece] = []
        while size > 0:
            text, origin = self._held.pop(0)
            if len(text) > size:
                self._held.insert(0, (text[size:], origin))
                text = text[:size]
            out.append((text, origin))
            size -= len(text)
        if drop_rest:
            self._held = []
        return out
