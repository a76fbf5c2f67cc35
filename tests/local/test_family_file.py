"""The family file: what is wrong is named by file and field; the built-in families are right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from specrouter_family.family import Family, FamilyError, load, parse
from specrouter_local import parts, weights
from specrouter_local.errors import UserError

STUB = """
name: s
tokenizer: bytes
levels:
  - {name: a, engine: stub, agreement: 0.6, step_ms: "1:2.5,8:3"}
  - {name: b, engine: stub}
chain: {policy: fixed, mode: lockstep, windows: {a: 3}, lookahead: 9}
"""


def test_a_family_has_all_windows_and_a_target() -> None:
    family = parse(STUB, "f.yaml")
    assert family.target.name == "b"
    assert family.chain.windows == {"a": 3, "b": 8}
    assert (family.chain.mode, family.chain.lookahead) == ("lockstep", 9)
    assert family.chain.modes == (False,) and family.levels[0].weight == 100


def test_what_is_left_out_is_chosen_by_the_router() -> None:
    family = parse(STUB.replace("chain:", "# chain:"), "f.yaml")
    assert (family.chain.policy, family.chain.modes, family.chain.lookahead) == ("adaptive", (True, False), 64)
    assert family.chain.windows == {"a": 16, "b": 16}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: s\n", "name: s\nsped: 1\n", "sped: unknown field"),
        ("name: s\n", "name: S_\n", "name: 'S_' doesn't match"),
        ("name: b", "name: a", "levels.1.name: 'a' is used twice"),
        ("name: b", f"name: {'b' * 41}", "levels.1.name: 'bbb"),
        ('"1:2.5,8:3"', "1:2.5", "levels.0.step_ms: must be a quoted string"),
        ('"1:2.5,8:3"', '"8:1,1:2"', "levels.0.step_ms: must be points rows:milliseconds"),
        ('"1:2.5,8:3"', '"1:x"', "levels.0.step_ms: must be points rows:milliseconds"),
        ("0.6", ".nan", "levels.0.agreement: Input should be a finite number"),
        ("0.6", "1.5", "levels.0.agreement: Input should be less than or equal to 1"),
        ("agreement: 0.6", "dtype: float32", "levels.0.dtype: is for engine torch, but this level's engine is stub"),
        ("b, engine: stub", "b, engine: torch", "levels.1.model: required for engine torch"),
        ("b, engine: stub", "b, engine: ngram, model: x", "levels.1.model: is for engine torch"),
        ("b, engine: stub", "b, engine: ngram", "levels.1.engine: ngram can't be the target"),
        ("b, engine: stub", "b, engine: stub, agreement: 0.5", "levels.1.agreement: the target agrees with itself"),
        ("b, engine: stub", "b, engine: torch, model: x", "tokenizer: 'bytes' is for families whose target is a stub"),
        ("b, engine: stub", "b, engine: stub, address: here", "levels.1.address: must be host:port, got 'here'"),
        ("{a: 3}", "{c: 3}", "chain.windows.c: no level has this name (levels: a, b)"),
        ("{a: 3}", "{a: 65}", "chain.windows.a: Input should be less than or equal to 64"),
        ("lookahead: 9", "lookahead: 0", "chain.lookahead: Input should be greater than or equal to 1"),
        ("mode: lockstep", "mode: fast", "chain.mode: Input should be 'auto', 'overlapped' or 'lockstep'"),
        ("policy: fixed", "policy: best", "chain.policy: Input should be 'adaptive' or 'fixed'"),
        ("agreement: 0.6", "weight: 101", "levels.0.weight: Input should be less than or equal to 100"),
        ("b, engine: stub", "b, engine: stub, weight: 0", "levels.1.weight: the target is always used"),
        ("levels:\n", "levels:\n" + "  - {name: a, engine: stub}\n" * 8, "levels: List should have at most 8 items"),
        (STUB, "[", "not YAML"),
        (STUB, "- 1", "must be a mapping"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str) -> None:
    assert old in STUB
    with pytest.raises(FamilyError) as caught:
        parse(STUB.replace(old, new), "f.yaml")
    assert str(caught.value).startswith("f.yaml: ")
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match=r"no\.yaml: can't be read"):
        load(tmp_path / "no.yaml")


@pytest.mark.parametrize("name", ["demo", "stub"])
def test_built_in_families_survive_the_way_to_the_router(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECROUTER_CACHE", str(tmp_path))
    family = parts.addressed(weights.built_in(name), parts.free_ports(3))
    assert [level.name for level in family.levels] == ["draft", "mid", "target"]
    assert len({level.address for level in family.levels}) == 3
    parts.write_family(family, tmp_path / "family.yaml")
    assert load(tmp_path / "family.yaml") == family


def test_every_replica_gets_an_address_and_a_process() -> None:
    text = (
        "name: f\ntokenizer: bytes\nlevels:\n"
        '  - {name: draft, engine: stub, address: "a:1", addresses: ["b:2", "a:1"]}\n'
        '  - {name: target, engine: stub, replicas: 3, addresses: ["c:3"]}\n'
    )
    family = parts.addressed(parse(text, "f.yaml"), iter([7, 8]))
    assert [level.endpoints for level in family.levels] == [
        ["a:1", "b:2"],
        ["c:3", "127.0.0.1:7", "127.0.0.1:8"],
    ]
    made = parts.level_parts(family, iter(range(9, 14)))
    assert [part.name for part in made] == ["draft-0", "draft-1", "target-0", "target-1", "target-2"]
    assert [part.level for part in made] == ["draft"] * 2 + ["target"] * 3
    with pytest.raises(FamilyError, match=r"levels\.0\.addresses\.0: must be host:port"):
        parse(text.replace("b:2", "b"), "f.yaml")


def test_checkpoints_are_options_and_their_redis_is_not_on_the_command_line() -> None:
    level = "{name: target, model: m, address: 'h:1', kv_checkpoints: all, kv_codec: exact}"
    text = f"name: f\ntokenizer: t\nlevels: [{level}]\n"
    secret = "redis://:secret@h:6379/0"

    def part(file: str) -> parts.Part:
        return parts.level_parts(parse(file, "f.yaml"), iter([2]), secret)[0]

    made = part(text)
    assert {"--kv-checkpoints", "all", "--kv-codec", "exact", "--kv-budget-mib"} <= set(made.argv)
    assert made.env["SPECROUTER_LEVEL_KV_URL"] == secret and secret not in made.argv
    own = part(text.replace("kv_codec: exact", "kv_url: 'redis://own'"))
    assert own.env["SPECROUTER_LEVEL_KV_URL"] == "redis://own" and "--kv-budget-mib" not in own.argv
    assert "SPECROUTER_LEVEL_KV_URL" not in part(text.replace("checkpoints: all", "checkpoints: 'off'")).env
    with pytest.raises(FamilyError, match=r"kv_codec: must be exact"):
        parse(text.replace("kv_codec: exact", "kv_codec: int8, exactness: bitwise"), "f.yaml")
    with pytest.raises(FamilyError, match=r"kv_checkpoints: is for engine torch"):
        parse(text.replace("model: m", "engine: ngram"), "f.yaml")


TORCH = "name: t\ntokenizer: {0}\nlevels: [{{name: target, model: {0}}}]\n"


def placed(text: str, base: Path) -> Family:
    return weights.placed(parse(text, "f.yaml"), base, lambda what, share: None)


def test_directories_are_looked_for_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights" / "m").mkdir(parents=True)
    (tmp_path / "weights" / "m" / "tokenizer.json").write_text("{}")
    family = placed(TORCH.format("weights/m"), tmp_path)
    assert family.target.model == family.tokenizer == str(tmp_path / "weights" / "m")


def test_a_tokenizer_that_the_target_sends_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    text = TORCH.format("m").replace("tokenizer: m", "tokenizer: target")
    assert placed(text, tmp_path).tokenizer == "target"


def test_what_is_no_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"levels\.0\.model: '\./m' is neither a directory here nor a Hugging Face"):
        placed(TORCH.format("./m"), tmp_path)


def test_a_repository_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(TORCH.format("some-owner/some-model"))
    env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "specrouter_local", "up", "--family", str(tmp_path / "f.yaml")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "levels.0.model: some-owner/some-model can't be fetched from Hugging Face" in done.stderr
    assert "Traceback" not in done.stderr
