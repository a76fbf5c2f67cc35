"""What is refused, by name, and what identifies a model."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import VOCAB, save
from transformers import LlamaConfig

from specrouter_level import torch_engine, trial, vocab, weights
from specrouter_level.kv import KV
from specrouter_level.weights import RefusedModelError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl"])
def test_pickled_weights_are_refused_by_name(directory: Path, name: str) -> None:
    (directory / "model.safetensors").rename(directory / name)
    with pytest.raises(RefusedModelError, match=name):
        torch_engine.load(directory)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_refused_by_field(directory: Path, name: str) -> None:
    change(directory / name, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    with pytest.raises(RefusedModelError, match=f"{name}: auto_map"):
        torch_engine.load(directory)


def test_code_in_a_nested_config_is_refused(directory: Path) -> None:
    change(directory / "config.json", text_config={"auto_map": {"AutoConfig": "x.Y"}})
    with pytest.raises(RefusedModelError, match=r"text_config\.auto_map"):
        torch_engine.load(directory)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_files_are_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        torch_engine.load(directory)


def test_missing_weights_are_named(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(RefusedModelError, match=r"model\.safetensors"):
        torch_engine.load(directory)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        torch_engine.load(directory / "nowhere")


@pytest.mark.parametrize(
    ("shards", "match"),
    [
        ({"a": "model-1.safetensors"}, "model-1.safetensors"),
        ({"a": "../model.safetensors"}, "not the name"),
        ({"a": "model-1.bin"}, "not the name"),
        ({}, "weight_map"),
    ],
)
def test_bad_indexes_are_refused(directory: Path, shards: dict[str, str], match: str) -> None:
    (directory / "model.safetensors").unlink()
    change(directory / "model.safetensors.index.json", weight_map=shards)
    with pytest.raises(RefusedModelError, match=match):
        torch_engine.load(directory)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "unheard-of"}, "unheard-of"),
        ({"num_hidden_layers": 4}, "missing"),
        ({"intermediate_size": 128}, "mlp"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "max_position_embeddings": 64},
         "dynamic"),
        ({"max_position_embeddings": 64}, "max_length"),
    ],
)  # fmt: skip
def test_models_that_no_level_can_serve_are_refused(directory: Path, fields: dict[str, object], match: str) -> None:
    change(directory / "config.json", **fields)
    with pytest.raises(RefusedModelError, match=match):
        torch_engine.load(directory, max_length=128)


def test_damaged_json_is_refused(directory: Path) -> None:
    (directory / "config.json").write_text("{")
    with pytest.raises(RefusedModelError, match=r"config\.json: not JSON"):
        torch_engine.load(directory)


@pytest.mark.parametrize(("option", "value"), [("dtype", "float8"), ("quantization", "int2"), ("exactness", "perfect")])
def test_unknown_options_are_named(directory: Path, option: str, value: str) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=f"{option}: must be one of"):
        torch_engine.load(directory, **options)


def test_an_attention_that_is_not_ours_is_noticed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that goes round the attention interface, and one whose attention we would compute wrongly."""
    model = weights.load(weights.inspect(directory), torch.float32, torch.device("cpu"))
    ids = trial.prompt(model, 128)
    want = trial.plain(model, ids)
    with torch.inference_mode(), pytest.raises(RefusedModelError, match="does not run over"):
        trial.compare(model, KV(2, 128), ids, want)
    monkeypatch.setattr("specrouter_level.attention._mask", lambda *_: None)
    with pytest.raises(RefusedModelError, match="logits differ"):
        torch_engine.load(directory, max_length=128)


def test_layer_types_without_a_mask_of_ours_are_refused(saved: Path) -> None:
    model = weights.load(weights.inspect(saved), torch.float32, torch.device("cpu"))
    model.config = LlamaConfig(num_hidden_layers=1, layer_types=["chunked_attention"])
    with pytest.raises(RefusedModelError, match="chunked_attention"):
        trial.refuse_by_config(model, 128, "shape")


def test_digests_name_weights_config_and_how_they_are_served(directory: Path) -> None:
    def digest(served: str = "float32") -> str:
        return weights.digest(weights.inspect(directory), served)

    first = digest()
    assert digest() == first
    assert len({first, digest("int4"), digest("int8"), digest("bfloat16")}) == 4
    with (directory / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00" if file.read(1) != b"\x00" else b"\x01")
    assert digest() != first
    changed = digest()
    change(directory / "config.json", rms_norm_eps=1e-3)
    assert digest() != changed


def test_the_vocabulary_digest_is_over_sorted_ids(directory: Path) -> None:
    lines = "".join(f"{number}\tt{number}\n" for number in range(VOCAB))
    assert vocab.digest(directory) == hashlib.sha256(lines.encode()).hexdigest()
    change(directory / "tokenizer.json", added_tokens=[{"id": VOCAB, "content": "<end>"}])
    assert vocab.digest(directory) == hashlib.sha256(f"{lines}{VOCAB}\t<end>\n".encode()).hexdigest()
    change(directory / "tokenizer.json", model={"vocab": [["a", -1.0], ["b", -2.0]]}, added_tokens=[])
    assert vocab.digest(directory) == hashlib.sha256(b"0\ta\n1\tb\n").hexdigest()
    change(directory / "tokenizer.json", model={})
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        vocab.digest(directory)


def test_stop_ids_come_from_the_generation_config_first(directory: Path) -> None:
    (directory / "generation_config.json").unlink(missing_ok=True)
    assert weights.stop_ids(weights.inspect(directory)) == (2,)
    change(directory / "generation_config.json", eos_token_id=[7, 5])
    assert weights.stop_ids(weights.inspect(directory)) == (5, 7)
