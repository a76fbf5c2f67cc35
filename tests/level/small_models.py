"""Small random models of each supported kind, saved as a user's directory would be."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 96
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LOCAL = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "qwen3": lambda: Qwen3Config(**_SIZES),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=20),
    "gemma2": lambda: Gemma2Config(
        **_SIZES,
        **_LOCAL,
        tie_word_embeddings=False,
        sliding_window=20,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=4.0,
    ),
    "gemma3": lambda: Gemma3TextConfig(**_SIZES, **_LOCAL, tie_word_embeddings=False, sliding_window=20),
}


def save(kind: str, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model of ``kind`` with random weights, large enough that logits differ; returns the directory."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if "norm" in name and not kind.startswith("gemma") else 0.0
            weight.copy_(centre + torch.randn(weight.shape) * (0.15 if weight.dim() > 1 else 0.1))
    model.to(dtype).save_pretrained(directory)
    tokens = {f"t{number}": number for number in range(VOCAB)}
    (directory / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": tokens}, "added_tokens": []})
    )
    return directory
