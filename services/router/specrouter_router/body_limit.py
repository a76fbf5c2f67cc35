"""Bounds on request bodies: their size, and how long they may take to arrive."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specrouter_router.openai_answer import refusal_response
from specrouter_router.refusal import RefusedError

MAX_BYTES = 4 << 20
ARRIVE_S = 30.0


class BodyLimit:
    """ASGI middleware: reads the whole body first, then hands it on in one piece."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self._app(scope, receive, send)
        try:
            async with asyncio.timeout(ARRIVE_S):
                body = await _read(scope, receive)
        except TimeoutError:
            refusal = RefusedError(f"body: did not arrive within {ARRIVE_S:g} s", status=408)
            return await refusal_response(refusal)(scope, receive, send)
        except RefusedError as refusal:
            return await refusal_response(refusal)(scope, receive, send)
        if body is None:
            return None  # the client is gone
        first: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal first
            if first is not None:
                message, first = first, None
                return message
            return await receive()

        return await self._app(scope, replay, send)


async def _read(scope: Scope, receive: Receive) -> bytes | None:
    """The body; None when the client went away. Raises RefusedError when it is too large."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    parts: list[bytes] = []
    size = int(declared) if declared.isdigit() else 0
    if size > MAX_BYTES:
        raise _too_large()
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large() -> RefusedError:
    return RefusedError(f"body: at most {MAX_BYTES} bytes", status=413, code="body_too_large")
