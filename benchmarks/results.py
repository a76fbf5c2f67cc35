"""How every benchmark leaves its numbers: benchmarks/results/NAME.json, and a table for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent / "results"
PACKAGES = (
    "specrouter",
    "grpcio",
    "protobuf",
    "numpy",
    "redis",
    "fastapi",
    "uvicorn",
    "uvloop",
    "torch",
    "transformers",
)


def write(name: str, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float | bool | str]) -> Path:
    """Write NAME.json with ``machine``, ``rows`` and the flat ``summary``, and print both as tables."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    content = {"machine": machine(), "rows": [dict(row) for row in rows], "summary": dict(summary)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console = Console()
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = Table(*columns, title=name)
        for row in rows:
            table.add_row(*(_cell(row.get(column, "")) for column in columns))
        console.print(table)
    console.print(Table.grid(padding=(0, 2)) if not summary else _pairs(summary))
    console.print(f"written to {path}")
    return path


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _pairs(summary: Mapping[str, Any]) -> Table:
    table = Table("summary", "")
    for key, value in summary.items():
        table.add_row(key, _cell(value))
    return table


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
