"""The terminal chat."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from specrouter_local.client import Answer, Message, Router, Settings
from specrouter_local.errors import UserError
from specrouter_local.painter import Painter, account, colours

HELP = "/reset forgets the conversation, /quit or Ctrl-D leaves."


def legend(levels: Sequence[str]) -> Text:
    """Which colour is which level."""
    palette = colours(levels)
    line = Text("  colour of a token = the level that proposed it first:  ", style="dim")
    for i, level in enumerate(levels):
        role = " (the target)" if i == len(levels) - 1 and level != "target" else ""
        line.append("■ ", style=palette[level]).append(f"{level}{role}  ")
    return line


class Talk:
    """One mesh and one terminal."""

    def __init__(self, console: Console, router: Router, levels: Sequence[str]) -> None:
        self.console = console
        self.router = router
        self.levels = levels

    def say(self, settings: Settings, messages: Sequence[Message]) -> Answer:
        """Asks, draws the answer as it comes and its account under it. Raises UserError."""
        answer = Answer()
        self.console.print()
        Painter(self.console, colours(self.levels)).draw(self.router.chat(settings, messages, answer))
        self.console.print()
        self.console.print(account(answer, self.levels))
        self.console.print()
        return answer

    def loop(self, settings: Settings) -> None:
        """Reads messages and answers them until the user leaves. A failed answer is not kept in the history."""
        self.console.print(legend(self.levels))
        self._note(HELP)
        history: list[Message] = []
        while True:
            try:
                line = self.console.input("[bold]> [/bold]").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line == "/quit":
                return
            if line == "/reset":
                history = []
                self._note("forgotten")
            elif line.startswith("/"):
                self._note(HELP)
            elif line:
                history = self._turn(settings, history, line)

    def _turn(self, settings: Settings, history: list[Message], line: str) -> list[Message]:
        """The history after one more message: with its answer, or as it was when there is none."""
        asked: list[Message] = [*history, {"role": "user", "content": line}]
        try:
            answer = self.say(settings, asked)
        except KeyboardInterrupt:
            self._note("stopped")
        except UserError as error:
            self.console.print(Text(f"\n  {error}", style="red"))
        else:
            return [*asked, {"role": "assistant", "content": answer.text}]
        return history

    def _note(self, text: str) -> None:
        self.console.print(Text(f"  {text}", style="dim"))
