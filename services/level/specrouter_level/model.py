"""The level as KServe sees it: health, Open Inference Protocol metadata and the HTTP server around both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from kserve import Model, ModelServer
from kserve.protocol.dataplane import DataPlane

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


class _Plane(DataPlane):  # type: ignore[misc]
    """KServe calls a server ready whatever its model says; this one asks the model."""

    async def ready(self) -> bool:
        return all([await model.healthy() for model in self.model_registry.get_models().values()])


class HttpServer(ModelServer):  # type: ignore[misc]
    """KServe's HTTP server with ``before`` run ahead of it and ``after`` when a signal has ended it.

    KServe (0.21) always listens on every address and, on a signal, ends only its own servers.
    """

    def __init__(
        self, host: str, port: int, before: Callable[[], Awaitable[None]], after: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(
            http_port=port, workers=1, enable_grpc=False, enable_latency_logging=False, grace_period=STOP_SECONDS
        )
        self.dataplane = _Plane(model_registry=self.registered_models)
        self._host = host
        self._before = before
        self._after = after

    def stop(self, sig: int) -> None:
        """Also ends a server that the signal caught while it was starting (uvicorn takes signals only afterwards)."""
        self._rest_server._server.should_exit = True
        super().stop(sig)

    async def _serve(self) -> None:
        self._rest_server.config.host = self._host
        await self._before()
        try:
            await asyncio.gather(*self.servers)
        finally:
            await self._after()
