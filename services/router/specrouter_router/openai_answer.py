"""The response that follows a story to its end, as a stream of events or in one piece."""

from __future__ import annotations

import asyncio
import logging

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from specrouter_router.openai_form import DONE, Form, error_body, error_event
from specrouter_router.refusal import RefusedError
from specrouter_router.sequence import Sequence
from specrouter_router.story import End, Reader

log = logging.getLogger(__name__)

RETRY_AFTER = {429: "1", 503: "1"}  # seconds
SEND_S = 60.0
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def refusal_response(refusal: RefusedError) -> JSONResponse:
    """A refusal in OpenAI's form."""
    headers = {"retry-after": RETRY_AFTER[refusal.status]} if refusal.status in RETRY_AFTER else None
    body = error_body(refusal.status, refusal.message, refusal.field, refusal.code)
    return JSONResponse(body, refusal.status, headers)


class Answer(Response):
    """Follows one sequence. When the client goes, the sequence is cancelled."""

    def __init__(self, sequence: Sequence, form: Form, prompt_tokens: int, *, stream: bool) -> None:
        super().__init__()
        self._sequence = sequence
        self._form = form
        self._prompt_tokens = prompt_tokens
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI response."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            if self._stream:
                await self._send_events(scope, receive, send)
            else:
                await self._send_whole(scope, receive, send)
        except TimeoutError:
            log.info("sequence %s: its client does not read", self._sequence.id)
        finally:
            watcher.cancel()
            self._sequence.cancel()  # does nothing after its end

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._sequence.cancel()

    async def _send_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        story, form = self._sequence.story, self._form
        reader = Reader(story)
        event = await reader.next()
        if isinstance(event, End) and event.refusal is not None:
            return await refusal_response(event.refusal)(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        while not isinstance(event, End):
            data = form.chunk(event)
            if data:
                await self._write(send, data, True)
            event = await reader.next()
        if event.refusal is not None:
            data = error_event(event.refusal)
        else:
            data = form.last(event, story, self._prompt_tokens) + DONE
        await self._write(send, data, False)
        return None

    async def _write(self, send: Send, data: bytes, more: bool) -> None:
        """A client that reads nothing for a minute is gone."""
        async with asyncio.timeout(SEND_S):
            await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = Reader(self._sequence.story)
        texts: list[str] = []
        while not isinstance(event := await reader.next(), End):
            texts.append(event.text)
        if event.refusal is not None:
            return await refusal_response(event.refusal)(scope, receive, send)
        text = "".join([*texts, *(piece for piece, _ in event.pieces)])
        body = self._form.whole(event, self._sequence.story, text, self._prompt_tokens)
        return await JSONResponse(body)(scope, receive, send)
