"""From a GGUF file of a Llama-type model to a directory that transformers can load.

Written: config.json, model.safetensors (float32), tokenizer.json, tokenizer_config.json,
chat_template.jinja, generation_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fields = dict[str, Any]  # GGUF metadata by name
Weights = dict[str, NDArray[np.float32]]

OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INNER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
CONTROL = 3  # GGUF's token type of special tokens
READ_SHARE = 0.75  # of the time goes into reading and dequantising


def unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undoes llama.cpp's row order of q and k (its rotary pairs are neighbours). ``weight``: [rows, columns]."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def name_of(tensor: str) -> str:
    """transformers' name of a GGUF tensor. Raises ValueError for one that a Llama-type model doesn't have."""
    if tensor in OUTER:
        return OUTER[tensor]
    parts = tensor.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in INNER or parts[3] != "weight":
        raise ValueError(f"tensor {tensor}: not one of a Llama-type model")
    return f"model.layers.{parts[1]}.{INNER[parts[2]]}.weight"


def read(gguf: Path, progress: Callable[[float], None]) -> tuple[Fields, Weights]:
    """Metadata and dequantised weights, float32. ``progress`` gets the share done, 0 to 1."""
    from gguf import GGUFReader, dequantize  # noqa: PLC0415  # slow to import, needed once per machine

    reader = GGUFReader(gguf)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    if fields.get("general.architecture") != "llama":
        raise ValueError(f"general.architecture: must be llama, is {fields.get('general.architecture')!r}")
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    weights: Weights = {}
    for i, tensor in enumerate(reader.tensors):
        weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if part in heads:
            weight = unpermute(weight, heads[part])
        weights[name_of(tensor.name)] = np.ascontiguousarray(weight)
        progress((i + 1) / len(reader.tensors))
    return fields, weights


def config(fields: Fields, tied: bool) -> dict[str, Any]:
    """config.json. ``tied``: the output layer is the embedding."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),  # stored as float32
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
        **special_ids(fields),
    }


def special_ids(fields: Fields) -> dict[str, int]:
    """Ids that begin, end and pad a text."""
    return {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def write_tokenizer(fields: Fields, out: Path) -> None:
    """Byte-level BPE that splits digits one by one first, as SmolLM was trained.

    GGUF doesn't spell the splitter out (it only names it), and readers that leave it out give
    other ids for every number without complaint.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415  # as gguf above

    if fields.get("tokenizer.ggml.pre") not in ("smollm", None):
        raise ValueError(f"tokenizer.ggml.pre: must be smollm, is {fields['tokenizer.ggml.pre']!r}")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    first, _, second = zip(*(merge.partition(" ") for merge in fields["tokenizer.ggml.merges"]), strict=True)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(zip(first, second, strict=True))))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(out / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
    }
    for name, number in special_ids(fields).items():
        settings[name.removesuffix("_id")] = tokens[number]
    _write_json(out / "tokenizer_config.json", settings)
    (out / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")


def convert(gguf: Path, out: Path, progress: Callable[[float], None]) -> None:
    """Writes the directory ``out`` (exists, empty). ``progress`` gets the share done, 0 to 1.

    Raises ValueError when the file holds something else than a Llama-type model with SmolLM's tokenizer.
    """
    from safetensors.numpy import save_file  # noqa: PLC0415  # as gguf above

    fields, weights = read(gguf, lambda share: progress(READ_SHARE * share))
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tied = "lm_head.weight" not in weights
    _write_json(out / "config.json", config(fields, tied))
    _write_json(out / "generation_config.json", special_ids(fields))
    write_tokenizer(fields, out)
    progress(1.0)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
