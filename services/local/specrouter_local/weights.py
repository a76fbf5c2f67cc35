"""Where a family's weights are on this machine: fetched first where they aren't."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from specrouter_family import family as family_file
from specrouter_family.family import Family
from specrouter_local import models, paths
from specrouter_local.errors import UserError

BUILT_IN = Path(__file__).with_name("families")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What is fetched of a repository: weights as safetensors, configuration, tokenizer. Nothing that runs.
WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


def built_in(name: str) -> Family:
    """The family called demo or stub."""
    text = (BUILT_IN / f"{name}.yaml").read_text(encoding="utf-8")
    return family_file.parse(Template(text).substitute(models=paths.models()), f"built-in family {name}")


def load(path: Path) -> Family:
    """A user's family file. Raises UserError that names the file and the field."""
    try:
        return family_file.load(path)
    except family_file.FamilyError as error:
        raise UserError(str(error)) from error


def placed(family: Family, base: Path, progress: models.Progress) -> Family:
    """The family with directories on this machine for tokenizer and models.

    Relative directories are looked for under ``base``. Raises UserError that names the field.
    """
    if family.name == "demo" and _uses_demo_weights(family) and not models.present():
        models.pull(progress)
    found: dict[str, str] = {}

    def place(field: str, value: str) -> str:
        if value not in found:
            found[value] = str(_locate(field, value, base))
        return found[value]

    levels = [
        level.model_copy(update={"model": place(f"levels.{i}.model", level.model)}) if level.model else level
        for i, level in enumerate(family.levels)
    ]
    tokenizer = family.tokenizer
    if tokenizer not in (family_file.BYTES, family_file.FROM_TARGET):
        tokenizer = place("tokenizer", tokenizer)
        if not (Path(tokenizer) / "tokenizer.json").is_file():
            raise UserError(f"tokenizer: {tokenizer} has no tokenizer.json")
    return family.model_copy(update={"levels": levels, "tokenizer": tokenizer})


def _uses_demo_weights(family: Family) -> bool:
    return any(level.model == str(models.directory()) for level in family.levels)


def _locate(field: str, value: str, base: Path) -> Path:
    """The directory that ``value`` means: a local one, else a repository's copy. Raises UserError."""
    local = base / Path(value).expanduser()
    if local.is_dir():
        return local.absolute()
    if REPOSITORY.fullmatch(value) and not value.startswith("."):
        return _fetched(field, value)
    raise UserError(f"{field}: {value!r} is neither a directory here nor a Hugging Face repository (owner/name)")


def _fetched(field: str, repository: str) -> Path:
    """The repository's files in huggingface_hub's own cache. It draws its own progress bars."""
    import httpx  # noqa: PLC0415  # both are slow to import and rarely needed
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        directory = Path(snapshot_download(repository, allow_patterns=WANTED, etag_timeout=10))
    except (OSError, HfHubHTTPError, HFValidationError, httpx.HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{field}: {repository} can't be fetched from Hugging Face: {reason}") from error
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{field}: {repository} has no safetensors weights, and other kinds are not loaded")
    return directory
