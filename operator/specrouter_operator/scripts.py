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
Identity = Annotated[str | None, _option("identity", "Name of this replica in the lease.")]
OtlpPort = Annotated[int, _option("otlp-port", "Receives levels' and routers' metrics (gRPC).", low=0)]
OtlpToken = Annotated[str, typer.Option(help="What pushes must show as bearer token.", envvar="SPECROUTER_OTLP_TOKEN")]
OtlpCert = Annotated[Path | None, _option("otlp-tls-cert", "PEM certificate of the OTLP port.")]
OtlpKey = Annotated[Path | None, _option("otlp-tls-key", "PEM key of the OTLP port.")]
OtlpClientCa = Annotated[
    Path | None, _option("otlp-client-ca", "PEM authority whose certificates senders must have (mTLS).")
]
RedisUrl = Annotated[
    str, typer.Option(help="Where routers read weights, as they have it.", envvar="SPECROUTER_REDIS_URL")
]
StorageImage = Annotated[str, _option("storage-image", "Image that fetches weights where KServe doesn't.")]
OtlpSecret = Annotated[str, _option("otlp-secret", "Secret with the token that levels push metrics with.")]
LevelTls = Annotated[str, _option("level-tls-secret", "Secret with which levels speak TLS (tls.crt, tls.key, ca.crt).")]


@app.command()
def run(  # noqa: PLR0913  # the command line's options
    *,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    identity: Identity = None,
    port: Annotated[int, _option("port", "Health and metrics (HTTP).", low=0)] = 8081,
    otlp_port: OtlpPort = 4317,
    otlp_token: OtlpToken = "",
    otlp_tls_cert: OtlpCert = None,
    otlp_tls_key: OtlpKey = None,
    otlp_client_ca: OtlpClientCa = None,
    redis_url: RedisUrl = "",
    level_image: Annotated[str, _option("level-image", "Image of levels.")] = Settings.level_image,
    storage_image: StorageImage = Settings.storage_image,
    otlp_endpoint: Annotated[str, _option("otlp-endpoint", "Where levels push metrics, http://host:port.")] = "",
    otlp_secret: OtlpSecret = "",
    kv_secret: Annotated[str, _option("kv-secret", "Secret with url and key for levels' KV checkpoints.")] = "",
    level_tls_secret: LevelTls = "",
    relist_seconds: Annotated[float, _option("relist-seconds", "Between full reads.", low=1)] = Pace.relist,
    watch_seconds: Annotated[int, _option("watch-seconds", "Of one watch.", low=1)] = Pace.watch,
    lease_seconds: Annotated[float, _option("lease-seconds", "Of the leader's lease.", low=1)] = Pace.lease,
) -> None:
    """Run the operator for the families of one namespace."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    traces.export()
    where, name = namespace or _own_namespace(), identity or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    pace = Pace(relist=relist_seconds, watch=watch_seconds, lease=lease_seconds, retry=min(2.0, lease_seconds / 6))
    settings = Settings(level_image, storage_image, otlp_endpoint, otlp_secret, kv_secret, level_tls_secret)
    try:
        secured = tls.of(otlp_tls_cert, otlp_tls_key, otlp_client_ca)
        if secured is not None:
            secured.credentials()  # what is wrong with them is said now, not when this replica leads
        publisher = RedisPublisher(redis_url) if redis_url else None
        api, lease_api = connect(kubeconfig, where), connect(kubeconfig, where)
    except ValueError as error:
        log.error("%s", error)
        raise typer.Exit(2) from error
    except (config.ConfigException, OSError) as error:
        log.error("no API server: %s", error)
        raise typer.Exit(2) from error
    sources = Sources(otlp_token, secured)
    REGISTRY.register(sources)
    operator = Operator(api, lease_api, name, settings, pace=pace, signals_of=sources.of, publisher=publisher)
    health = Health(port, operator.alive, operator.ready)
    log.info("operator %s for namespace %s, health on port %d", name, where, health.port)
    raise typer.Exit(_serve(operator, sources, health, f"0.0.0.0:{otlp_port}"))


def _serve(operator: Operator, sources: Sources, health: Health, otlp_address: str) -> int:
    """Run until a signal comes or something ends by itself. Returns the exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    operator.start()
    health.start()
    try:
        while not stop.wait(1.0):
            sources.listen(otlp_address, operator.lease.held())
            if not operator.alive():
                log.error("a thread ended by itself")
                break
    except (OSError, ValueError) as error:
        log.error("%s", error)
    operator.stop()
    sources.listen("", leads=False)
    health.stop()
    return 0 if stop.is_set() else 1


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
