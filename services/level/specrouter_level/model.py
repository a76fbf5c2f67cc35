"""The level as KServe sees it: health, Open Inference Protocol metadata and the HTTP server around both."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

from kserve import Model, ModelServer
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
from kserve.protocol.dataplane import DataPlane

from specrouter_family.tls import Tls
from specrouter_level.drain import Drain
from specrouter_level.scheduler import Scheduler

STOP_SECONDS = 1  # for HTTP requests under way when the process is asked to stop


class LevelModel(Model):  # type: ignore[misc]  # kserve has no types
    """Ready while the engine works. Inference itself goes through LevelService.Extend."""

    def __init__(self, name: str, scheduler: Scheduler) -> None:
        super().__init__(name)
        self._scheduler = scheduler
        self.ready = True

    async def healthy(self) -> bool:
        """Whether calls would be answered."""
        return bool(self.ready) and self._scheduler.healthy and not self._scheduler.draining

    def get_input_types(self) -> list[dict[str, Any]]:
        """Of one ExtendCall: the prefix and the proposals."""
        return [
            {"name": "prefix", "datatype": "UINT32", "shape": [-1]},
            {"name": "proposals", "datatype": "UINT32", "shape": [-1]},
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Of one ExtendReply: the level's draws."""
        return [
            {"name": "tokens", "datatype": "UINT32", "shape": [-1]},
            {"name": "confidence", "datatype": "FP32", "shape": [-1]},
        ]

    async def predict(self, payload: object, headers: object = None, response_headers: object = None) -> None:
        """There is no inference over REST (501)."""
        raise NotImplementedError("this model answers specrouter.v1.LevelService/Extend on its gRPC port")


class _Plane(DataPlane):  # type: ignore[misc]  # as above
    """KServe calls a server ready whatever its model says; this one asks the model."""

    async def ready(self) -> bool:
        return all([await model.healthy() for model in self.model_registry.get_models().values()])


SAID = ServerNotReady | ModelNotReady | ModelNotFound | InvalidInput | NotImplementedError  # 503, 404, 400, 501


class _Answers(logging.Filter):
    """Keeps out the tracebacks that KServe logs of what its answer says: a level is not ready, a request is wrong."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], SAID))


class HttpServer(ModelServer):  # type: ignore[misc]  # as above
    """KServe's HTTP server with ``before`` run ahead of it and ``after`` at the end.

    KServe (0.21) always listens on every address and, on a signal, ends only its own servers, so that the process hangs
    on whatever else it serves. Here a signal, or ``drain`` begun otherwise, first drains the level, which is not ready
    from then on, and then ends everything.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: Tls | None,
        *,
        before: Callable[[], Awaitable[None]],
        drain: Drain,
        after: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(
            http_port=port, workers=1, enable_grpc=False, enable_latency_logging=False, grace_period=STOP_SECONDS
        )
        logging.getLogger("kserve").addFilter(_Answers())
        self.dataplane = _Plane(model_registry=self.registered_models)
        self._host = host
        self._context = None if tls is None else tls.context()
        self._before = before
        self._drain = drain
        self._after = after

    def stop(self, sig: int) -> None:
        """A signal before the loop runs: nothing is served yet."""
        raise SystemExit(0)

    async def _http(self) -> None:
        await asyncio.gather(*self.servers)

    async def _serve(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            asyncio.get_running_loop().add_signal_handler(number, self._drain.hurry)
        server = self._rest_server._server
        server.capture_signals = nullcontext  # uvicorn's own handlers would replace these
        config = self._rest_server.config
        config.host = self._host
        if self._context is not None:  # KServe's own settings know no client's certificates
            config.ssl_context_factory = lambda *_: self._context
        drained = asyncio.create_task(self._drain.done(), name="drain")
        try:
            await self._before()
            http = asyncio.ensure_future(self._http())
            await asyncio.wait({http, drained}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await http
        finally:
            drained.cancel()
            await self._after()
