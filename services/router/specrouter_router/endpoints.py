"""Which addresses a level's replicas have now.

An address of the family file is ``host:port``. A host that is a name is looked up again and again: each of its A
records is a replica (a headless Service in Kubernetes has one per pod), so replicas come and go while the router runs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from specrouter_router.dial import PLAIN, Dial

log = logging.getLogger(__name__)

LOOK_UP_S = 2.0  # deadline of one look-up
MAX_RECORDS = 256  # of one name
NOBODY = (socket.EAI_NONAME, socket.EAI_NODATA)  # there is no such name, or no record: nobody serves behind it now


class Endpoints:
    """The addresses that ``names`` (host:port) stand for. A name that can't be looked up stands for what it last did.

    ``dial`` is how all of them are reached. ``problem`` says what went wrong in the last round of look-ups, "" for
    nothing.
    """

    def __init__(self, names: Sequence[str], dial: Dial = PLAIN) -> None:
        self.names = tuple(names)
        self.dial = dial
        self._fixed = [name for name in names if _literal(name)]
        self._known: dict[str, list[str]] = {name: [] for name in names if not _literal(name)}
        self._threads = ThreadPoolExecutor(1, "names") if self._known else None
        self._running: asyncio.Future[list[str]] | None = None  # a look-up that ran over its deadline
        self.problem = ""

    @property
    def changing(self) -> bool:
        """Whether there is anything to look up."""
        return bool(self._known)

    @property
    def now(self) -> list[str]:
        """The addresses, without repetition."""
        return list(dict.fromkeys([*self._fixed, *(each for found in self._known.values() for each in found)]))

    async def look_up(self) -> None:
        """Look all names up, each for at most ``LOOK_UP_S``."""
        problem = ""
        for name in self._known:
            try:
                self._known[name] = await self._records(name)
            except (OSError, TimeoutError) as error:
                problem = f"{name}: {error or 'no answer from the name service'}"
                if isinstance(error, socket.gaierror) and error.errno in NOBODY:
                    self._known[name] = []
        if problem and problem != self.problem:
            log.warning("looking up %s", problem)
        self.problem = problem

    def close(self) -> None:
        """No more look-ups."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _records(self, name: str) -> list[str]:
        """Raises OSError, TimeoutError. A look-up can't be stopped: while one hangs, no other is begun."""
        if self._running is not None and not self._running.done():
            raise TimeoutError
        host, _, port = name.rpartition(":")
        self._running = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port)
        done, _ = await asyncio.wait({self._running}, timeout=LOOK_UP_S)
        if not done:
            raise TimeoutError
        return self._running.result()


def _literal(name: str) -> bool:
    host = name.rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _look_up(host: str, port: str) -> list[str]:
    """One address per A record; AAAA records only where there is no other, since a host may have both."""
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except socket.gaierror:
        found = socket.getaddrinfo(host, port, socket.AF_INET6, socket.SOCK_STREAM)
    hosts = sorted({str(sockaddr[0]) for *_, sockaddr in found})[:MAX_RECORDS]
    return [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts]
