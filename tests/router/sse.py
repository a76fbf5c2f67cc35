"""Streams of server-sent events as a client that can go on reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from stub_mesh import Router

SECONDS = 40.0


@dataclass
class Stream:
    """What came of one sequence, over as many connections as it took."""

    sequence: str = ""
    protected: str = ""
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # one per id
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    usage: dict[str, int] | None = None
    error: dict[str, Any] = field(default_factory=dict)  # the last
    done: bool = False  # [DONE] came
    statuses: list[int] = field(default_factory=list)
    roles: int = 0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def start(
        self, router: Router, act: Callable[[], Any] | None = None, after: int = 0, *, chat: bool = False, **body: Any
    ) -> Stream:
        """A request, with a report. ``act`` is called when ``after`` tokens have come; it may raise to break off."""
        headers = body.pop("headers", {})
        ours = {"report": True, **body.pop("specrouter", {})}
        what = {"messages": [{"role": "user", "content": "once upon"}]} if chat else {"prompt": "once upon"}
        body = {"model": "test", "stream": True, "max_tokens": 100, "specrouter": ours, **what, **body}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        return self._read("POST", f"{router.url}{path}", act, after, json=body, headers=headers)

    def resume(self, router: Router, act: Callable[[], Any] | None = None, after: int = 0) -> Stream:
        """Go on after the last id."""
        headers = {"last-event-id": self.ids[-1]} if self.ids else {}
        return self._read("GET", f"{router.url}/v1/sequences/{self.sequence}/stream", act, after, headers=headers)

    def since(self, name: str) -> Stream:
        """The stream as one would have it who had read it up to the event of this id."""
        at = self.ids.index(name) + 1
        tokens = self.tokens[: int(name.partition(".")[0])]
        return Stream(self.sequence, ids=self.ids[:at], texts=self.texts[:at], tokens=tokens)

    def _read(self, method: str, url: str, act: Callable[[], Any] | None, after: int, **kwargs: Any) -> Stream:
        with httpx.stream(method, url, timeout=SECONDS, trust_env=False, **kwargs) as response:
            self.statuses.append(response.status_code)
            self.sequence = response.headers.get("x-specrouter-sequence", self.sequence)
            self.protected = response.headers.get("x-specrouter-protected", "")
            if response.status_code != 200:
                self.error = json.loads(response.read() or b'{"error": {}}')["error"]
                return self
            name = ""
            for line in response.iter_lines():
                if line.startswith("id: "):
                    name = line[4:]
                elif line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: "):
                    self._take(json.loads(line[6:]), name)
                    name = ""
                    if act is not None and len(self.tokens) >= after:
                        call, act = act, None
                        call()
        return self

    def _take(self, event: dict[str, Any], name: str) -> None:
        if "error" in event:
            self.error = event["error"] | event["specrouter"]
            return
        assert self.sequence in event["id"]
        if name:
            self.ids.append(name)
            self.texts.append("")
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            delta = choice.get("delta", {})
            self.roles += "role" in delta
            self.texts[-1] += choice.get("text", "") or delta.get("content", "")
            self.finish = choice["finish_reason"] or self.finish
        ours = event.get("specrouter", {})
        if "tokens" in ours:
            assert ours["offset"] == len(self.tokens), "a token is missing, or came twice"
            self.tokens += ours["tokens"]
