"""The ``specrouter-operator`` command."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from kubernetes import config
from prometheus_client import REGISTRY

from specrouter_family import tls
from specrouter_operator import explain, removal, traces
from specrouter_operator.api import ApiError, connect
from specrouter_operator.health import Health
from specrouter_operator.operator import Operator, Pace
from specrouter_operator.publish import RedisPublisher
from specrouter_operator.settings import Settings
from specrouter_operator.sources import Sources

log = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def _option(name: str, text: str, low: float | None = None) -> Any:
    variable = "SPECROUTER_OPERATOR_" + name.upper().replace("-", "_")
    return typer.Option(f"--{name}", help=text, envvar=variable, min=low)


Namespace = Annotated[str | None, _option("namespace", "Namespace of the families. Default: the pod's own.")]
Kubeconfig = Annotated[str | None, _option("kubeconfig", "Kubeconfig file. Default: the pod's service account.")]


@app.command()
def run(  # noqa: PLR0913  # the command line's options
    *,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    identity: Annotated[str | None, _option("identity", "Name of this replica in the lease.")] = None,
    port: Annotated[int, _option("port", "Health and metrics (HTTP).", low=0)] = 8081,
    otlp_port: Annotated[int, _option("otlp-port", "Receives levels' and routers' metrics (gRPC).", low=0)] = 4317,
    otlp_token: Annotated[
        str, typer.Option(help="What pushes must show as bearer token.", envvar="SPECROUTER_OTLP_TOKEN")
    ] = "",
    otlp_tls_cert: Annotated[Path | None, _option("otlp-tls-cert", "PEM certificate of the OTLP port.")] = None,
    otlp_tls_key: Annotated[Path | None, _option("otlp-tls-key", "PEM key of the OTLP port.")] = None,
    otlp_client_ca: Annotated[
        Path | None, _option("otlp-client-ca", "PEM authority whose certificates senders must have (mTLS).")
    ] = None,
    redis_url: Annotated[
        str, typer.Option(help="Where routers read weights, as they have it.", envvar="SPECROUTER_REDIS_URL")
    ] = "",
    level_image: Annotated[str, _option("level-image", "Image of levels.")] = Settings.level_image,
    storage_image: Annotated[
        str, _option("storage-image", "Image that fetches weights where KServe doesn't.")
    ] = Settings.storage_image,
    otlp_endpoint: Annotated[str, _option("otlp-endpoint", "Where levels push metrics, http://host:port.")] = "",
    otlp_secret: Annotated[str, _option("otlp-secret", "Secret with the token that levels push metrics with.")] = "",
    kv_secret: Annotated[str, _option("kv-secret", "Secret with url and key for levels' KV checkpoints.")] = "",
    level_tls_secret: Annotated[
        str, _option("level-tls-secret", "Secret with which levels speak TLS (tls.crt, tls.key, ca.crt).")
    ] = "",
    relist_seconds: Annotated[float, _option("relist-seconds", "Between full reads.", low=1)] = Pace.relist,
    watch_seconds: Annotated[int, _option("watch-seconds", "Of one watch.", low=1)] = Pace.watch,
    lease_seconds: Annotated[float, _option("lease-seconds", "Of the leader's lease.", low=1)] = Pace.lease,
) -> None:
    """Run the operator for the families of one namespace."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    traces.export()
    where = namespace or _own_namespace()
    try:
        api, lease_api = connect(kubeconfig, where), connect(kubeconfig, where)
    except (config.ConfigException, OSError) as error:
        log.error("no API server: %s", error)
        raise typer.Exit(2) from error
    pace = Pace(relist=relist_seconds, watch=watch_seconds, lease=lease_seconds, retry=min(2.0, lease_seconds / 6))
    settings = Settings(level_image, storage_image, otlp_endpoint, otlp_secret, kv_secret, level_tls_secret)
    name = identity or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    try:
        secured = tls.of(otlp_tls_cert, otlp_tls_key, otlp_client_ca)
        if secured is not None:
            secured.credentials()  # what is wrong with them is said now, not when this replica leads
        publisher = RedisPublisher(redis_url) if redis_url else None
    except ValueError as error:
        log.error("%s", error)
        raise typer.Exit(2) from error
    sources = Sources(otlp_token, secured)
    REGISTRY.register(sources)
    operator = Operator(api, lease_api, name, settings, pace=pace, signals_of=sources.of, publisher=publisher)
    health = Health(port, operator.alive, operator.ready)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    operator.start()
    health.start()
    log.info("operator %s for namespace %s, health on port %d", name, where, health.port)
    try:
        while not stop.wait(1.0):
            sources.listen(f"0.0.0.0:{otlp_port}", operator.lease.held())
            if not operator.alive():
                log.error("a thread ended by itself")
                break
    except (OSError, ValueError) as error:
        log.error("%s", error)
    operator.stop()
    sources.listen("", leads=False)
    health.stop()
    raise typer.Exit(0 if stop.is_set() else 1)


@app.command("explain-policy")
def explain_policy(
    name: Annotated[str, typer.Argument(help="The RoutingPolicy.")],
    *,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """What a policy came to, and why: weights, replicas, conditions."""
    try:
        text = explain.policy(connect(kubeconfig, namespace or _own_namespace()), name)
    except (ApiError, config.ConfigException, OSError) as error:
        typer.echo(f"specrouter-operator: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(text)


@app.command("remove-family")
def remove_family(
    name: Annotated[str, typer.Argument(help="The ModelFamily.")],
    *,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    seconds: Annotated[float, typer.Option(help="How long it may take.", min=1)] = 600,
) -> None:
    """Delete a family, and wait until the operator has drained its levels and let it go."""
    try:
        gone = removal.remove(connect(kubeconfig, namespace or _own_namespace()), name, seconds)
    except (ApiError, config.ConfigException, OSError) as error:
        typer.echo(f"specrouter-operator: {error}", err=True)
        raise typer.Exit(2) from error
    if not gone:
        typer.echo(
            f"specrouter-operator: family {name} is still there after {seconds:g} s; does an operator run?", err=True
        )
        raise typer.Exit(1)


def _own_namespace() -> str:
    if POD_NAMESPACE.is_file():
        return POD_NAMESPACE.read_text(encoding="utf-8").strip()
    return os.environ.get("POD_NAMESPACE", "default")


def main() -> None:
    """Entry point of ``specrouter-operator``."""
    app()
