"""A router can have the tokenizer's files from a level."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from live_level import SECONDS, serving, stub

from specrouter.v1 import level_pb2 as pb
from specrouter_level import tokenizer_files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_bytes(bytes(range(256)) * 10_000)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "special_tokens_map.json").write_bytes(b"")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "secret.json").write_text("{}")
    return tmp_path


async def fetched(model: Path | None) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    async with serving(stub(), model=model) as level, level.connect() as service:
        async for part in service.Tokenizer(pb.TokenizerRequest(), timeout=SECONDS):
            assert len(part.chunk) <= 1 << 20
            files[part.name] = files.get(part.name, b"") + part.chunk
    return files


async def test_the_tokenizers_files_come_whole_and_no_others(model: Path) -> None:
    names = ["tokenizer.json", "special_tokens_map.json", "chat_template.jinja"]
    assert await fetched(model) == {name: (model / name).read_bytes() for name in names}


async def test_without_a_tokenizer_there_is_a_reason(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    for directory, word in ((None, "no model"), (model, "tokenizer.json")):
        with pytest.raises(grpc.aio.AioRpcError, match=word) as caught:
            await fetched(directory)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_their_size_is_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "MAX_BYTES", 2_000_000)
    with pytest.raises(grpc.aio.AioRpcError, match="at most 2000000"):
        await fetched(model)
