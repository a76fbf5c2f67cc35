"""RouterService: the gRPC interface, token by token the same as the REST one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from hashlib import sha256
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message

from specrouter.v1 import level_pb2, router_pb2, state_pb2
from specrouter_core.chain import MAX_LOOKAHEAD
from specrouter_core.sampling import Sampling
from specrouter_family.tls import Tls
from specrouter_router.find import Found
from specrouter_router.pin import Mode, Pin
from specrouter_router.refusal import RETRY_AFTER_S, InvalidError, RefusedError
from specrouter_router.request import (
    MAX_CLASS_CHARACTERS,
    MAX_MESSAGES,
    Request,
    check_name,
    check_stops,
    check_text,
    random_seed,
)
from specrouter_router.router import Router
from specrouter_router.sequence import FINISHES
from specrouter_router.spec import MODES
from specrouter_router.story import Account, Chunk, End, Reader
from specrouter_router.tokenizer import TokenizerError

log = logging.getLogger(__name__)

SERVICE = "specrouter.v1.RouterService"
OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_concurrent_streams", 512),
    ("grpc.so_reuseport", 0),  # a second router on the port must fail, not share it
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # clients may ping
)
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
ROLES = ("system", "user", "assistant")
MAX_NAME_BYTES = 64
SEND_S = 60.0

Context = grpc.aio.ServicerContext[Any, Any]


class RouterServer:
    """One grpc.aio server for one router."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=1024)
        pb = router_pb2
        handlers = {
            "Generate": grpc.unary_stream_rpc_method_handler(
                self._generate, _parser(pb.GenerateRequest), pb.GenerateResponse.SerializeToString
            ),
            "Cancel": grpc.unary_unary_rpc_method_handler(
                self._cancel, _parser(pb.CancelRequest), pb.CancelResponse.SerializeToString
            ),
            "Attach": grpc.unary_stream_rpc_method_handler(
                self._attach, _parser(pb.AttachRequest), pb.AttachResponse.SerializeToString
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self, address: str, tls: Tls | None = None) -> int:
        """Listen on ``host:port``; returns the port. OSError when the port is taken, ValueError by ``tls``."""
        try:
            port: int = (
                self._server.add_insecure_port(address)
                if tls is None
                else self._server.add_secure_port(address, tls.credentials())
            )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
        await self._server.start()
        return port

    async def stop(self, seconds: float) -> None:
        """Take no more calls; running ones may end within ``seconds``."""
        await self._server.stop(seconds)

    async def _generate(self, message: object, context: Context) -> None:
        if not isinstance(message, router_pb2.GenerateRequest):
            await _abort(context, RefusedError("not a GenerateRequest"))
        try:
            request = await self._request(message)
            found = await self._router.open(request, message.WhichOneof("prompt") or "prompt")
        except RefusedError as refusal:
            await _abort(context, refusal)
        form = _Form(found, message.report)
        await self._follow(Reader(found.story), form, context, lambda response: response)

    async def _request(self, message: router_pb2.GenerateRequest) -> Request:
        """What the message asks for. Raises RefusedError."""
        family = self._router.family.name
        if message.model != family:
            raise InvalidError("model", f"there is no {message.model[:80]!r}, only {family!r}")
        self._router.admit()
        sampling = _sampling(message.sampling) if message.HasField("sampling") else Sampling(seed=random_seed())
        return Request(
            prompt=await self._prompt(message),
            max_tokens=message.max_tokens,
            sampling=sampling,
            stop=check_stops(message.stop),
            pin=_pin(message),
            traffic=_traffic(message.traffic_class),
            ignore_eos=message.ignore_eos,
            name=check_name("sequence", message.sequence) if message.sequence else "",
            digest=sha256(message.SerializeToString(deterministic=True)).digest() if message.sequence else b"",
            presentation=state_pb2.Presentation(report=message.report),
        )

    async def _prompt(self, message: router_pb2.GenerateRequest) -> list[int]:
        router = self._router
        match message.WhichOneof("prompt"):
            case "text":
                text = check_text("text", message.text)
                return await router.prompts.encode(text) if text else []
            case "tokens":
                return list(message.tokens.ids)
            case "chat":
                messages = _conversation(message.chat)
                try:
                    return await router.prompts.render(messages)
                except TokenizerError as error:
                    raise InvalidError("chat", str(error)) from error
            case _:
                raise InvalidError("prompt", "one of text, chat and tokens must be set")

    async def _cancel(self, message: object, context: Context) -> router_pb2.CancelResponse:
        if not isinstance(message, router_pb2.CancelRequest):
            await _abort(context, RefusedError("not a CancelRequest"))
        await _check_name(context, message.sequence)
        try:
            return router_pb2.CancelResponse(cancelled=await self._router.cancel(message.sequence))
        except RefusedError as refusal:
            await _abort(context, refusal)

    async def _attach(self, message: object, context: Context) -> None:
        if not isinstance(message, router_pb2.AttachRequest):
            await _abort(context, RefusedError("not an AttachRequest"))
        await _check_name(context, message.sequence)
        try:
            found = await self._router.find(message.sequence)
            found.check_offset(message.offset)
        except RefusedError as refusal:
            await _abort(context, refusal)
        reader = Reader(found.story, message.offset)
        await self._follow(
            reader, _Form(found, False), context, lambda response: router_pb2.AttachResponse(event=response)
        )

    async def _follow(
        self, reader: Reader, form: _Form, context: Context, wrap: Callable[[router_pb2.GenerateResponse], Message]
    ) -> None:
        """Write the story to its end. A client that reads nothing for a minute is gone."""
        name, protected = form.found.spec.sequence, str(self._router.protected).lower()
        with form.found.story.followed():
            try:
                async with asyncio.timeout(SEND_S):
                    await context.send_initial_metadata(
                        (("specrouter-sequence", name), ("specrouter-protected", protected))
                    )
                while not isinstance(event := await reader.next(), End):
                    async with asyncio.timeout(SEND_S):
                        await context.write(wrap(form.chunk(event)))
                if event.refusal is None:
                    async with asyncio.timeout(SEND_S):
                        await context.write(wrap(form.last(event)))
                    return
                refusal = event.refusal
            except TimeoutError:
                refusal = RefusedError(f"nothing was read for {SEND_S:g} s", status=504)
            await _abort(context, refusal, name, reader.position)


class _Form:
    """How one story looks on the wire."""

    def __init__(self, found: Found, report: bool) -> None:
        self.found = found
        self._report = report

    def chunk(self, chunk: Chunk) -> router_pb2.GenerateResponse:
        levels = self.found.levels
        origins = [levels.index(o) if o in levels else len(levels) for o in chunk.origins] if self._report else ()
        name = self.found.spec.sequence
        return router_pb2.GenerateResponse(
            sequence=name, offset=chunk.offset, tokens=chunk.tokens, text=chunk.text, origins=origins
        )

    def last(self, end: End) -> router_pb2.GenerateResponse:
        spec, tokens = self.found.spec, self.found.story.tokens
        return router_pb2.GenerateResponse(
            sequence=spec.sequence,
            offset=len(tokens),
            text="".join(text for text, _ in end.pieces),
            finish=FINISHES[end.reason],
            usage=router_pb2.Usage(prompt_tokens=len(spec.prompt), completion_tokens=len(tokens)),
            report=_report(end.account) if self._report else None,
            seed=spec.params.sampling.seed,
        )


def _report(account: Account) -> router_pb2.Report:
    return router_pb2.Report(
        rounds=account.rounds,
        levels=[
            router_pb2.LevelReport(
                level=level.level,
                calls=level.calls,
                drawn=level.drawn,
                offered=level.offered,
                accepted=level.accepted,
                committed=level.committed,
                compute_us=int(level.compute_ms * 1000),
                queue_us=int(level.queue_ms * 1000),
            )
            for level in account.levels
        ],
        lost=account.lost,
        chains=[
            router_pb2.ChainReport(
                levels=chain.levels,
                mode=MODES[chain.mode],
                rounds=chain.rounds,
                tokens=chain.tokens,
                duration_us=int(chain.ms * 1000),
            )
            for chain in account.chains
        ],
        switches=account.switches,
    )


def _pin(message: router_pb2.GenerateRequest) -> Pin:
    """Raises InvalidError, naming the field."""
    named: dict[int, Mode | None] = {number: name for name, number in MODES.items()}
    named[router_pb2.MODE_UNSPECIFIED] = None
    if message.mode not in named:
        raise InvalidError("mode", f"must be MODE_OVERLAPPED or MODE_LOCKSTEP, got {message.mode}")
    if message.lookahead > MAX_LOOKAHEAD:
        raise InvalidError("lookahead", f"must be 1 to {MAX_LOOKAHEAD}, got {message.lookahead}")
    return Pin(
        tuple(message.chain),
        tuple(message.windows),
        message.lookahead or None,
        named[message.mode],
        tuple(message.least),
    )


def _traffic(name: str) -> str:
    """Raises InvalidError when it is too long."""
    if len(name) > MAX_CLASS_CHARACTERS:
        raise InvalidError("traffic_class", f"at most {MAX_CLASS_CHARACTERS} characters, got {len(name)}")
    return name


def _sampling(message: level_pb2.Sampling) -> Sampling:
    """Raises InvalidError, naming the field."""
    try:
        return Sampling(
            seed=message.seed,
            temperature=message.temperature,
            top_k=message.top_k,
            top_p=message.top_p if message.HasField("top_p") else 1.0,
            min_p=message.min_p,
            repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
            presence_penalty=message.presence_penalty,
            frequency_penalty=message.frequency_penalty,
            logit_bias=dict(message.logit_bias),
        )
    except ValueError as error:
        field, _, what = str(error).partition(": ")
        raise InvalidError(f"sampling.{field}", what) from error


def _conversation(chat: router_pb2.ChatPrompt) -> list[dict[str, str]]:
    """Raises InvalidError, naming the field."""
    if not 1 <= len(chat.messages) <= MAX_MESSAGES:
        raise InvalidError("chat.messages", f"1 to {MAX_MESSAGES} are needed, got {len(chat.messages)}")
    messages = []
    for i, message in enumerate(chat.messages):
        if message.role not in ROLES:
            raise InvalidError(f"chat.messages.{i}.role", f"must be {', '.join(ROLES)}, got {message.role[:40]!r}")
        content = check_text(f"chat.messages.{i}.content", message.content)
        messages.append({"role": message.role, "content": content})
    return messages


async def _check_name(context: Context, name: str) -> None:
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        await _abort(context, InvalidError("sequence", f"must be 1 to {MAX_NAME_BYTES} bytes"))


async def _abort(context: Context, refusal: RefusedError, sequence: str = "", offset: int = 0) -> NoReturn:
    status = CODES.get(refusal.status, grpc.StatusCode.INTERNAL)
    if refusal.code == "taken_over":
        status = grpc.StatusCode.ABORTED
    metadata = [("specrouter-code", refusal.code)] if refusal.code else []
    if refusal.status in RETRY_AFTER_S:
        metadata.append(("retry-after", str(RETRY_AFTER_S[refusal.status])))
    if sequence:
        metadata += [("specrouter-sequence", sequence), ("specrouter-offset", str(offset))]
    await context.abort(status, refusal.message, tuple(metadata))
    raise AssertionError("abort returns by an exception")


def _parser(kind: type[Message]) -> Callable[[bytes], Message | None]:
    """A message that can't be parsed is None to its handler, so that it ends its call with a clear status."""

    def parse(data: bytes) -> Message | None:
        try:
            message = kind()
            message.ParseFromString(data)
            return message
        except DecodeError:
            return None

    return parse
