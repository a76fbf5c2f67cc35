"""The files a tokenizer is made of, from a model's directory, in chunks for the wire. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# What transformers reads for a tokenizer and its chat template; nothing else of the directory leaves the level.
NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
CHUNK = 1 << 20  # bytes
MAX_BYTES = 128 << 20  # of all files together; the largest known is about 40 MB


class TokenizerFilesError(Exception):
    """The directory's files can't be sent; the message says why."""


def listed(directory: Path) -> list[Path]:
    """The files that are there, in the order of NAMES.

    Raises TokenizerFilesError without tokenizer.json, or when they are larger than MAX_BYTES together.
    """
    files = [path for name in NAMES if (path := directory / name).is_file()]
    if not files or files[0].name != NAMES[0]:
        raise TokenizerFilesError(f"this level's model has no {NAMES[0]}")
    size = sum(path.stat().st_size for path in files)
    if size > MAX_BYTES:
        raise TokenizerFilesError(f"the tokenizer's files have {size} bytes; at most {MAX_BYTES} are sent")
    return files


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, CHUNK at a time; one empty chunk for an empty file."""
    left = MAX_BYTES
    with path.open("rb") as file:
        piece = file.read(CHUNK)
        yield piece
        while piece and left > 0:
            left -= len(piece)
            piece = file.read(CHUNK)
            if piece:
                yield piece
