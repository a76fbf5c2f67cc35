"""YAML files that people write, read into types of ours: whatever is wrong is said with the file and the field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)
FIELD_FIRST = re.compile(r"[a-z0-9_.-]+: ")


class SpecFileError(ValueError):
    """A file that can't be used. The message names the file and the field."""


def load(path: Path, model: type[Model], holds: str) -> Model:
    """Reads a file; ``holds``: what is at its top, for people. Raises SpecFileError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecFileError(f"{path}: can't be read: {error}") from error
    return parse(text, str(path), model, holds)


def parse(text: str, source: str, model: type[Model], holds: str) -> Model:
    """What ``text`` describes. Raises SpecFileError, which begins with ``source``."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecFileError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise SpecFileError(f"{source}: must be a mapping with {holds}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise SpecFileError(f"{source}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """One ``field: what is wrong`` per fault."""
    faults = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"])
        what = str(fault["msg"]).removeprefix("Value error, ")
        if fault["type"] == "string_pattern_mismatch":
            what = f"{fault['input']!r} doesn't match {fault['ctx']['pattern']}"
        elif fault["type"] == "extra_forbidden":
            what = "unknown field"
        elif fault["type"] == "string_type" and where.endswith("step_ms"):
            what = 'must be a quoted string, as "1:2.5" (YAML takes 1:2.5 for a number)'
        named = FIELD_FIRST.match(what) if fault["type"] == "value_error" else None  # by a validator of several fields
        if named and fault["loc"] and named[0][:-2].replace("-", "_") == fault["loc"][-1]:  # or by what reads this one
            what, named = what[named.end() :], None
        faults.append(f"{where}{'.' if named else ': '}{what}" if where else what)
    return "; ".join(faults)
