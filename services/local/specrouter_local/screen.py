"""What the launcher shows: the pull's bar, the board of parts, where the mesh is reached."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from specrouter_local import models
from specrouter_local.state import MeshState, PartState

REDRAW = 0.1  # seconds
GLYPHS = {"ready": ("✓", "green"), "backing off": ("!", "yellow"), "gone": ("✗", "red"), "waiting": ("·", "dim")}
KINDS = {"redis": "state (Valkey)", "level": "level", "router": "router"}


@contextmanager
def pull_bar(console: Console) -> Iterator[models.Progress]:
    """A bar for what a pull does; it takes no room when nothing has to be done."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<12}"),
        BarColumn(40, complete_style="cyan", finished_style="green"),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    tasks: dict[str, TaskID] = {}
    with ExitStack() as stack:

        def show(what: str, share: float) -> None:
            if not tasks:
                stack.enter_context(bar)
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, completed=1.0)
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=share)

        yield show


class Board:
    """One line per part, redrawn in place on a terminal, printed once per change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._spinner = Spinner("dots", style="cyan")
        self._drawn = 0.0
        self._told: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def draw(self, state: MeshState, last: bool = False) -> None:
        """Shows the state; at most ten times a second unless it is the ``last``."""
        if self._live:
            now = time.monotonic()
            if last or now - self._drawn >= REDRAW:
                self._drawn = now
                self._live.update(parts_table(state.parts, self._spinner), refresh=True)
            return
        for part in state.parts:
            if self._told.get(part.name) != part.condition and part.condition != "waiting":
                self._told[part.name] = part.condition
                self._console.print(f"{part.name}: {_words(part).removesuffix(' 0 s')}", highlight=False)


def parts_table(parts: list[PartState], spinner: Spinner | None = None) -> Table:
    """One row per part."""
    table = Table.grid(padding=(0, 2))
    for part in parts:
        glyph, style = GLYPHS.get(part.condition, ("…", "cyan"))
        mark: RenderableType = spinner if spinner and part.condition == "starting" else Text(glyph, style=style)
        table.add_row(
            Text(" "),
            mark,
            Text(part.name, style="bold"),
            Text(KINDS[part.kind], style="dim"),
            Text(part.address, style="dim"),
            Text(_words(part), style=style),
            Text(part.note if part.condition == "ready" else "", style="dim"),
        )
    return table


def process_table(state: MeshState) -> Table:
    """The processes of a mesh: how they are and for how long."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("part", "", "pid", "for", "restarts", "address"):
        table.add_column(column, justify="right" if column in ("pid", "restarts") else "left")
    for part in state.parts:
        _, style = GLYPHS.get(part.condition, ("", "cyan"))
        since = duration(time.time() - part.since) if part.since else ""
        condition = Text(part.condition, style=style)
        name = Text(part.name, style="bold")
        table.add_row(name, condition, str(part.pid), since, str(part.restarts), Text(part.address))
    return table


def level_table(levels: Sequence[dict[str, Any]]) -> Table:
    """The levels as the router sees them."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("level", "", "engine", "dtype", "device", "max length", "model digest"):
        table.add_column(column, justify="right" if column == "max length" else "left")
    for level in levels:
        seen = Text("ready", style="green") if level["ready"] else Text("not reached", style="red")
        facts = [str(level.get(key) or "") for key in ("engine", "dtype", "device", "max_length")]
        table.add_row(Text(level["name"], style="bold"), seen, *facts, str(level.get("model_digest") or "")[:12])
    return table


def replica_table(levels: Sequence[dict[str, Any]]) -> Table | None:
    """The replicas of levels that have several, as the router sees them; None where no level has."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("replica", "", "circuit", "sequences", "in flight", "step", "queue", "why"):
        numeric = column in ("sequences", "in flight", "step", "queue")
        table.add_column(column, justify="right" if numeric else "left")
    for level in levels:
        replicas = level["replicas"]
        for replica in replicas if len(replicas) > 1 else ():
            state = Text(replica["state"], style="green" if replica["state"] == "ready" else "yellow")
            table.add_row(
                Text.assemble((level["name"], "bold"), f" {replica['address']}"),
                state,
                replica["circuit"],
                str(replica["sequences"]),
                str(replica["inflight"]),
                f"{replica['step_ms']:.2f} ms",
                f"{replica['queue_ms']:.2f} ms",
                replica["why"],
            )
    return table if table.row_count else None


def _words(part: PartState) -> str:
    if part.condition == "ready":
        return f"ready in {part.took:.1f} s"
    if part.condition == "starting":
        return f"starting {time.time() - part.since:.0f} s"
    if part.condition == "gone" and part.note:
        return f"gone: {part.note}"
    return part.condition


def addresses(state: MeshState) -> Group:
    """Where a ready mesh is reached, and a request to copy."""
    body = json.dumps({"model": state.name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 50})
    lines = [
        Text(),
        Text.assemble(("  OpenAI API  ", "dim"), (f"{state.router}/v1", "bold")),
        Text.assemble(("  gRPC        ", "dim"), (state.grpc, "bold"), ("  (RouterService)", "dim")),
        Text(),
        Text(f"  curl {state.router}/v1/chat/completions \\"),
        Text("    -H 'Content-Type: application/json' \\"),
        Text(f"    -d '{body}'"),
        Text(),
        Text("  In another terminal: specrouter chat, specrouter status, specrouter down", style="dim"),
    ]
    return Group(*lines)


def duration(seconds: float) -> str:
    """As people say it: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
