"""The demonstration: the same answers by the chain and by the target alone, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from specrouter_local.chat import Talk, legend
from specrouter_local.client import Answer, Message, Router, Settings
from specrouter_local.painter import WIDTH
from specrouter_local.state import MeshState

MAX_TOKENS = 160
TEMPERATURE = 0.0
SEED = 7
CAVEAT = (
    "On a CPU the int4 copy alone (level mid) would be faster still. What is shown is the text of the float32 "
    "target, exactly, at less than its cost: every token above was drawn by the target itself."
)


@dataclass(frozen=True, slots=True)
class Scene:
    """One prompt and its two answers."""

    title: str
    prompt: str


SCENES = (
    Scene("A question", "Explain in one paragraph how rainbows form."),
    Scene(
        "A text to rewrite",
        "Write this text again as a list, with one sentence per line:\n\n"
        "The museum opens at nine in the morning and closes at six in the evening. On Mondays it stays closed. Tickets "
        "cost twelve euros, and children under the age of ten go in for free. The oldest room shows coins, maps and "
        "letters that sailors brought home from the islands. In the garden behind the house there is a small cafe "
        "with a view of the harbour.",
    ),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """What the two ways made of one scene."""

    scene: Scene
    chain: Answer
    alone: Answer

    @property
    def identical(self) -> bool:
        """Whether ids and text are the same."""
        return self.chain.tokens == self.alone.tokens and self.chain.text == self.alone.text


def play(console: Console, state: MeshState) -> bool:
    """Shows all scenes and the comparison; returns whether every pair of texts is identical. Raises UserError."""
    router = Router(state.router)
    talk = Talk(console, router, state.levels)
    target = state.levels[-1]
    chain = Settings(state.name, MAX_TOKENS, TEMPERATURE, SEED, chain=tuple(state.levels))
    alone = Settings(state.name, MAX_TOKENS, TEMPERATURE, SEED, chain=(target,))
    console.print()
    console.print(legend(state.levels))
    try:
        for settings in (chain, alone):  # the first request to a fresh process pays for things that stay
            list(router.chat(settings, _asked("Say hello."), Answer()))
        pairs = []
        for scene in SCENES:
            console.rule(Text(scene.title, style="bold"), align="left", style="dim")
            console.print(Padding(Text(scene.prompt, style="italic"), (1, 2, 0, 2)), width=min(console.width, WIDTH))
            by_chain = talk.say(chain, _asked(scene.prompt))
            console.print(Text(f"  The same by {target} alone:", style="dim"))
            pairs.append(Pair(scene, by_chain, talk.say(alone, _asked(scene.prompt))))
    finally:
        router.close()
    console.rule(Text("Comparison", style="bold"), align="left", style="dim")
    console.print()
    console.print(comparison(pairs, target))
    console.print(Padding(Text(CAVEAT, style="dim"), (1, 2)), width=min(console.width, WIDTH))
    return all(pair.identical for pair in pairs)


def comparison(pairs: Sequence[Pair], target: str) -> Table:
    """One column per scene."""
    table = Table(box=None, padding=(0, 3, 0, 2))
    table.add_column("")
    for pair in pairs:
        table.add_column(pair.scene.title)

    def row(name: str, values: Iterable[str | Text]) -> None:
        table.add_row(Text(name, style="dim"), *values)

    row("identical text", (Text("yes", "bold green") if pair.identical else Text("NO", "bold red") for pair in pairs))
    row("tokens", (str(pair.chain.count) for pair in pairs))
    row("by the chain", (f"{pair.chain.ms_per_token:.1f} ms per token" for pair in pairs))
    row(f"by {target} alone", (f"{pair.alone.ms_per_token:.1f} ms per token" for pair in pairs))
    row("times faster", (Text(f"{pair.alone.ms_per_token / pair.chain.ms_per_token:.2f}", "bold") for pair in pairs))
    accounts = [pair.chain.report for pair in pairs if pair.chain.report]
    if len(accounts) == len(pairs):
        row(
            f"calls of {target}",
            (
                f"{account['rounds']} instead of {pair.alone.count}"
                for account, pair in zip(accounts, pairs, strict=True)
            ),
        )
        for i, level in enumerate(accounts[0]["levels"][1:], start=1):
            taken = [account["levels"][i] for account in accounts]
            row(
                f"accepted by {level['level']}",
                (f"{entry['accepted']} of {entry['offered']} proposals" for entry in taken),
            )
    return table


def _asked(prompt: str) -> list[Message]:
    return [{"role": "user", "content": prompt}]
