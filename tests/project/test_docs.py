"""What the documentation names is there: files, pages, commands, targets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from specrouter_level.scripts import app as level
from specrouter_local.scripts import app as local
from specrouter_operator.scripts import app as operator
from specrouter_router.scripts import app as router

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])
COMMANDS = {
    f"specrouter{end}": get_command(app)
    for end, app in (("", local), ("-level", level), ("-router", router), ("-operator", operator))
}
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
BLOCK = re.compile(r"^```(?:sh|console|bash)\n(.*?)^```", re.M | re.S)
SPAN = re.compile(r"`((?:specrouter(?:-\w+)?|make) [^`]+)`")


def commands(text: str) -> list[list[str]]:
    """Words of each command of ours: in blocks of a shell, and in running text."""
    lines = [
        line.removeprefix("$ ") for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()
    ]
    found = [shlex.split(line, comments=True) for line in [*lines, *SPAN.findall(text)] if line.count("'") % 2 == 0]
    found = [words[1:] if words and "=" in words[0] else words for words in found]  # VARIABLE=value command
    return [words for words in found if words and Path(words[0]).name in (*COMMANDS, "make")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_commands_of_a_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    wrong = []
    for words in commands(text):
        if words[0] == "make":
            wrong += [word for word in words[1:2] if word not in targets]
            continue
        command = COMMANDS[Path(words[0]).name]
        for word in words[1:]:
            below = getattr(command, "commands", None)  # of a group
            if below is not None and not word.startswith("-"):
                wrong += [] if word in below else [f"{words[0]} {word}"]
                command = below.get(word, command)
            elif word.startswith("--") and word != "--help":
                known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
                wrong += [] if word.partition("=")[0] in known else [" ".join(words)]
    assert not wrong


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        links = [(page.parent / link).resolve() for link in LINK.findall(page.read_text(encoding="utf-8"))]
        ahead += [link for link in links if link.suffix == ".md" and link not in seen]
    assert set(PAGES) <= seen
