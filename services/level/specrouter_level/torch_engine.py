"""The engine that runs a transformers decoder: our cache, our sampler, its layers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specrouter_core.sampling import Sampling
from specrouter_level import attention, calibrate, fuse, passes, quantize, trial, vocab, weights
from specrouter_level.engine import Drawn, Info, Memory, Params, Span
from specrouter_level.kv import KV, Step
from specrouter_level.kv_memory import KVMemory
from specrouter_level.passes import Pass
from specrouter_level.sampler import Request, Sampler

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXACTNESS = ("shape", "bitwise")
CONTEXT = 64  # tokens before the rows of a calibration step


class FixedRows(nn.Module):
    """A layer that always sees ``rows`` rows at once, so that a row's result does not depend on their number."""

    def __init__(self, layer: nn.Module, rows: int) -> None:
        super().__init__()
        self.layer = layer
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """x [1, n, in] to [1, n, out], by groups of ``rows`` of which the last is padded."""
        count = x.shape[1]
        padded = nn.functional.pad(x, (0, 0, 0, -count % self.rows))
        parts = [self.layer(part) for part in torch.split(padded, self.rows, 1)] if count else [self.layer(padded)]
        return torch.cat(parts, 1)[:, :count]


class TorchEngine:
    """A model behind the scheduler; see ``engine.Engine``. Made by ``load``."""

    inline = False

    def __init__(self, model: nn.Module, kv: KV, info: Info) -> None:
        self.info = info
        self.memory: Memory | None = None  # set when the model has run, and the cache's parts are known
        self.padding: dict[int, int] = {}  # rows -> rows to pad to, from the calibration
        self._model = model
        self._kv = kv
        self._device = next(model.parameters()).device
        self._sampler = Sampler(info.vocab_size, self._device)

    @torch.inference_mode()
    def step(self, spans: Sequence[Span]) -> list[Drawn]:
        """One pass over all spans (several, of fixed shape, when exactness is bitwise).

        Raises ValueError for spans outside the engine's limits, FloatingPointError when the model's logits are
        not numbers.
        """
        self._check(spans)
        drawn = [Drawn([], [], []) for _ in spans]
        for one in passes.fixed(spans) if self.info.exactness == "bitwise" else passes.flat(spans):
            logits = self._forward(one)
            requests = [self._request(spans[draw.span], draw.position) for draw in one.draws]
            for draw, result in zip(one.draws, self._sampler.draw(logits, requests) if requests else [], strict=True):
                answer = drawn[draw.span]
                answer.tokens.append(result.token)
                answer.confidence.append(result.confidence)
                answer.probes.append(result.probe)
        return drawn

    def _check(self, spans: Sequence[Span]) -> None:
        rows = 0
        for span in spans:
            length = len(span.text)
            if not (0 <= span.slot < self.info.slots and 0 <= span.start < length <= self.info.max_length):
                raise ValueError(f"span: slot {span.slot}, start {span.start}, length {length}: outside the limits")
            if not 0 <= span.draws <= length - span.start:
                raise ValueError(f"span: draws: {span.draws} of {length - span.start} rows")
            rows += length - span.start
        if rows > self.info.max_rows:
            raise ValueError(f"step: {rows} rows, at most {self.info.max_rows}")
        if len({span.slot for span in spans}) < len(spans):
            raise ValueError("step: a slot occurs twice")

    @staticmethod
    def _request(span: Span, position: int) -> Request:
        return Request(span.text, position, span.params.prompt_length, span.params.sampling, span.probe)

    def _forward(self, one: Pass) -> Tensor:
        """Logits of the pass's draws, [draws, vocabulary]."""
        one.pad(self.padding.get(len(one.tokens), len(one.tokens)))
        wanted = [draw.row for draw in one.draws]
        count = self.padding.get(len(wanted), len(wanted))
        rows = wanted + wanted[-1:] * (count - len(wanted))
        table = torch.tensor([one.tokens, one.positions], dtype=torch.int64).to(self._device)
        step = Step(self._kv, one.pieces, len(one.tokens))
        with attention.running(step):
            output: Any = self._model(
                input_ids=table[:1],
                position_ids=table[1:],
                past_key_values=step,
                use_cache=True,
                logits_to_keep=torch.tensor(rows, dtype=torch.int64).to(self._device),
            )
        logits: Tensor = output.logits[0, : len(wanted)]
        return logits


def _timed(engine: TorchEngine) -> Callable[[int], None]:
    """A step of some rows in slot 0, all drawn, at a short context."""
    context = min(CONTEXT, engine.info.max_length // 2)
    params = Params(Sampling(temperature=0.0), prompt_length=context)

    def run(rows: int) -> None:
        text = [1 + i % (engine.info.vocab_size - 1) for i in range(context + rows)]
        engine.step([Span(0, context, text, rows, params)])

    return run


def _prepare(
    directory: weights.Directory, dtype: str, quantization: str, device: torch.device
) -> tuple[str, torch.dtype, torch.dtype]:
    """What the model is served as, the dtype it is loaded in, the dtype it computes in."""
    if quantization == "none":
        return dtype, DTYPES[dtype], DTYPES[dtype]
    kind = quantize.best(quantization, device)
    if kind != quantization:
        log.warning("quantization %s does not work on %s: serving %s", quantization, device, kind)
    stored = str(directory.config.get("dtype") or directory.config.get("torch_dtype") or "float32")
    if kind == "none":
        return "bfloat16", torch.bfloat16, torch.bfloat16
    return kind, DTYPES.get(stored, torch.float32), torch.bfloat16


def load(  # noqa: PLR0913  # one argument for each option of the command line
    model: Path,
    *,
    dtype: str = "float32",
    quantization: str = "none",
    device: str = "cpu",
    threads: int = 0,
    max_length: int = 2048,
    slots: int = 16,
    max_rows: int = 512,
    exactness: str = "shape",
    progress: Callable[[str, float], None] | None = None,
) -> TorchEngine:
    """Load a model directory, check that it gives through this engine what it gives by itself, and calibrate.

    ``threads``: 0 leaves torch's number. ``progress`` is called with a part's name and how much of it is done, 0 to 1.
    Raises FileNotFoundError, or weights.RefusedModelError (a ValueError) that names the file or field, for a directory
    or a model that cannot be served.
    """
    tell = progress or (lambda _part, _done: None)
    for name, value, known in (
        ("dtype", dtype, tuple(DTYPES)),
        ("quantization", quantization, ("none", *quantize.KINDS)),
        ("exactness", exactness, EXACTNESS),
    ):
        if value not in known:
            raise ValueError(f"{name}: must be one of {', '.join(known)}, got {value!r}")
    if threads:
        torch.set_num_threads(threads)
    directory = weights.inspect(model)
    vocab_digest = vocab.digest(model)
    where = torch.device(device)
    served, stored, computed = _prepare(directory, dtype, quantization, where)
    model_digest = weights.digest(directory, served, lambda done: tell("hashing", done))
    tell("loading", 0.0)
    network = weights.load(directory, stored, where)
    tell("loading", 1.0)
    kv = KV(slots, max_length)
    with torch.inference_mode():
        _adapt(network, kv, max_length, exactness)
        if served in quantize.KINDS:
            head = network.get_output_embeddings()  # type: ignore[operator]  # torch says Module | Tensor
            quantize.replace_linears(network, served, head, lambda done: tell("quantizing", done))
            network.to(computed)
            kv = KV(slots, max_length)
    if exactness == "bitwise":
        network.set_output_embeddings(FixedRows(network.get_output_embeddings(), passes.ROWS))  # type: ignore[operator]
    info = Info(
        engine="torch",
        model_digest=model_digest,
        vocab_digest=vocab_digest,
        vocab_size=trial.text_config(network).vocab_size,
        max_length=max_length,
        slots=slots,
        max_rows=max_rows,
        dtype=served,
        device=device,
        exactness=exactness,
        stop_ids=weights.stop_ids(directory),
        costs=(),
    )
    return _calibrated(TorchEngine(network, kv, info), tell)


def _adapt(network: nn.Module, kv: KV, max_length: int, exactness: str) -> None:
    """Put our attention and fused layers into the model, and compare it with itself as it was."""
    trial.refuse_by_config(network, max_length, exactness)
    ids = trial.prompt(network, max_length)
    want = trial.plain(network, ids)
    network.set_attn_implementation(attention.NAME)  # type: ignore[operator]
    fuse.join_siblings(network)
    fuse.replace_norms(network)
    trial.compare(network, kv, ids, want)


def _calibrated(engine: TorchEngine, tell: Callable[[str, float], None]) -> TorchEngine:
    """The engine with its cost curve, and with padding where it may pad."""
    most = min(engine.info.max_rows, engine.info.max_length // 2)
    times = calibrate.measure(_timed(engine), most, lambda done: tell("calibrating", done))
    if engine.info.exactness == "shape":
        engine.padding = calibrate.padding(times)
    engine.info = replace(engine.info, costs=calibrate.costs(times, engine.padding))
    engine.memory = KVMemory(engine._kv, engine._device, torch.get_num_threads())
    padded = {rows: to for rows, to in engine.padding.items() if to != rows}
    log.info("%s on %s: padding %s", engine.info.dtype, engine.info.device, padded or "none")
    return engine
