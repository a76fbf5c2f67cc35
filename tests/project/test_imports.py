"""Which packages may import which: the table of the design."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY: dict[str, set[str]] = {  # package -> others of ours that it may import
    "specrouter_core": set(),
    "protos/python/specrouter": set(),
    "services/family/specrouter_family": {"specrouter_core"},
    "services/telemetry/specrouter_telemetry": {"specrouter_core"},
    "services/level/specrouter_level": {"specrouter_core", "specrouter", "specrouter_family", "specrouter_telemetry"},
    "services/router/specrouter_router": {"specrouter_core", "specrouter", "specrouter_family", "specrouter_telemetry"},
    # the command for people: it also reads the stub's curves, and passes explain-policy on
    "services/local/specrouter_local": {
        *("specrouter_core", "specrouter", "specrouter_family", "specrouter_level", "specrouter_operator")
    },
    "operator/specrouter_operator": {"specrouter_core", "specrouter", "specrouter_family"},
}
OURS = {Path(package).name for package in MAY}


def imported(path: Path) -> Iterator[str]:
    """Top names of all that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative"
            yield (node.module or "").partition(".")[0]


def test_the_table_has_every_package() -> None:
    there = {path.parent for folder in ("services/*", "operator", ".") for path in ROOT.glob(f"{folder}/*/__init__.py")}
    ours = {str(path.relative_to(ROOT)) for path in there if path.name.startswith("specrouter")}
    assert ours == set(MAY) - {"protos/python/specrouter"}


@pytest.mark.parametrize("package", MAY)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    may = MAY[package] | {Path(package).name}
    files = sorted((ROOT / package).rglob("*.py"))
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in imported(file)
        if (name in OURS or name in ("tests", "benchmarks")) and name not in may
    ]
    assert files and not wrong
