"""How answers look in the OpenAI interface. Chunks are put together by hand: a stream makes thousands."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Literal

from specrouter_router.refusal import RefusedError
from specrouter_router.story import Account, Chunk, End, Story

DONE = b"data: [DONE]\n\n"

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


def error_event(refusal: RefusedError) -> bytes:
    """An error in the middle of a stream."""
    body = error_body(refusal.status, refusal.message, refusal.field, refusal.code)
    return f"data: {json.dumps(body)}\n\n".encode()


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

    def __init__(
        self, kind: Literal["chat", "text"], sequence: str, model: str, created: int, *, report: bool, seed: int
    ) -> None:
        self._chat = kind == "chat"
        self._sequence = sequence
        self._report = report
        self._seed = seed
        self._head: dict[str, Any] = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{sequence}",
            "object": "chat.completion" if self._chat else "text_completion",
            "created": created,
            "model": model,
        }
        head = dict(self._head)
        if self._chat:
            head["object"] = "chat.completion.chunk"
        self._chunk_head = "data: " + json.dumps(head)[:-1] + ', "choices": '
        self._first = True
        self._null_usage = ""

    def with_usage(self) -> None:
        """The stream's last chunk will carry the usage, so the others say that they don't."""
        self._null_usage = ', "usage": null'

    # A stream.

    def chunk(self, chunk: Chunk) -> bytes:
        """One event; nothing when there is nothing to tell yet."""
        text = chunk.text
        if not text and not self._report:
            return b""
        return self._event(text, "null", self._ours(chunk))

    def last(self, end: End, story: Story, prompt_tokens: int) -> bytes:
        """The events of the end, without [DONE]."""
        text = "".join(piece for piece, _ in end.pieces)
        rest = Chunk(len(story.tokens), (), (), end.pieces)
        finish = f'"{_finish(end)}"'
        ours = self._about(end)
        if not self._null_usage and not self._report:
            return self._event(text, finish, f', "specrouter": {json.dumps(ours)}')
        event = self._event(text, finish, self._ours(rest))
        usage = json.dumps(usage_body(prompt_tokens, len(story.tokens)))
        return event + f'{self._chunk_head}[], "usage": {usage}, "specrouter": {json.dumps(ours)}}}\n\n'.encode()

    def _event(self, text: str, finish: str, ours: str) -> bytes:
        quoted = json.dumps(text)
        if self._chat:
            role = '"role": "assistant", ' if self._first else ""
            content = f'"content": {quoted}' if text or self._first else ""
            inner = f'"delta": {{{role}{content}}}'
        else:
            inner = f'"text": {quoted}'
        self._first = False
        choices = f'[{{"index": 0, {inner}, "logprobs": null, "finish_reason": {finish}}}]'
        return f"{self._chunk_head}{choices}{self._null_usage}{ours}}}\n\n".encode()

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

    def whole(self, end: End, story: Story, text: str, prompt_tokens: int) -> dict[str, Any]:
        """The answer to a request without ``stream``."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": _finish(end)}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        ours = self._about(end)
        if self._report:
            ours |= {"tokens": story.tokens, "origins": story.origins}
        usage = usage_body(prompt_tokens, len(story.tokens))
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
