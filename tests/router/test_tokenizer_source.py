"""The tokenizer's files come from the target, whole, or the router says why not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from tokenizers import Tokenizer, models
from unimplemented import Unimplemented

from specrouter.v1 import level_pb2 as pb
from specrouter.v1 import level_pb2_grpc
from specrouter_router import tokenizer, tokenizer_source
from specrouter_router.tokenizer import TokenizerError

Parts = list[tuple[str, bytes]]


class Target(Unimplemented):
    """Sends these parts, or refuses with this status."""

    def __init__(self, parts: Parts, refusal: grpc.StatusCode | None = None) -> None:
        self.parts, self.refusal, self.calls = parts, refusal, 0

    def Tokenizer(self, _: object, context: grpc.ServicerContext) -> Iterator[pb.TokenizerFile]:  # noqa: N802  # as in the contract
        self.calls += 1
        if self.refusal:
            context.abort(self.refusal, "not here")
        for name, chunk in self.parts:
            yield pb.TokenizerFile(name=name, chunk=chunk)


@contextmanager
def serving(target: Target, port: int = 0) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    level_pb2_grpc.add_LevelServiceServicer_to_server(target, server)
    got = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{got}"
    finally:
        server.stop(None).wait()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A real tokenizer, in small parts."""
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    folder = tmp_path_factory.mktemp("made")
    made.save(str(folder / "tokenizer.json"))
    whole = (folder / "tokenizer.json").read_bytes()
    template = json.dumps({"chat_template": "{{ messages[0].content }}"}).encode()
    return [("tokenizer.json", whole[:100]), ("tokenizer.json", whole[100:]), ("tokenizer_config.json", template)]


def test_the_files_are_those_of_the_target(parts: Parts, tmp_path: Path) -> None:
    with serving(Target(parts)) as address:
        tokenizer_source.fetch([address], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    loaded = tokenizer.load(str(tmp_path))
    assert loaded.render([{"role": "user", "content": "b"}]) == [1]


def test_it_waits_for_a_target_that_is_not_there_yet(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_source, "PAUSE_S", 0.1)
    with serving(Target(parts)) as free:
        pass
    fetching = threading.Thread(target=tokenizer_source.fetch, args=([free], tmp_path, 30))
    fetching.start()
    with serving(Target(parts), int(free.rpartition(":")[2])):
        fetching.join(30)
    assert (tmp_path / "tokenizer.json").is_file()


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_source, "PAUSE_S", 0.1)
    with serving(Target([])) as free:
        pass
    with pytest.raises(TokenizerError, match=rf"did not give it within 0 s: {free}: UNAVAILABLE"):
        tokenizer_source.fetch([free], tmp_path, 0.3)


@pytest.mark.parametrize("refusal", tokenizer_source.REFUSED)
def test_a_target_that_has_none_is_not_asked_again(refusal: grpc.StatusCode, tmp_path: Path) -> None:
    target = Target([], refusal)
    with serving(target) as address, pytest.raises(TokenizerError, match=f"none to give: {refusal.name} not here"):
        tokenizer_source.fetch([address], tmp_path)
    assert target.calls == 1


@pytest.mark.parametrize("name", ["../evil", "/etc/x", "", ".hidden", "a/b", "x" * 101])
def test_a_file_goes_nowhere_else(name: str, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with serving(Target([("tokenizer.json", b"{}"), (name, b"x")])) as address:
        if name:
            with pytest.raises(TokenizerError, match="a file that it may not"):
                tokenizer_source.fetch([address], inner)
        else:
            tokenizer_source.fetch([address], inner)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tokenizer.json"]


def test_a_target_can_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_source, "MAX_BYTES", 1000)
    large = Target([("tokenizer.json", b"x" * 600), ("a", b"x" * 600)])
    with serving(large) as address, pytest.raises(TokenizerError, match="more than 1000 bytes"):
        tokenizer_source.fetch([address], tmp_path)
    many = Target([(f"f{i}", b"") for i in range(40)])
    with serving(many) as address, pytest.raises(TokenizerError, match="a file that it may not: 'f32'"):
        tokenizer_source.fetch([address], tmp_path)
