"""The ``specrouter-level`` command: one level of a family as a process."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from specrouter_family import tls
from specrouter_level import checkpoint_settings
from specrouter_level.engine import Engine
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


def _option(name: str, text: str, low: float | None = None, high: float | None = None) -> Any:
    variable = "SPECROUTER_LEVEL_" + name.upper().replace("-", "_")
    return typer.Option(f"--{name}", help=text, envvar=variable, min=low, max=high)


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
    quantization: Annotated[Quantization, _option("quantization", "Of the weights (torch).")] = Quantization.NONE,
    device: Annotated[str, _option("device", "cpu or cuda:0 (torch).")] = "cpu",
    threads: Annotated[int, _option("threads", "CPU threads (torch); 0 = all.", low=0, high=1024)] = 0,
    max_length: Annotated[int, _option("max-length", "Tokens of one sequence.", low=2, high=1 << 20)] = 2048,
    slots: Annotated[int, _option("slots", "Sequences held at once.", low=1, high=4096)] = 16,
    max_rows: Annotated[int, _option("max-rows", "Tokens fed in one step.", low=4, high=1 << 16)] = 512,
    exactness: Annotated[Exactness, _option("exactness", "shape or bitwise (torch).")] = Exactness.SHAPE,
    agreement: Annotated[float, _option("agreement", "With the target's draws (stub).", low=0, high=1)] = 1.0,
    step_ms: Annotated[str, _option("step-ms", 'Cost of a step: "rows:ms,..." (stub).')] = "",
    drain_seconds: Annotated[
        float, _option("drain-seconds", "Running sequences get so long to move when the level is to end.", 0, 3600)
    ] = 10.0,
    kv_checkpoints: Annotated[
        KvPolicy, _option("kv-checkpoints", "Write KV to Redis: of prompts, or all (torch).")
    ] = KvPolicy.OFF,
    kv_url: Annotated[str, _option("kv-url", "Redis for KV checkpoints.")] = "",
    kv_codec: Annotated[KvCodec, _option("kv-codec", "How KV is written.")] = KvCodec.EXACT,
    kv_budget_mib: Annotated[int, _option("kv-budget-mib", "Of KV in Redis, for this level.", 1, 1 << 24)] = 1024,
    kv_key_file: Annotated[Path | None, _option("kv-key-file", "Tenant's key: signs KV and hides its names.")] = None,
    tls_cert: Annotated[Path | None, _option("tls-cert", "PEM certificate of the gRPC port.")] = None,
    tls_key: Annotated[Path | None, _option("tls-key", "PEM key of the gRPC port.")] = None,
    tls_client_ca: Annotated[
        Path | None, _option("tls-client-ca", "PEM authority whose certificates clients must have (mTLS).")
    ] = None,
) -> None:
    """Serve one level: LevelService on the gRPC port, health and metrics on the HTTP port."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    worker = Worker()
    try:
        checkpoints = checkpoint_settings.of(
            kv_checkpoints,
            kv_url,
            kv_codec,
            kv_budget_mib,
            kv_key_file,
            exactness if engine is EngineName.TORCH else "",
        )
        secured = tls.of(tls_cert, tls_key, tls_client_ca)
        if secured is not None:
            secured.credentials()  # what is wrong with them is said before the model is loaded
        if engine is EngineName.TORCH:
            if model is None or not model.is_dir():  # said before torch is loaded, which takes seconds
                raise ValueError(f"model: the torch engine needs the directory of the weights, got {model}")
            made = _torch(
                worker,
                model,
                dtype=dtype,
                quantization=quantization,
                device=device,
                threads=threads,
                max_length=max_length,
                slots=slots,
                max_rows=max_rows,
                exactness=exactness,
            )
        elif engine is EngineName.STUB:
            made = _stub(name, agreement, step_ms, max_length=max_length, slots=slots, max_rows=max_rows)
        else:
            made = _ngram(max_length=max_length, slots=slots, max_rows=max_rows)
    except (ValueError, OSError) as error:
        log.error("cannot start level %s: %s", name, error)
        raise typer.Exit(2) from error
    from specrouter_level.process import Serving, run  # noqa: PLC0415  # kserve takes a second; errors come first

    serving = Serving(
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        grace=drain_seconds,
        model=model if engine is EngineName.TORCH else None,
        checkpoints=checkpoints,
        tls=secured,
    )
    raise typer.Exit(run(name, made, worker, serving))


def _stub(name: str, agreement: float, step_ms: str, *, max_length: int, slots: int, max_rows: int) -> Engine:
    from specrouter_level import stub  # noqa: PLC0415

    return stub.StubEngine(
        name=name,
        agreement=agreement,
        costs=stub.curve(step_ms),
        max_length=max_length,
        slots=slots,
        max_rows=max_rows,
    )


def _ngram(*, max_length: int, slots: int, max_rows: int) -> Engine:
    from specrouter_level.ngram import NgramEngine  # noqa: PLC0415

    return NgramEngine(max_length=max_length, slots=slots, max_rows=max_rows)


def _torch(  # noqa: PLR0913
    worker: Worker,
    model: Path,
    *,
    dtype: str,
    quantization: str,
    device: str,
    threads: int,
    max_length: int,
    slots: int,
    max_rows: int,
    exactness: str,
) -> Engine:
    def made() -> Engine:
        from specrouter_level import reproducible  # noqa: PLC0415

        count = reproducible.prepare(threads)
        from specrouter_level.torch_engine import load  # noqa: PLC0415  # imports torch, whose settings must stand first

        return load(
            model,
            dtype=dtype,
            quantization=quantization,
            device=device,
            threads=count,
            max_length=max_length,
            slots=slots,
            max_rows=max_rows,
            exactness=exactness,
            progress=_progress,
        )

    return worker.ask(made)


def _progress(part: str, done: float) -> None:
    if done in (0.0, 1.0):
        log.info("%s: %s", part, "done" if done else "started")


def main() -> None:
    """Entry point of ``specrouter-level``."""
    app()
