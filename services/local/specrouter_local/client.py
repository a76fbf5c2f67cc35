"""The router's OpenAI interface, as the command uses it: one conversation in, a stream of text out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from specrouter_local.errors import UserError

CONNECT_LIMIT = 5.0  # seconds
SILENCE_LIMIT = 120.0  # seconds without a byte

Message = dict[str, str]  # role and content
Report = dict[str, Any]  # rounds, levels, lost: as the router sends it


@dataclass(frozen=True, slots=True)
class Settings:
    """How to answer; the router checks the bounds."""

    model: str
    max_tokens: int
    temperature: float
    seed: int | None = None  # None: the router draws one
    chain: tuple[str, ...] = ()  # levels, lowest first; (): the router chooses


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of the answer and the level that proposed it first ("" where the router doesn't say)."""

    text: str
    origin: str


@dataclass(slots=True)
class Answer:
    """What came of one request; complete when the stream has ended."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)  # per token
    finish: str = ""  # stop or length
    usage: dict[str, int] = field(default_factory=dict)
    report: Report | None = None
    seed: int | None = None
    first: float = 0.0  # seconds from the request to the first text
    seconds: float = 0.0  # from the request to the end

    @property
    def count(self) -> int:
        """Tokens generated."""
        return self.usage.get("completion_tokens") or len(self.tokens)

    @property
    def ms_per_token(self) -> float:
        """Milliseconds of the whole request, prompt included, per token generated."""
        return 1000 * self.seconds / max(1, self.count)


class Router:
    """A running router."""

    def __init__(self, url: str) -> None:
        self.url = url
        timeout = httpx.Timeout(SILENCE_LIMIT, connect=CONNECT_LIMIT)
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=False)  # the mesh is on this machine

    def close(self) -> None:
        self._http.close()

    def status(self) -> dict[str, Any]:
        """``GET /v1/status``. Raises UserError."""
        try:
            response = self._http.get("/v1/status")
        except httpx.HTTPError as error:
            raise UserError(f"the router at {self.url} doesn't answer: {error}") from error
        if response.status_code != 200:
            raise UserError(f"the router at {self.url} answers {response.status_code}: {_message(response.text)}")
        found: dict[str, Any] = response.json()
        return found

    def chat(self, settings: Settings, messages: Sequence[Message], answer: Answer) -> Iterator[Piece]:
        """Streams the answer's text; fills ``answer`` on the way. Raises UserError."""
        ours: dict[str, Any] = {"report": True}
        if settings.chain:
            ours["chain"] = list(settings.chain)
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": list(messages),
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            "specrouter": ours,
        }
        if settings.seed is not None:
            body["seed"] = settings.seed
        begin = time.perf_counter()
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise UserError(f"the router refused: {_message(response.text)}")
                for chunk in _events(response):
                    yield from _take(chunk, answer, begin)
        except httpx.HTTPError as error:
            raise UserError(f"the stream from {self.url} broke off: {error}") from error
        answer.seconds = time.perf_counter() - begin
        if not answer.finish:
            raise UserError(f"the stream from {self.url} ended before the answer did")


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event until [DONE]."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        chunk: dict[str, Any] = json.loads(data)
        if "error" in chunk:
            raise UserError(f"the router stopped: {_message(data)}")
        yield chunk


def _take(chunk: dict[str, Any], answer: Answer, begin: float) -> Iterator[Piece]:
    """Adds one chunk to the answer; its text comes out in pieces of one level each."""
    ours: dict[str, Any] = chunk.get("specrouter") or {}
    answer.tokens += ours.get("tokens", [])
    answer.origins += ours.get("origins", [])
    answer.report = ours.get("report", answer.report)
    answer.seed = ours.get("seed", answer.seed)
    answer.usage = chunk.get("usage") or answer.usage
    for choice in chunk.get("choices", []):
        answer.finish = choice.get("finish_reason") or answer.finish
        text = choice.get("delta", {}).get("content") or ""
        if not text:
            continue
        answer.first = answer.first or time.perf_counter() - begin
        answer.text += text
        pieces = ours.get("pieces") or [{"text": text, "origin": ""}]
        for piece in pieces:
            yield Piece(piece["text"], piece["origin"])


def _message(text: str) -> str:
    """What an error in OpenAI's form says."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500].strip() or "no reason given"
