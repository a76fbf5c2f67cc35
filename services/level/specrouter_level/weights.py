"""Model directories: what is refused, what identifies them, how they are loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
PIECE = 1 << 22  # bytes read at a time


class RefusedModelError(ValueError):
    """The directory holds something that is not loaded; the message names the file and the field."""


@dataclass(frozen=True, slots=True)
class Directory:
    """A model directory that passed the checks."""

    path: Path
    config: dict[str, Any]
    generation: dict[str, Any]  # empty without generation_config.json
    weights: tuple[Path, ...]  # safetensors files, by name


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RefusedModelError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise RefusedModelError(f"{path}: must be a JSON object")
    return content


def _fields(content: object, at: str = "") -> Iterator[str]:
    """Every field of a JSON value, as a dotted path."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield f"{at}{name}"
            yield from _fields(value, f"{at}{name}.")


def _shards(directory: Path) -> tuple[Path, ...]:
    """The weights' files, by name."""
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        return (directory / "model.safetensors",)
    if not index.is_file():
        pickled = sorted(file.name for file in directory.iterdir() if file.suffix in PICKLED)
        if pickled:
            raise RefusedModelError(f"{directory / pickled[0]}: pickled weights are not loaded; safetensors are needed")
        raise RefusedModelError(f"{directory / 'model.safetensors'}: missing, and there is no {index.name}")
    names = _read(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise RefusedModelError(f"{index}: weight_map: missing or empty")
    shards = sorted({str(name) for name in names.values()})
    for name in shards:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise RefusedModelError(f"{index}: weight_map: not the name of a safetensors file: {name}")
        if not (directory / name).is_file():
            raise RefusedModelError(f"{directory / name}: missing, but {index.name} names it")
    return tuple(directory / name for name in shards)


def inspect(directory: Path) -> Directory:
    """Check a directory before anything of it is loaded.

    Raises FileNotFoundError without the directory or its config.json, RefusedModelError (a ValueError) for pickled or
    missing weights, for code of its own (``auto_map``), and for kinds of models no level can serve.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory / 'config.json'}: missing")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = directory / name
        if path.is_file():
            for field in _fields(_read(path)):
                if field.rpartition(".")[2] == "auto_map":
                    raise RefusedModelError(f"{path}: {field}: code that comes with a model is never run")
    if (directory / "adapter_config.json").exists():
        raise RefusedModelError(f"{directory / 'adapter_config.json'}: adapters are not supported; merge them first")
    config = _read(directory / "config.json")
    if config.get("is_encoder_decoder"):
        raise RefusedModelError(f"{directory / 'config.json'}: is_encoder_decoder: only decoder models are served")
    if "quantization_config" in config:
        raise RefusedModelError(f"{directory / 'config.json'}: quantization_config: only plain weights are loaded")
    generation = directory / "generation_config.json"
    return Directory(directory, config, _read(generation) if generation.is_file() else {}, _shards(directory))


def stop_ids(model: Directory) -> tuple[int, ...]:
    """The model's end-of-turn ids: of generation_config.json, else of config.json; ascending."""
    ids = model.generation.get("eos_token_id", model.config.get("eos_token_id"))
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return tuple(sorted({int(number) for number in listed}))


def digest(model: Directory, served_as: str, progress: Callable[[float], None] = lambda _: None) -> str:
    """Hex SHA-256 over the configuration, the weights' files and how they are served (dtype or quantization)."""
    total = hashlib.sha256()
    total.update(json.dumps(model.config, sort_keys=True).encode())
    total.update(f"\n{served_as}\n".encode())
    size, done = sum(path.stat().st_size for path in model.weights), 0
    for path in model.weights:
        total.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                total.update(piece)
                done += len(piece)
                progress(done / size)
    return total.hexdigest()


def load(model: Directory, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The transformers model, in evaluation mode, with its plainest attention.

    Raises RefusedModelError when transformers does not know the architecture or weights are missing.
    """
    disable_progress_bar()  # progress is told by the engine
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            model.path,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            output_loading_info=True,
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise RefusedModelError(f"{model.path}: transformers cannot load it: {error}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise RefusedModelError(f"{model.path}: weights missing or of the wrong shape: {', '.join(wrong[:5])}")
    network: nn.Module = loaded.to(device).eval().requires_grad_(False)
    return network
