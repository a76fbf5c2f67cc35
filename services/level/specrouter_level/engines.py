"""The engine that a level's options ask for."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from specrouter_level import reproducible
from specrouter_level.engine import Engine
from specrouter_level.ngram import NgramEngine
from specrouter_level.stub import StubEngine, curve
from specrouter_level.worker import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Size:
    """What an engine holds at most, in tokens: of one sequence, sequences at once, fed in one step."""

    max_length: int
    slots: int
    max_rows: int


@dataclass(frozen=True, slots=True)
class Computing:
    """How a model is computed: see ``torch_engine.load``. ``threads``: 0 = all."""

    dtype: str
    quantization: str
    device: str
    threads: int
    exactness: str


def stub(name: str, agreement: float, step_ms: str, size: Size) -> StubEngine:
    """Raises ValueError that names the option."""
    return StubEngine(name=name, agreement=agreement, costs=curve(step_ms), **asdict(size))


def ngram(size: Size) -> Engine:
    """Looks up what followed before."""
    return NgramEngine(**asdict(size))


def torch(worker: Worker, model: Path | None, how: Computing, size: Size) -> Engine:
    """Loaded in the thread of ``worker``. Raises ValueError that names the option, or OSError."""
    if model is None or not model.is_dir():  # said before torch is loaded, which takes seconds
        raise ValueError(f"model: the torch engine needs the directory of the weights, got {model}")

    def made() -> Engine:
        count = reproducible.prepare(how.threads)
        from specrouter_level.torch_engine import load  # noqa: PLC0415  # imports torch, whose settings must stand first

        return load(model, **{**asdict(how), "threads": count}, **asdict(size), progress=_progress)

    return worker.ask(made)


def _progress(part: str, done: float) -> None:
    if done in (0.0, 1.0):
        log.info("%s: %s", part, "done" if done else "started")
