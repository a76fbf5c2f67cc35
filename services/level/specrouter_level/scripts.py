"""The ``specrouter-level`` command: one level of a family as a process."""

from __future__ import annotations

import logging
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from specrouter_family import tls
from specrouter_family.tls import Tls
from specrouter_level import checkpoint_settings, engines
from specrouter_level.worker import Worker

log = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class EngineName(StrEnum):
    """The engines there are."""

    TORCH = "torch"
    NGRAM = "ngram"
    STUB = "stub"


class Dtype(StrEnum):
    """What the model computes in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantization(StrEnum):
    """How the weights are stored."""

    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"


class Exactness(StrEnum):
    """What two runs share: see the engine."""

    SHAPE = "shape"
    BITWISE = "bitwise"


class KvPolicy(StrEnum):
    """Which KV is written to Redis."""

    OFF = "off"
    PROMPTS = "prompts"
    ALL = "all"


class KvCodec(StrEnum):
    """How it is written."""

    EXACT = "exact"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


class Port(StrEnum):
    """Whether a port speaks TLS."""

    OFF = "off"
    SERVER = "server"  # only the level shows a certificate: what Kubernetes' probes can do
    MUTUAL = "mutual"


def _option(name: str, text: str, low: float | None = None, high: float | None = None) -> Any:
    variable = "SPECROUTER_LEVEL_" + name.upper().replace("-", "_")
    return typer.Option(f"--{name}", help=text, envvar=variable, min=low, max=high)


Cert = Annotated[Path | None, _option("tls-cert", "PEM certificate of the ports.")]
ClientCa = Annotated[
    Path | None, _option("tls-client-ca", "PEM authority whose certificates clients must have (mTLS).")
]
Drain = Annotated[float, _option("drain-seconds", "Running sequences get so long to move at the end.", 0, 3600)]
HttpTls = Annotated[Port, _option("http-tls", "The HTTP port with the certificate, or as the gRPC port with mTLS.")]
KeyFile = Annotated[Path | None, _option("kv-key-file", "Tenant's key: signs KV and hides its names.")]
Kv = Annotated[KvPolicy, _option("kv-checkpoints", "Write KV to Redis: of prompts, or all (torch).")]
Quantized = Annotated[Quantization, _option("quantization", "Of the weights (torch).")]


@app.command()
def serve(  # noqa: PLR0913  # the command line's options
    *,
    name: Annotated[str, _option("name", "The level's name in its family.")],
    engine: Annotated[EngineName, _option("engine", "What draws the tokens.")],
    http_port: Annotated[int, _option("http-port", "Health, metadata, metrics.", low=1, high=65535)],
    grpc_port: Annotated[int, _option("grpc-port", "LevelService.", low=1, high=65535)],
    host: Annotated[str, _option("host", "Address to listen on.")] = "127.0.0.1",
    model: Annotated[Path | None, _option("model", "Directory of the weights (torch).")] = None,
    dtype: Annotated[Dtype, _option("dtype", "What the model computes in (torch).")] = Dtype.FLOAT32,
    quantization: Quantized = Quantization.NONE,
    device: Annotated[str, _option("device", "cpu or cuda:0 (torch).")] = "cpu",
    threads: Annotated[int, _option("threads", "CPU threads (torch); 0 = all.", low=0, high=1024)] = 0,
    max_length: Annotated[int, _option("max-length", "Tokens of one sequence.", low=2, high=1 << 20)] = 2048,
    slots: Annotated[int, _option("slots", "Sequences held at once.", low=1, high=4096)] = 16,
    max_rows: Annotated[int, _option("max-rows", "Tokens fed in one step.", low=4, high=1 << 16)] = 512,
    exactness: Annotated[Exactness, _option("exactness", "shape or bitwise (torch).")] = Exactness.SHAPE,
    agreement: Annotated[float, _option("agreement", "With the target's draws (stub).", low=0, high=1)] = 1.0,
    step_ms: Annotated[str, _option("step-ms", 'Cost of a step: "rows:ms,..." (stub).')] = "",
    drain_seconds: Drain = 10.0,
    kv_checkpoints: Kv = KvPolicy.OFF,
    kv_url: Annotated[str, _option("kv-url", "Redis for KV checkpoints.")] = "",
    kv_codec: Annotated[KvCodec, _option("kv-codec", "How KV is written.")] = KvCodec.EXACT,
    kv_budget_mib: Annotated[int, _option("kv-budget-mib", "Of KV in Redis, for this level.", 1, 1 << 24)] = 1024,
    kv_key_file: KeyFile = None,
    tls_cert: Cert = None,
    tls_key: Annotated[Path | None, _option("tls-key", "Its PEM key.")] = None,
    tls_client_ca: ClientCa = None,
    http_tls: HttpTls = Port.OFF,
) -> None:
    """Serve one level: LevelService on the gRPC port, health and metrics on the HTTP port."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    worker = Worker()
    size = engines.Size(max_length, slots, max_rows)
    bits = exactness if engine is EngineName.TORCH else ""
    try:
        checkpoints = checkpoint_settings.of(kv_checkpoints, kv_url, kv_codec, kv_budget_mib, kv_key_file, bits)
        secured = tls.of(tls_cert, tls_key, tls_client_ca)
        http = _http(secured, http_tls)
        if engine is EngineName.TORCH:
            how = engines.Computing(dtype, quantization, device, threads, exactness)
            made = engines.torch(worker, model, how, size)
        elif engine is EngineName.STUB:
            made = engines.stub(name, agreement, step_ms, size)
        else:
            made = engines.ngram(size)
    except (ValueError, OSError) as error:
        log.error("cannot start level %s: %s", name, error)
        raise typer.Exit(2) from error
    from specrouter_level.process import Serving, run  # noqa: PLC0415  # kserve takes a second; errors come first

    tokens = model if engine is EngineName.TORCH else None
    serving = Serving(host, http_port, grpc_port, drain_seconds, tokens, checkpoints, secured, http)
    raise typer.Exit(run(name, made, worker, serving))


def _http(secured: Tls | None, wanted: Port) -> Tls | None:
    """The HTTP port's certificates. Raises ValueError for files that can't be used, before a model is loaded."""
    if secured is not None:
        secured.credentials()
    if wanted is Port.OFF:
        return None
    if secured is None:
        raise ValueError("tls-cert: needed with http-tls")
    if wanted is Port.MUTUAL and secured.client_ca is None:
        raise ValueError("tls-client-ca: needed with http-tls mutual")
    return secured if wanted is Port.MUTUAL else replace(secured, client_ca=None)


def main() -> None:
    """Entry point of ``specrouter-level``."""
    app()
