"""One level as a process: the engine, its scheduler, LevelService and KServe's HTTP server together."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY

from specrouter_family.tls import Tls
from specrouter_level.checkpoint_settings import Settings
from specrouter_level.drain import Drain
from specrouter_level.driver import Driver
from specrouter_level.engine import Engine
from specrouter_level.held import Held
from specrouter_level.metrics import Metrics
from specrouter_level.model import HttpServer, LevelModel
from specrouter_level.scheduler import Scheduler
from specrouter_level.server import LevelServer
from specrouter_level.worker import Worker
from specrouter_telemetry import push

if TYPE_CHECKING:
    from specrouter_level.checkpoint import Checkpoints

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """How a level is served, whatever it is."""

    host: str
    http_port: int
    grpc_port: int
    grace: float  # seconds that running sequences get when the level is to end
    model: Path | None  # directory whose tokenizer routers may fetch
    checkpoints: Settings | None
    tls: Tls | None  # of the gRPC port
    http_tls: Tls | None


class Level:
    """What runs in the process's loop beside KServe's server."""

    def __init__(self, name: str, engine: Engine, worker: Worker, serving: Serving) -> None:
        self.checkpoints = _checkpoints(name, engine, serving.checkpoints)
        self.scheduler = Scheduler(engine.info, self.checkpoints)
        self.drain = Drain(self.scheduler, serving.grace)
        self._driver = Driver(engine, self.scheduler, Metrics(name, self.scheduler).observe, worker)
        who = {"service.name": "specrouter-level", "specrouter.level": name}
        self._push = push.Push(REGISTRY, who) if push.wanted() else None
        self._name = name
        self._engine = engine
        self._serving = serving
        self._server: LevelServer | None = None

    async def start(self) -> None:
        """Answer calls. grpc.aio binds to the running loop, so the server is made here."""
        serving = self._serving
        server = LevelServer(
            self._name,
            self._engine.info,
            self.scheduler,
            self._driver,
            drain=self.drain,
            model=serving.model,
            tls=serving.tls,
        )
        address = f"{serving.host}:{serving.grpc_port}"
        await server.start(address)
        if self.checkpoints is not None:
            self.checkpoints.start(self._restored)
        self._server = server
        if self._push is not None:
            self._push.start()
        secured = "" if serving.tls is None else " with mTLS" if serving.tls.client_ca else " with TLS"
        log.info("level %s (%s) serves gRPC on %s%s", self._name, self._engine.info.engine, address, secured)

    def _restored(self, held: Held) -> None:
        self.scheduler.restored(held)
        self._driver.kick()

    async def stop(self) -> None:
        """End the calls, then the server."""
        if self._server is not None:
            await self._server.stop()
            if self.checkpoints is not None:
                await asyncio.to_thread(self.checkpoints.stop)
            if self._push is not None:
                await asyncio.to_thread(self._push.stop)
            log.info("level %s has stopped", self._name)


def _checkpoints(name: str, engine: Engine, settings: Settings | None) -> Checkpoints | None:
    if settings is None:
        return None
    if engine.memory is None:
        log.info("level %s: engine %s keeps no KV, so there is nothing to checkpoint", name, engine.info.engine)
        return None
    from specrouter_level.checkpoint import Checkpoints  # noqa: PLC0415  # redis, which most levels do without

    return Checkpoints(settings, engine, engine.memory)


def run(name: str, engine: Engine, worker: Worker, serving: Serving) -> int:
    """Serve until a signal or ``Drain``; returns the exit code. ``worker`` is the thread that made the engine."""
    try:
        level = Level(name, engine, worker, serving)
    except ValueError as error:  # a kv-url that is none
        log.error("cannot start level %s: %s", name, error)
        return 2
    http = HttpServer(
        serving.host,
        serving.http_port,
        serving.http_tls,
        before=level.start,
        drain=level.drain,
        after=level.stop,
    )
    for noisy in ("kserve.trace", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # a line per health check
    try:
        http.start([LevelModel(name, level.scheduler)])
    except OSError as error:
        log.error("cannot serve level %s: %s", name, error)
        return 1
    return 0
