"""A router waits for the family file that it was started for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from specrouter_family.family import FamilyError
from specrouter_router import family_source

LEVEL = "{{name: {name}, engine: stub, address: 'level:9000'}}"


def write(path: Path, *names: str) -> None:
    levels = ", ".join(LEVEL.format(name=name) for name in names)
    new = path.with_suffix(".new")
    new.write_text(f"{{name: a, tokenizer: bytes, levels: [{levels}]}}")
    new.replace(path)  # as the kubelet does: at once


def test_it_takes_the_file_as_it_is_unless_told_otherwise(tmp_path: Path) -> None:
    write(tmp_path / "family.yaml", "a", "b")
    assert [level.name for level in family_source.load(tmp_path / "family.yaml").levels] == ["a", "b"]


def test_it_waits_for_the_levels_that_it_was_started_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_source, "PAUSE_S", 0.05)
    write(tmp_path / "family.yaml", "a", "b")
    late = threading.Timer(0.5, write, [tmp_path / "family.yaml", "a", "mid", "b"])
    late.start()
    begin = time.monotonic()
    loaded = family_source.load(tmp_path / "family.yaml", ["a", "mid", "b"], 20)
    assert [level.name for level in loaded.levels] == ["a", "mid", "b"] and time.monotonic() - begin >= 0.4
    late.join()


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_source, "PAUSE_S", 0.05)
    write(tmp_path / "family.yaml", "a", "b")
    with pytest.raises(FamilyError, match=r"levels: are a, b after 0\.2 s, not b, a"):
        family_source.load(tmp_path / "family.yaml", ["b", "a"], 0.2)


def test_every_level_needs_an_address(tmp_path: Path) -> None:
    (tmp_path / "family.yaml").write_text("{name: a, tokenizer: bytes, levels: [{name: b, engine: stub}]}")
    with pytest.raises(FamilyError, match=r"levels\.0\.address: required"):
        family_source.load(tmp_path / "family.yaml")
