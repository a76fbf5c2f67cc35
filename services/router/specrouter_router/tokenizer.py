"""Text to token ids and back, one token at a time."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from specrouter_family.family import BYTES

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character (yet)
PATIENCE = 16  # tokens held back for an unfinished character; after that it never was one


class TokenizerError(ValueError):
    """A tokenizer that can't be loaded, or a conversation that it can't render."""


class Detokenizer(Protocol):
    """Turns the ids of one text into text, in order."""

    def feed(self, token: int) -> str:
        """The text that is certain after this token; "" while a character is unfinished."""
        ...

    def flush(self) -> str:
        """What was held back."""
        ...


class Tokenizer(Protocol):
    """What the router needs of a tokenizer."""

    vocab_digest: str  # as in the levels' Describe; "" = takes any

    def encode(self, text: str) -> list[int]:
        """The ids of a plain text, with the special ids that the model begins texts with."""
        ...

    def render(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation up to where the assistant's answer begins. Raises TokenizerError."""
        ...

    def detokenizer(self, context: Sequence[int]) -> Detokenizer:
        """For the text after ``context`` (the prompt's ids)."""
        ...


def vocab_digest(tokens: Mapping[str, int]) -> str:
    """Hex SHA-256 over lines "id, tab, token", by id. ``tokens``: token to id, added ones too."""
    digest = hashlib.sha256()
    for token, number in sorted(tokens.items(), key=lambda item: item[1]):
        digest.update(f"{number}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def load(source: str) -> Tokenizer:
    """The tokenizer of a family: "bytes" or a directory with tokenizer.json. Raises TokenizerError."""
    return ByteTokenizer() if source == BYTES else FileTokenizer(Path(source))


class ByteTokenizer:
    """Ids are the bytes of UTF-8; for stub levels."""

    vocab_digest = hashlib.sha256(bytes(range(256))).hexdigest()

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        return list(text.encode())

    def render(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """One line for each message."""
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return self.encode("".join([*lines, "assistant: "]))

    def detokenizer(self, context: Sequence[int]) -> Detokenizer:
        """See Tokenizer."""
        return ByteDetokenizer()


class ByteDetokenizer:
    """UTF-8, character by character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """See Detokenizer. Ids that are no bytes are no text."""
        return self._decoder.decode(bytes((token,))) if token < 256 else ""

    def flush(self) -> str:
        """See Detokenizer."""
        return self._decoder.decode(b"", final=True)


class FileTokenizer:
    """A tokenizer.json with its chat template, read by transformers."""

    def __init__(self, directory: Path) -> None:
        # Not AutoTokenizer: that imports torch, which takes seconds and hundreds of megabytes.
        from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  # a second; stub families don't need it

        if not (directory / "tokenizer.json").is_file():
            raise TokenizerError(f"tokenizer: {directory} has no tokenizer.json")
        try:
            self._chat: Any = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        except Exception as error:  # whatever the file holds; tokenizers' parser raises bare Exceptions
            raise TokenizerError(f"tokenizer: {directory}: {error}") from error
        self._codec: Any = self._chat.backend_tokenizer
        self._codec.no_truncation()
        self._codec.no_padding()
        self.vocab_digest = vocab_digest(self._codec.get_vocab(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        ids: list[int] = self._codec.encode(text).ids
        return ids

    def render(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """See Tokenizer."""
        from jinja2 import TemplateError  # noqa: PLC0415  # comes with transformers

        if not self._chat.chat_template:
            raise TokenizerError("this family's tokenizer has no chat template")
        try:
            text = self._chat.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError, TypeError) as error:
            raise TokenizerError(f"the chat template refused them: {error}") from error
        ids: list[int] = self._codec.encode(text, add_special_tokens=False).ids
        return ids

    def detokenizer(self, context: Sequence[int]) -> Detokenizer:
        """See Tokenizer."""
        return WindowDetokenizer(self._codec, context)


class WindowDetokenizer:
    """Decodes the last few ids again and takes what is new.

    How a token reads depends on those before it (a word's first token has a space only within a text), so each
    is decoded together with the ids that gave the text before it.
    """

    def __init__(self, codec: Any, context: Iterable[int]) -> None:
        self._codec = codec
        self._ids: list[int] = list(context)[-4:]  # the shown ones before the next, then those held back
        self._shown = len(self._ids)
        self._before = self._decode(self._ids)

    def feed(self, token: int) -> str:
        """See Detokenizer."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(UNFINISHED) and len(self._ids) - self._shown < PATIENCE:
            return ""
        return self._take(text)

    def flush(self) -> str:
        """See Detokenizer."""
        return self._take(self._decode(self._ids)) if len(self._ids) > self._shown else ""

    def _take(self, text: str) -> str:
        new = text[len(self._before) :]
        if new:
            del self._ids[: self._shown]
            self._before = self._decode(self._ids)
        self._shown = len(self._ids)
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._codec.decode(ids, skip_special_tokens=True)
        return text
