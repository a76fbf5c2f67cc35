"""One connection of a client to a router, over REST: a completion as a stream of events, and its continuation."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx

from sighting import Ask, Broke, Course, Ended, Got, Note, Opened


def client(address: str, silence: float, host: str = "") -> httpx.AsyncClient:
    """To a router (host:port), or to a gateway that tells routers by ``host``."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
    named = {"Host": host} if host else {}
    url = f"http://{address}"
    return httpx.AsyncClient(base_url=url, headers=named, timeout=silence, limits=limits, trust_env=False)


async def once(over: httpx.AsyncClient, router: int, course: Course, note: Note, model: str) -> None:
    """Ask for what is not there yet, and take what comes until the stream ends, somehow."""
    ask, anew = course.ask, not course.known
    note(Opened(time.monotonic(), ask.name, course.stream, router, 0 if anew else course.got, anew))
    if anew:
        headers = {"Idempotency-Key": ask.name}
        opening = over.stream("POST", "/v1/completions", json=body(ask, model), headers=headers)
    else:
        headers = {"Last-Event-ID": course.place} if course.place else {}
        opening = over.stream("GET", f"/v1/sequences/{ask.name}/stream", headers=headers)
    try:
        async with opening as response:
            if response.status_code == 204:  # it had everything but for the usage, or the very last event
                note(Ended(time.monotonic(), ask.name, course.stream, course.finish, course.got, ""))
                course.done = True
            elif response.status_code != 200:
                course.known = course.known and response.status_code != 404
                said = " ".join((await response.aread()).decode().split())
                note(Broke(time.monotonic(), ask.name, course.stream, str(response.status_code), said[:200]))
            else:
                course.known = True
                await _events(response, course, note)
    except httpx.TimeoutException:
        note(Broke(time.monotonic(), ask.name, course.stream, "SILENT", "nothing came"))
    except httpx.HTTPError as error:
        note(Broke(time.monotonic(), ask.name, course.stream, type(error).__name__, str(error)))


async def _events(response: httpx.Response, course: Course, note: Note) -> None:
    name = ""
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            name = line[4:]
        elif line.startswith("data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                error = event["error"]
                note(Broke(time.monotonic(), course.ask.name, course.stream, str(error["code"]), error["message"]))
                return
            _take(event, name, course, note)
        elif line == "data: [DONE]":
            return
    if not course.done:
        note(Broke(time.monotonic(), course.ask.name, course.stream, "OK", "the stream ended without an end"))


def _take(event: dict[str, Any], place: str, course: Course, note: Note) -> None:
    now, name, ours = time.monotonic(), course.ask.name, event["specrouter"]
    if event["choices"]:
        choice = event["choices"][0]
        tokens = tuple(ours["tokens"])
        note(Got(now, name, course.stream, ours["offset"], tokens, choice["text"]))
        reached = ours["offset"] + len(tokens)
        if reached >= course.got:  # else it is sent again what it has
            course.got, course.place = reached, place
        course.finish = choice["finish_reason"] or course.finish
    else:
        note(Ended(now, name, course.stream, course.finish, event["usage"]["completion_tokens"], ""))
        course.done = True


def body(ask: Ask, model: str) -> dict[str, Any]:
    """Of the request."""
    ours: dict[str, Any] = {"report": True}
    if ask.mode:
        ours["mode"] = ask.mode
    if ask.chain:
        ours["chain"] = list(ask.chain)
    return {
        "model": model,
        "prompt": list(ask.prompt),
        "max_tokens": ask.max_tokens,
        "seed": ask.seed,
        "temperature": ask.temperature,
        "stream": True,
        **({"stop": [ask.stop]} if ask.stop else {}),
        "specrouter": ours,
    }
