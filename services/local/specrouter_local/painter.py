"""Draws an answer while it streams: each piece in the colour of the level that proposed it first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from specrouter_local.client import Answer, Piece

TARGET_COLOUR = "yellow"
LOWER_COLOURS = ("green", "cyan", "magenta", "blue", "bright_red", "bright_green", "bright_cyan")
WIDTH = 96  # columns at most
INDENT = "  "
BAR = 24  # columns of a bar that stands for all tokens


def colours(levels: Sequence[str]) -> dict[str, str]:
    """A colour per level, lowest first."""
    return dict(zip(levels[:-1], LOWER_COLOURS, strict=False)) | {levels[-1]: TARGET_COLOUR}


class Painter:
    """Writes pieces of text as they come and breaks lines between words."""

    def __init__(self, console: Console, palette: dict[str, str]) -> None:
        self._console = console
        self._palette = palette
        self._width = min(console.width, WIDTH) - len(INDENT)
        self._column = 0
        self._word: list[Piece] = []  # the word that is not complete yet

    def draw(self, pieces: Iterable[Piece]) -> None:
        """Draws until the pieces end."""
        for piece in pieces:
            self._add(piece)
        self._flush()
        self._console.print()

    def _add(self, piece: Piece) -> None:
        word = ""
        for character in piece.text:
            if character.isspace():
                self._hold(word, piece.origin)
                word = ""
                self._flush()
                self._space(character)
            else:
                word += character
        self._hold(word, piece.origin)

    def _hold(self, text: str, origin: str) -> None:
        if text:
            self._word.append(Piece(text, origin))

    def _space(self, character: str) -> None:
        if character == "\n" or self._column >= self._width:
            self._console.print()
            self._column = 0
        else:
            self._put(Piece(" ", ""))

    def _flush(self) -> None:
        length = sum(len(piece.text) for piece in self._word)
        if self._column and self._column + length > self._width:
            self._console.print()
            self._column = 0
        for piece in self._word:
            self._put(piece)
        self._word = []

    def _put(self, piece: Piece) -> None:
        line = Text(INDENT if self._column == 0 else "")
        line.append(piece.text, style=self._palette.get(piece.origin, ""))
        self._console.print(line, end="", soft_wrap=True)
        self._column += len(piece.text)


def account(answer: Answer, levels: Sequence[str]) -> Group:
    """What stands under an answer: speed, and per level what it proposed first and how much of it was right."""
    speed = Text(INDENT)
    speed.append(f"{answer.count} tokens, {1000 / max(answer.ms_per_token, 1e-3):.1f} tokens/s", style="bold")
    speed.append(
        f"   {answer.ms_per_token:.1f} ms per token, first text after {1000 * answer.first:.0f} ms", style="dim"
    )
    palette = colours(levels)
    counts = Counter(answer.origins)
    entries = {entry["level"]: entry for entry in answer.report["levels"]} if answer.report else {}
    used = list(entries) or list(levels)
    table = Table.grid(padding=(0, 2))
    for i, level in enumerate(used):
        share = counts[level] / max(1, len(answer.origins))
        colour = palette.get(level, "")
        bar = Text("━" * round(BAR * share), style=colour) + Text(
            "━" * (BAR - round(BAR * share)), style="bright_black"
        )
        words = f"{counts[level]:4d} tokens ({share:.0%})"
        if i + 1 < len(used) and entries:
            above = entries[used[i + 1]]
            words += f", {used[i + 1]} accepted {above['accepted']} of {above['offered']}"
        table.add_row(Text(INDENT + level, style=colour), bar, Text(words, style="dim"))
    lines: list[RenderableType] = [speed, table]
    if answer.report and answer.report["lost"]:
        lines.append(Text(f"{INDENT}lost on the way: {', '.join(answer.report['lost'])}", style="red"))
    return Group(*lines)
