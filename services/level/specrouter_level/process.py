"""One level as a process: the engine, its scheduler, LevelService and KServe's HTTP server together."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from prometheus_client import REGISTRY

from specrouter_level.drain import Drain
from specrouter_level.driver import Driver
from specrouter_level.engine import Engine
from specrouter_level.metrics import Metrics
from specrouter_level.model import HttpServer, LevelModel
from specrouter_level.scheduler import Scheduler
from specrouter_level.server import LevelServer
from specrouter_level.worker import Worker
from specrouter_telemetry import push

log = logging.getLogger(__name__)


class Level:
    """What runs in the process's loop beside KServe's server."""

    def __init__(
        self, name: str, engine: Engine, worker: Worker, address: str, grace: float, model: Path | None
    ) -> None:
        self.scheduler = Scheduler(engine.info)
        self.drain = Drain(self.scheduler, grace)
        self._driver = Driver(engine, self.scheduler, Metrics(name, self.scheduler).observe, worker)
        who = {"service.name": "specrouter-level", "specrouter.level": name}
        self._push = push.Push(REGISTRY, who) if push.wanted() else None
        self._name = name
        self._engine = engine
        self._address = address
        self._model = model
        self._server: LevelServer | None = None

    async def start(self) -> None:
        """Answer calls. grpc.aio binds to the running loop, so the server is made here."""
        server = LevelServer(
            self._name, self._engine.info, self.scheduler, self._driver, drain=self.drain, model=self._model
        )
        await server.start(self._address)
        self._server = server
        if self._push is not None:
            self._push.start()
        log.info("level %s (%s) serves gRPC on %s", self._name, self._engine.info.engine, self._address)

    async def stop(self) -> None:
        """End the calls, then the server."""
        if self._server is not None:
            await self._server.stop()
            if self._push is not None:
                await asyncio.to_thread(self._push.stop)
            log.info("level %s has stopped", self._name)


def run(
    name: str,
    engine: Engine,
    worker: Worker,
    *,
    host: str,
    http_port: int,
    grpc_port: int,
    grace: float,
    model: Path | None,
) -> int:
    """Serve until a signal or ``Drain``; returns the exit code. ``worker`` is the thread that made the engine."""
    level = Level(name, engine, worker, f"{host}:{grpc_port}", grace, model)
    http = HttpServer(host, http_port, before=level.start, drain=level.drain, after=level.stop)
    for noisy in ("kserve.trace", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # a line per health check
    try:
        http.start([LevelModel(name, level.scheduler)])
    except OSError as error:
        log.error("cannot serve level %s: %s", name, error)
        return 1
    return 0
