"""How answers look in the OpenAI interface. Chunks are put together by hand: a stream makes thousands.

Every event has an id, from which a client that lost the stream goes on: the number of tokens told up to it,
with ``.1`` when it also tells the end, and ``.2`` when it tells the usage.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from specrouter.v1 import state_pb2
from specrouter_router.refusal import InvalidError, RefusedError
from specrouter_router.story import Account, Chunk, End, Story

DONE = b"data: [DONE]\n\n"
EVENT_ID = re.compile(r"(\d{1,9})(?:\.([12]))?")

ERROR_TYPES = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def error_body(status: int, message: str, field: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = ERROR_TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def error_event(refusal: RefusedError, sequence: str, offset: int) -> bytes:
    """An error in the middle of a stream, and what to go on from."""
    body = error_body(refusal.status, refusal.message, refusal.field, refusal.code)
    body["specrouter"] = {"sequence": sequence, "offset": offset}
    return f"data: {json.dumps(body)}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Place:
    """How far a client has read a stream."""

    offset: int = 0  # tokens
    stage: int = 0  # 1: it knows the end, 2: and the usage

    @classmethod
    def parse(cls, text: str) -> Place:
        """From an event's id. Raises InvalidError."""
        match = EVENT_ID.fullmatch(text)
        if match is None:
            raise InvalidError("Last-Event-ID", f"must be the id of an event, got {text[:40]!r}")
        return cls(int(match.group(1)), int(match.group(2) or 0))


def account_body(account: Account) -> dict[str, Any]:
    """The account of a sequence, times in milliseconds."""
    body = asdict(account)
    for level in body["levels"]:
        level["compute_ms"] = round(level["compute_ms"], 3)
        level["queue_ms"] = round(level["queue_ms"], 3)
    for chain in body["chains"]:
        chain["ms"] = round(chain["ms"], 3)
    return body


class Form:
    """The answers to one request."""

    def __init__(self, spec: state_pb2.SequenceSpec, place: Place) -> None:
        wanted = spec.presentation
        self._chat = wanted.interface == state_pb2.INTERFACE_CHAT
        self._sequence = spec.sequence
        self._report = wanted.report
        self._seed = spec.params.sampling.seed
        self._prompt_tokens = len(spec.prompt)
        self._head: dict[str, Any] = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{spec.sequence}",
            "object": "chat.completion" if self._chat else "text_completion",
            "created": spec.created_ms // 1000,
            "model": spec.model,
        }
        head = dict(self._head)
        if self._chat:
            head["object"] = "chat.completion.chunk"
        self._chunk_head = "data: " + json.dumps(head)[:-1] + ', "choices": '
        self._first = place == Place()
        self._stage = place.stage
        self._usage = wanted.usage
        self._null_usage = ', "usage": null' if wanted.usage else ""  # the last chunk will have it

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to tell of a stream that has ended."""
        return self._stage > self._more

    @property
    def _more(self) -> int:
        """1 when a chunk follows that which tells the end."""
        return int(self._usage or self._report)

    # A stream.

    def chunk(self, chunk: Chunk) -> bytes:
        """One event; nothing when there is nothing to tell yet."""
        text = chunk.text
        if not text and not self._report:
            return b""
        return self._event(text, "null", self._ours(chunk), str(chunk.offset + len(chunk.tokens)))

    def last(self, end: End, story: Story) -> bytes:
        """The events of the end, without [DONE]."""
        text = "".join(piece for piece, _ in end.pieces)
        rest = Chunk(len(story.tokens), (), (), end.pieces)
        finish = f'"{_finish(end)}"'
        about = json.dumps(self._about(end))
        here = len(story.tokens)
        if not self._more:
            return self._event(text, finish, f', "specrouter": {about}', f"{here}.1")
        event = b"" if self._stage else self._event(text, finish, self._ours(rest), f"{here}.1")
        usage = json.dumps(usage_body(self._prompt_tokens, len(story.tokens)))
        head = f"id: {here}.2\n{self._chunk_head}"
        return event + f'{head}[], "usage": {usage}, "specrouter": {about}}}\n\n'.encode()

    def _event(self, text: str, finish: str, ours: str, name: str) -> bytes:
        quoted = json.dumps(text)
        if self._chat:
            role = '"role": "assistant", ' if self._first else ""
            content = f'"content": {quoted}' if text or self._first else ""
            inner = f'"delta": {{{role}{content}}}'
        else:
            inner = f'"text": {quoted}'
        self._first = False
        choices = f'[{{"index": 0, {inner}, "logprobs": null, "finish_reason": {finish}}}]'
        return f"id: {name}\n{self._chunk_head}{choices}{self._null_usage}{ours}}}\n\n".encode()

    def _ours(self, chunk: Chunk) -> str:
        if not self._report:
            return ""
        body = {
            "sequence": self._sequence,
            "offset": chunk.offset,
            "tokens": chunk.tokens,
            "origins": chunk.origins,
            "pieces": [{"text": text, "origin": origin} for text, origin in chunk.pieces],
        }
        return f', "specrouter": {json.dumps(body)}'

    def _about(self, end: End) -> dict[str, Any]:
        body: dict[str, Any] = {"sequence": self._sequence, "seed": self._seed}
        if self._report:
            body["report"] = account_body(end.account)
        return body

    # In one piece.

    def whole(self, end: End, story: Story, text: str) -> dict[str, Any]:
        """The answer to a request without ``stream``."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": _finish(end)}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        ours = self._about(end)
        if self._report:
            ours |= {"tokens": story.tokens, "origins": story.origins}
        usage = usage_body(self._prompt_tokens, len(story.tokens))
        return {**self._head, "choices": [choice], "usage": usage, "specrouter": ours}


def usage_body(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _finish(end: End) -> str:
    return "length" if end.reason == "length" else "stop"
