"""Writes a target and a draft that often agrees with it, both with random weights: tiny_models.py FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "level"))

from small_models import VOCAB, save

NOISE = 0.03  # on the draft's weights, times their deviation


def main() -> None:
    """Do it: FOLDER/target and FOLDER/draft."""
    folder = Path(sys.argv[1])
    target = save("llama", folder / "target")
    model = AutoModelForCausalLM.from_pretrained(target)
    torch.manual_seed(5)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn(weights.shape) * weights.std() * NOISE)
    model.save_pretrained(folder / "draft")
    vocab = {f"t{number}": number for number in range(VOCAB)}
    words = {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": words}
    for name in ("target", "draft"):
        (folder / name / "tokenizer.json").write_text(json.dumps(tokenizer))


if __name__ == "__main__":
    main()
