"""Redis as more than one server: a master with a replica and a sentinel, or a cluster.

Each says where the append-only files are that, together, witness all that was kept in the end: after a failover that is
the file of the replica which took over; what its master had and it had not is lost, as in life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import valkey

from processes import HOST, until
from redis_kinds import Server, cluster, sentinels

KEPT = ('save ""', "appendonly yes", "appendfsync everysec", "auto-aof-rewrite-percentage 0")
PASSWORD = "p-w"
FAILOVER_S = 30.0


class RedisSet(Protocol):
    """Some servers that stand for one Redis, with a failover."""

    url: str

    def witnesses(self) -> Sequence[Path]:
        """The files."""

    def client(self) -> Any:
        """Of valkey-py."""

    async def fail(self, seconds: float) -> None:
        """Cut a master's replica off, and so many seconds later kill the master. Returns when it is dead."""

    async def failed_over(self) -> None:
        """Returns when the replica is the master. Raises AssertionError."""

    def lost(self) -> Path:
        """The file of the master that died: it has what its replica had not got."""

    def stop(self) -> None:
        """End all of them."""


class _Replicated:
    """What both kinds share: ``master`` dies, ``replica`` takes over."""

    master: Server
    replica: Server

    def __init__(self) -> None:
        self._stack = ExitStack()

    async def fail(self, seconds: float) -> None:
        """See RedisSet."""
        client = self.replica.client()
        client.config_set("masterauth", "wrong")  # it may connect again, and gets nothing
        client.execute_command("CLIENT", "KILL", "TYPE", "master")
        await asyncio.sleep(seconds)  # of writes that will be lost
        self.master.process.kill()

    async def failed_over(self) -> None:
        """See RedisSet."""
        assert await asyncio.to_thread(until, lambda: self.replica.role()[0] == "master", FAILOVER_S), "no failover"

    def lost(self) -> Path:
        """See RedisSet."""
        return _file(self.master)

    def stop(self) -> None:
        """See RedisSet."""
        self._stack.close()


class Sentinels(_Replicated):
    """A master, its replica, and a sentinel."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.url, self.master, self.replica = self._stack.enter_context(sentinels(folder, PASSWORD, KEPT))
        _settled(self.replica)

    def witnesses(self) -> Sequence[Path]:
        """See RedisSet."""
        return [_file(self.replica)]

    def client(self) -> Any:
        """See RedisSet."""
        return valkey.Valkey(HOST, self.replica.port, password=PASSWORD, socket_timeout=5)


class Cluster(_Replicated):
    """Three masters, of which the first has a replica and a password for replicas."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.url, self.servers = self._stack.enter_context(cluster(folder, KEPT, PASSWORD))
        self.master, self.replica = self.servers[0], self.servers[3]
        _settled(self.replica)

    def witnesses(self) -> Sequence[Path]:
        """See RedisSet."""
        return [_file(server) for server in self.servers[1:]]

    def client(self) -> Any:
        """See RedisSet."""
        return valkey.ValkeyCluster(HOST, self.servers[1].port, password=PASSWORD, socket_timeout=5)


def _settled(replica: Server) -> None:
    """A replica writes its file anew when it has got all; afterwards it only grows."""

    def written() -> bool:
        info = replica.client().info("persistence")
        return not (info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]) and _file(replica).exists()

    assert until(written, FAILOVER_S), "the replica does not write its file"


def _file(server: Server) -> Path:
    """The last part of the append-only file; the parts before are empty here."""
    folder = server.folder / "appendonlydir"
    (manifest,) = folder.glob("*.manifest")
    lines = [line.split() for line in manifest.read_text().splitlines()]
    return folder / [words[1] for words in lines if words[-1] == "i"][-1]
