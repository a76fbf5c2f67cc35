"""The vocabulary of a model directory: its digest. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def table(directory: Path) -> dict[int, str]:
    """id -> token, added tokens included, from ``tokenizer.json``.

    Raises FileNotFoundError without that file, ValueError when it is of an unknown form.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; the vocabulary cannot be compared without it")
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        vocab = content["model"]["vocab"]
        if isinstance(vocab, dict):
            tokens = {int(number): str(token) for token, number in vocab.items()}
        else:  # Unigram: a list of [token, score]
            tokens = {number: str(entry[0]) for number, entry in enumerate(vocab)}
        tokens.update({int(entry["id"]): str(entry["content"]) for entry in content.get("added_tokens") or []})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a tokenizer of a known form ({error!r})") from error
    return tokens


def digest(directory: Path) -> str:
    """Hex SHA-256 over ``id<tab>token<newline>`` in the order of the ids; raises as ``table`` does."""
    lines = (f"{number}\t{token}\n" for number, token in sorted(table(directory).items()))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
