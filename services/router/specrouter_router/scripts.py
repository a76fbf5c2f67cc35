"""The ``specrouter-router`` command: one router process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
import uvloop

from specrouter_family import tls
from specrouter_family.family import FROM_TARGET, Family, FamilyError
from specrouter_family.tls import Tls
from specrouter_router import dial as dials
from specrouter_router import family_source, tokenizer_source
from specrouter_router import tokenizer as tokenizers
from specrouter_router.dial import Dial
from specrouter_router.generate import RouterServer
from specrouter_router.metrics import OTEL_NAMES, Metrics
from specrouter_router.openai_api import make_app
from specrouter_router.orphans import OrphansPolicy
from specrouter_router.records import StoreError
from specrouter_router.router import Router, StartError, WithoutRedis
from specrouter_router.store import RedisStore
from specrouter_router.tokenizer import Tokenizer, TokenizerError
from specrouter_telemetry import push

log = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

GRPC_GRACE_S = 1.0
LEVEL_TLS = "SPECROUTER_LEVEL_TLS_"  # begins variables


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the process stops in an order of its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield


@dataclass(frozen=True, slots=True)
class Ways:
    """How the process was asked to serve."""

    redis_url: str = field(repr=False)
    host: str
    http_port: int
    grpc_port: int
    orphans: OrphansPolicy
    without_redis: WithoutRedis
    drain_s: float
    dial: Dial
    tls: Tls | None

    @property
    def address(self) -> str:
        """Where other processes find the HTTP port, as far as it is known here."""
        host = self.host
        if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared only
            host = socket.gethostname()
            with contextlib.suppress(OSError):
                host = socket.gethostbyname(host)  # a pod's own address; its name is known to itself only
        return f"{host}:{self.http_port}"


class ServeError(Exception):
    """One line for people: why the process ends."""


@app.command()
def serve(  # noqa: PLR0913  # the command line's options
    *,
    family: Annotated[Path, typer.Option(help="Family file; its levels need addresses.", envvar="SPECROUTER_FAMILY")],
    levels: Annotated[
        str, typer.Option(help="Levels that the file must have before it is used: a,b,c.", envvar="SPECROUTER_LEVELS")
    ] = "",
    redis_url: Annotated[
        str, typer.Option(help="redis[s][+sentinel|+cluster]://[user:password@]host", envvar="SPECROUTER_REDIS_URL")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="SPECROUTER_HOST")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=1, max=65535, envvar="SPECROUTER_HTTP_PORT")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, envvar="SPECROUTER_GRPC_PORT")] = 8001,
    orphans: Annotated[
        OrphansPolicy,
        typer.Option(help="What a router that died ran and nobody asks for.", envvar="SPECROUTER_ORPHANS"),
    ] = OrphansPolicy.EXPIRE,
    without_redis: Annotated[
        WithoutRedis, typer.Option(help="New requests while Redis is lost.", envvar="SPECROUTER_WITHOUT_REDIS")
    ] = WithoutRedis.SERVE,
    drain_s: Annotated[
        float, typer.Option(min=0, max=3600, help="Time for running sequences to end.", envvar="SPECROUTER_DRAIN_S")
    ] = 10.0,
    level_tls_ca: Annotated[
        Path | None,
        typer.Option(help="PEM authority of the levels' certificates: reach levels over TLS.", envvar=f"{LEVEL_TLS}CA"),
    ] = None,
    level_tls_cert: Annotated[
        Path | None, typer.Option(help="PEM certificate to show to levels (mTLS).", envvar=f"{LEVEL_TLS}CERT")
    ] = None,
    level_tls_key: Annotated[Path | None, typer.Option(help="Its PEM key.", envvar=f"{LEVEL_TLS}KEY")] = None,
    level_tls_name: Annotated[
        str, typer.Option(help="Name in the levels' certificates, where not the address.", envvar=f"{LEVEL_TLS}NAME")
    ] = "",
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM certificate of both ports.", envvar="SPECROUTER_TLS_CERT")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its PEM key.", envvar="SPECROUTER_TLS_KEY")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            help="PEM authority whose certificates clients must have (mTLS).", envvar="SPECROUTER_TLS_CLIENT_CA"
        ),
    ] = None,
) -> None:
    """Serve one family: OpenAI's interface on the HTTP port, RouterService on the gRPC port."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        loaded = family_source.load(family, [name for name in levels.split(",") if name])
        dial = dials.of(level_tls_ca, level_tls_cert, level_tls_key, level_tls_name)
        secured = tls.of(tls_cert, tls_key, tls_client_ca)
        tokenizer = _tokenizer(loaded, dial)
        ways = Ways(redis_url, host, http_port, grpc_port, orphans, without_redis, drain_s, dial, secured)
        uvloop.run(_serve(loaded, tokenizer, ways))
    except (FamilyError, TokenizerError, ServeError, StoreError, StartError, OSError, ValueError) as error:
        log.error("%s", " ".join(str(error).split()))
        raise typer.Exit(1) from error


def _tokenizer(family: Family, dial: Dial) -> Tokenizer:
    """Raises TokenizerError. With the target's, waits for the target."""
    if family.tokenizer != FROM_TARGET:
        return tokenizers.load(family.tokenizer)
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:  # read whole, not needed afterwards
        tokenizer_source.fetch(family.target.endpoints, Path(folder), dial=dial)
        return tokenizers.load(folder)


async def _serve(family: Family, tokenizer: Tokenizer, ways: Ways) -> None:
    metrics = Metrics()
    store = RedisStore(ways.redis_url, metrics)
    await store.open()
    router = Router(
        family,
        tokenizer,
        store,
        metrics,
        address=ways.address,
        orphans=ways.orphans,
        without_redis=ways.without_redis,
        dial=ways.dial,
    )
    http = HttpServer(_http_config(router, ways))
    grpc_server = RouterServer(router)
    who = {"service.name": "specrouter-router", "specrouter.family": family.name}
    pushing = push.Push(metrics.registry, who, OTEL_NAMES) if push.wanted() else None
    if pushing is not None:
        pushing.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await grpc_server.start(f"{ways.host}:{ways.grpc_port}", ways.tls)
    http_task = asyncio.create_task(_http(http, ways.host, ways.http_port), name="http")
    start_task = asyncio.create_task(router.start(), name="start")
    stop_task = asyncio.create_task(stopping.wait(), name="stop")
    try:
        await asyncio.wait({http_task, start_task, stop_task}, return_when=asyncio.FIRST_COMPLETED)
        if start_task.done() and not http_task.done():
            start_task.result()
            await asyncio.wait({http_task, stop_task}, return_when=asyncio.FIRST_COMPLETED)
        if http_task.done():
            http_task.result()
            raise ServeError("the HTTP server ended")
        log.info("stopping")
    finally:
        start_task.cancel()
        stop_task.cancel()
        await router.stop(ways.drain_s)
        http.should_exit = True
        await grpc_server.stop(GRPC_GRACE_S)
        await asyncio.wait({http_task}, timeout=3)
        if pushing is not None:
            await asyncio.to_thread(pushing.stop)
        await store.close()


def _http_config(router: Router, ways: Ways) -> uvicorn.Config:
    """Raises ValueError when the certificates can't be used."""
    context = ways.tls.context() if ways.tls is not None else None
    return uvicorn.Config(
        make_app(router),
        host=ways.host,
        port=ways.http_port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
        ssl_context_factory=None if context is None else lambda *_: context,
    )


async def _http(server: HttpServer, host: str, port: int) -> None:
    """Serve until told to stop. Raises ServeError when the port is taken."""
    try:
        await server.serve()
    except SystemExit as error:  # how uvicorn says that it cannot listen
        raise ServeError(f"cannot listen on {host}:{port}") from error


def main() -> None:
    """Entry point of ``specrouter-router``."""
    app()


if __name__ == "__main__":
    main()
