"""The OpenAI-compatible interface: routes, and errors in OpenAI's form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from specrouter.v1 import state_pb2
from specrouter_router import pin
from specrouter_router.body_limit import BodyLimit
from specrouter_router.openai_answer import Answer, refusal_response
from specrouter_router.openai_form import Place
from specrouter_router.openai_models import ChatRequest, CompletionRequest, Generation
from specrouter_router.refusal import InvalidError, RefusedError
from specrouter_router.request import MAX_NAME, Request, check_name, check_text
from specrouter_router.router import Router
from specrouter_router.status import status_routes
from specrouter_router.tokenizer import TokenizerError

FIELD_FIRST = re.compile(r"^([a-z_0-9.]+): ")


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What is wrong with the request"},
    "5XX": {"model": ErrorBody, "description": "What is wrong with the service"},
}
ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or a stream of events",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    },
    **ERRORS,
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "A stream of events", "content": {"text/event-stream": {}}},
    204: {"description": "The client has everything"},
    **ERRORS,
}
Key = Annotated[str | None, Header(max_length=MAX_NAME, description="a name for the sequence: a repeat attaches to it")]
Name = Annotated[str, PathParameter(description="the sequence's name, or the id of its answer")]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="id of the last event received")]


def make_app(router: Router) -> FastAPI:
    """The HTTP application of a router."""
    app = FastAPI(title="SpecRouter", version="1", docs_url=None, redoc_url=None)
    app.include_router(_routes(router))
    app.include_router(status_routes(router))
    app.add_middleware(BodyLimit)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RefusedError, _on_refusal)
    app.add_exception_handler(Exception, _on_fault)
    return app


def _routes(router: Router) -> APIRouter:
    routes = APIRouter(prefix="/v1", responses=ERRORS)

    @routes.post("/chat/completions", responses=ANSWER, response_model=None)
    async def chat_completions(body: ChatRequest, idempotency_key: Key = None) -> Response:
        """Answers a conversation."""
        _check_model(router, body.model)
        router.admit()
        messages = [message.plain() for message in body.messages]
        for i, message in enumerate(messages):
            check_text(f"messages.{i}.content", message["content"])
        try:
            prompt = await router.prompts.render(messages)
        except TokenizerError as error:
            raise InvalidError("messages", str(error)) from error
        return await _answer(router, state_pb2.INTERFACE_CHAT, body, prompt, body.limit, idempotency_key)

    @routes.post("/completions", responses=ANSWER, response_model=None)
    async def completions(body: CompletionRequest, idempotency_key: Key = None) -> Response:
        """Goes on from a text."""
        _check_model(router, body.model)
        router.admit()
        prompt = body.prompt
        if isinstance(prompt, str):
            text = check_text("prompt", prompt)
            prompt = await router.prompts.encode(text)
        return await _answer(router, state_pb2.INTERFACE_COMPLETION, body, prompt, body.limit, idempotency_key)

    @routes.get("/sequences/{name}/stream", responses=STREAM, response_model=None)
    async def stream(name: Name, last_event_id: LastEventId = None) -> Response:
        """Follows a sequence from after an event on, from its first token without one; 204 when nothing is left."""
        place = Place() if last_event_id is None else Place.parse(last_event_id)
        found = await router.find(_sequence(name))
        found.check_offset(place.offset)
        return Answer(found, place, stream=True, protected=router.protected)

    @routes.post("/sequences/{name}/cancel")
    async def cancel(name: Name) -> dict[str, Any]:
        """Ends a sequence, whichever router runs it."""
        sequence = _sequence(name)
        return {"sequence": sequence, "cancelled": await router.cancel(sequence)}

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """The family, as a list of models."""
        return {"object": "list", "data": [_model(router)]}

    @routes.get("/models/{name}")
    async def model(name: Annotated[str, PathParameter()]) -> dict[str, Any]:
        """The family, by its name."""
        _check_model(router, name)
        return _model(router)

    return routes


async def _answer(
    router: Router,
    interface: state_pb2.Interface.ValueType,
    body: Generation,
    prompt: list[int],
    limit: int,
    name: str | None,
) -> Answer:
    ours = body.specrouter
    usage = body.stream_options is not None and body.stream_options.include_usage
    request = Request(
        prompt=prompt,
        max_tokens=limit,
        sampling=body.sampling(),
        stop=body.stops(),
        pin=ours.pin(),
        traffic=ours.traffic,
        ignore_eos=ours.ignore_eos,
        name=check_name("Idempotency-Key", name) if name is not None else "",
        digest=sha256(f"{interface} {body.model_dump_json()}".encode()).digest() if name is not None else b"",
        presentation=state_pb2.Presentation(interface=interface, report=ours.report, usage=usage),
    )
    try:
        found = await router.open(request, "messages" if interface == state_pb2.INTERFACE_CHAT else "prompt")
    except InvalidError as refusal:
        if refusal.field in pin.FIELDS:
            field = f"specrouter.{refusal.field}"
            raise InvalidError(field, refusal.message.removeprefix(f"{refusal.field}: ")) from refusal
        raise
    return Answer(found, Place(), stream=bool(body.stream), protected=router.protected)


def _sequence(name: str) -> str:
    """A sequence's name, also from the id of an answer. Raises InvalidError."""
    return check_name("name", name.removeprefix("chatcmpl-").removeprefix("cmpl-"))


def _model(router: Router) -> dict[str, Any]:
    return {"id": router.family.name, "object": "model", "created": 0, "owned_by": "specrouter"}


def _check_model(router: Router, name: str) -> None:
    if name != router.family.name:
        raise InvalidError(
            "model", f"there is no {name[:80]!r}, only {router.family.name!r}", status=404, code="model_not_found"
        )


# Errors.


async def _on_invalid(_request: HttpRequest, error: Exception) -> Response:
    """The first fault of a body, by the field's name."""
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    fault = _worst(faults) if faults else {"loc": (), "msg": "can't be read", "type": ""}
    what = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        return refusal_response(InvalidError("body", "not JSON"))
    if fault["type"] == "extra_forbidden":
        what = "unknown field"
    named = FIELD_FIRST.match(what) if fault["type"] == "value_error" else None
    if named:
        return refusal_response(InvalidError(named.group(1), what[named.end() :]))
    return refusal_response(InvalidError(_field(fault["loc"]), what))


def _worst(faults: Sequence[Any]) -> Any:
    """The first field's fault; of a field that may have several types, that of the type it has."""
    same = [fault for fault in faults if fault["loc"][:2] == faults[0]["loc"][:2]]
    return next((fault for fault in same if not fault["type"].endswith("_type")), same[0])


def _field(place: Sequence[Any]) -> str:
    """The path of a field: names and indices, without pydantic's names for the members of a union."""
    parts = [str(part) for part in place[1:] if isinstance(part, int) or re.fullmatch(r"[a-z_0-9]{1,40}", str(part))]
    if len(parts) > 1 and parts[-1] in ("str", "int", "float"):
        parts.pop()
    return ".".join(parts) or "body"


async def _on_http(_request: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else "internal error"
    return refusal_response(RefusedError(detail, status=status))


async def _on_refusal(_request: HttpRequest, error: Exception) -> Response:
    return refusal_response(error if isinstance(error, RefusedError) else RefusedError("internal error", status=500))


async def _on_fault(_request: HttpRequest, _error: Exception) -> Response:
    return refusal_response(RefusedError("the router failed", status=500))  # starlette logs the exception itself
