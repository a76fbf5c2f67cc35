"""A converted model is the model that was stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from specrouter_local import models
from specrouter_local.convert import convert


@pytest.fixture
def converted(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    stored = tiny_gguf.write_gguf(tmp_path / "tiny.gguf")
    out = tmp_path / "out"
    out.mkdir()
    shares: list[float] = []
    convert(tmp_path / "tiny.gguf", out, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return out, stored


def test_weights_come_back_under_transformers_names_and_in_its_row_order(
    converted: tuple[Path, dict[str, np.ndarray]],
) -> None:
    out, stored = converted
    found = load_file(out / "model.safetensors")
    assert found.keys() == stored.keys()
    for name, weight in stored.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


def test_transformers_loads_the_directory(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    out, stored = converted
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.rms_norm_eps == 1e-5
    assert model.get_output_embeddings().weight.shape == stored["model.embed_tokens.weight"].shape
    assert GenerationConfig.from_pretrained(out).eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "the 12"}], tokenize=False)
    assert asked == "<|im_start|>user the 12<|im_end|>"
    ids = tokenizer.encode(asked)
    assert ids[0] == 1
    assert ids[-1] == 2


def test_digits_are_split_one_by_one_although_merges_exist(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    tokenizer = Tokenizer.from_file(str(converted[0] / "tokenizer.json"))
    assert tokenizer.encode("the 12345").tokens == ["the", "Ġ", "1", "2", "3", "4", "5"]
    assert tokenizer.encode("100 the").tokens == ["1", "0", "0", "Ġthe"]


def test_config_names_what_the_file_says(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    config = json.loads((converted[0] / "config.json").read_text())
    assert config["num_key_value_heads"] == tiny_gguf.KV_HEADS
    assert config["vocab_size"] == len(tiny_gguf.WORDS) + 1
    assert config["tie_word_embeddings"] is True
    assert config["eos_token_id"] == 2


def test_another_kind_of_model_is_refused_by_name(tmp_path: Path) -> None:
    tiny_gguf.write_gguf(tmp_path / "other.gguf", architecture="mamba")
    with pytest.raises(ValueError, match=r"general\.architecture: must be llama, is 'mamba'"):
        convert(tmp_path / "other.gguf", tmp_path, lambda share: None)


@pytest.mark.demo
def test_the_demo_tokenizer_splits_digits_and_round_trips() -> None:
    directory = models.directory()
    assert models.present(), "run `specrouter models pull demo`"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 49152
    assert tokenizer.encode("12345").tokens == list("12345")
    assert tokenizer.encode("in 1991").tokens == ["in", "Ġ", "1", "9", "9", "1"]
    text = "Version 3, 29 June 2007\n\n  Überraschung: 3.14 ≈ π — naïve café, 東京 🙂\n\tdone"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<|im_end|>").ids == [2]
