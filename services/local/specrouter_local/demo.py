"""The demonstration: the same answers by the chain and by the target alone, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specrouter_local.chat import Talk, legend
from specrouter_local.client import Answer, Message, Router, Settings
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
        "A text to rewrite, where much can be copied",
        "Write this text again in short sentences:\n\n"
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
    chain = Settings(state.name, MAX_TOKENS, TEMPERATURE, SEED)
    alone = Settings(state.name, MAX_TOKENS, TEMPERATURE, SEED, chain=(target,))
    console.print()
    console.print(legend(state.levels))
    try:
        for settings in (chain, alone):  # the first request to a fresh process pays for things that stay
            list(router.chat(settings, _asked("Say hello."), Answer()))
        pairs = []
        for scene in SCENES:
            console.rule(Text(scene.title, style="bold"), align="left", style="dim")
            console.print(Text(f"\n  {scene.prompt}", style="italic"))
            by_chain = talk.say(chain, _asked(scene.prompt))
            console.print(Text(f"  The same by {target} alone:", style="dim"))
            pairs.append(Pair(scene, by_chain, talk.say(alone, _asked(scene.prompt))))
    finally:
        router.close()
    console.rule(Text("Comparison", style="bold"), align="left", style="dim")
    console.print()
    console.print(comparison(pairs, target))
    console.print(Text(f"\n  {CAVEAT}", style="dim"), width=min(console.width, 100))
    return all(pair.identical for pair in pairs)


def comparison(pairs: Sequence[Pair], target: str) -> Table:
    """One row per scene."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("")
    table.add_column("same text")
    for name in ("tokens", "chain", f"{target} alone", "times faster"):
        table.add_column(name, justify="right")
    table.add_column("accepted")
    for pair in pairs:
        table.add_row(
            Text(pair.scene.title.split(",")[0], style="bold"),
            Text("yes", style="green") if pair.identical else Text("NO", style="bold red"),
            str(pair.chain.count),
            f"{pair.chain.ms_per_token:.1f} ms/token",
            f"{pair.alone.ms_per_token:.1f} ms/token",
            Text(f"{pair.alone.ms_per_token / pair.chain.ms_per_token:.2f}x", style="bold"),
            Text(accepted(pair.chain), style="dim"),
        )
    return table


def accepted(answer: Answer) -> str:
    """For each level above the lowest, how many proposals of the level below it took."""
    if not answer.report:
        return ""
    levels = answer.report["levels"]
    words = [f"{entry['level']} {entry['accepted']} of {entry['offered']}" for entry in levels[1:]]
    return ", ".join(words) + f", in {answer.report['rounds']} rounds"


def _asked(prompt: str) -> list[Message]:
    return [{"role": "user", "content": prompt}]
