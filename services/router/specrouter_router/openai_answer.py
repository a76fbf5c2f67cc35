"""The response that follows a story to its end, as a stream of events or in one piece."""

from __future__ import annotations

import asyncio
import logging

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from specrouter_router.ending import end
from specrouter_router.find import Found
from specrouter_router.openai_form import DONE, Form, Place, error_body, error_event
from specrouter_router.refusal import RETRY_AFTER_S, RefusedError
from specrouter_router.story import End, Reader

log = logging.getLogger(__name__)

SEND_S = 60.0
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def refusal_response(refusal: RefusedError, headers: dict[str, str] | None = None) -> JSONResponse:
    """A refusal in OpenAI's form."""
    headers = dict(headers or {})
    if refusal.status in RETRY_AFTER_S:
        headers["retry-after"] = str(RETRY_AFTER_S[refusal.status])
    body = error_body(refusal.status, refusal.message, refusal.field, refusal.code)
    return JSONResponse(body, refusal.status, headers)


class Answer(Response):
    """Follows one sequence from a place on, until its end or until the client goes.

    ``protected``: whether the sequence could be gone on with by another router now.
    """

    def __init__(self, found: Found, place: Place, *, stream: bool, protected: bool) -> None:
        super().__init__()
        self._story = found.story
        self._sequence = found.spec.sequence
        self._form = Form(found.spec, place)
        self._reader = Reader(found.story, place.offset)
        self._stream = stream
        self._about = {"x-specrouter-sequence": self._sequence, "x-specrouter-protected": str(protected).lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI response."""
        with self._story.followed():
            sending = asyncio.create_task(self._send(scope, receive, send))
            watching = asyncio.create_task(_gone(receive))
            try:
                await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            except TimeoutError:
                log.info("sequence %s: its client does not read", self._sequence)
            finally:
                await end(sending)
                await end(watching)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._stream:
            await self._send_events(scope, receive, send)
        else:
            await self._send_whole(scope, receive, send)

    async def _send_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        story, form, reader = self._story, self._form, self._reader
        event = await reader.next()
        if isinstance(event, End):
            if event.refusal is not None:
                return await refusal_response(event.refusal, self._about)(scope, receive, send)
            if form.complete:  # a client that has all: do not come again
                return await Response(status_code=204, headers=self._about)(scope, receive, send)
        headers = HEADERS + [(name.encode(), value.encode()) for name, value in self._about.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while not isinstance(event, End):
            data = form.chunk(event)
            if data:
                await self._write(send, data, True)
            event = await reader.next()
        if event.refusal is not None:
            data = error_event(event.refusal, self._sequence, reader.position)
        else:
            data = form.last(event, story) + DONE
        await self._write(send, data, False)
        return None

    async def _write(self, send: Send, data: bytes, more: bool) -> None:
        """A client that reads nothing for a minute is gone."""
        async with asyncio.timeout(SEND_S):
            await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        texts: list[str] = []
        while not isinstance(event := await self._reader.next(), End):
            texts.append(event.text)
        if event.refusal is not None:
            return await refusal_response(event.refusal, self._about)(scope, receive, send)
        text = "".join([*texts, *(piece for piece, _ in event.pieces)])
        body = self._form.whole(event, self._story, text)
        return await JSONResponse(body, headers=self._about)(scope, receive, send)


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
