"""The mesh under test: real processes, a proxy on every connection, and the faults of faults.py done to them.

    client -> client>router-0 -> router-0 -> router-0>mid-1 -> mid-1
                                          -> router-0>redis -> Valkey

Every process is this one's child and ends with it.
"""

from __future__ import annotations

import asyncio
import copy
import mmap
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import valkey
from changes import Commit, Records, transactions
from faults import Fault, World, way_of
from proxy import Proxy
from steps import sorter
from worlds import ALONE, Truth, models, redis_set

from processes import HOST, free_ports
from replicated import Replicated
from sighting import Ask
from specrouter_router.record_scripts import family_key

STEP_MS = {"draft": "1:0.5,32:2", "mid": "1:1,32:3", "target": "1:2,32:4"}
DRAIN_S = 30.0  # until a part that was asked to end has ended
STARTS = 20  # of a part that ends because what it needs is away too
SHIFTED = Path(__file__).with_name("shifted")
CLOCK = Path(__file__).with_name("clock.c")


class ChaosMesh:
    """See the module. An asynchronous context manager; ``folder`` gets the logs."""

    def __init__(self, folder: Path, world: World = "stub") -> None:
        self.folder = folder
        self.truth = Truth(world)
        self.proxies: dict[str, Proxy] = {}
        self.asks: dict[str, Ask] = {}  # all that were ever made
        self._clocks: dict[str, mmap.mmap] = {}
        self._records = Records()
        self._ended: dict[str, str] = {}  # sequences whose end Redis may have lost, and who wrote it
        self._read: dict[Path, int] = {}  # bytes of Redis's files
        self._commits: list[Commit] = []
        self._logged: dict[Path, int] = {}  # bytes of logs that were looked at
        self._last: dict[str, Commit] = {}  # by sequence
        self._failing: asyncio.Task[None] | None = None
        self.redis = redis_set(world, folder)
        made = models(world, folder, f"redis://{HOST}:{(port := free_ports(1)[0])}")
        url = self.redis.url if self.redis is not None else ""
        self.parts = Replicated(folder, STEP_MS, self._proxied, self._shifted, made, url)
        self.parts.redis.port = port

    async def __aenter__(self) -> ChaosMesh:
        await self.parts.start()
        for name, router in self.parts.routers.items():
            await self._proxied(f"client>{name}", router.grpc)
            await self._proxied(f"web client>{name}", router.url.removeprefix("http://"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.parts.stop()
        if self.redis is not None:
            self.redis.stop()
        for proxy in self.proxies.values():
            await proxy.close()

    async def _proxied(self, link: str, address: str) -> str:
        self.proxies[link] = Proxy(link, address, sorter(link))
        return await self.proxies[link].start()

    def _shifted(self, part: str) -> Mapping[str, str]:
        """The environment of a part whose clock can be set: Python's in routers and levels, all of it in Redis."""
        clock = self.folder / f"{part}.clock"
        clock.write_bytes(struct.pack("d", 0.0))
        with clock.open("r+b") as file:
            self._clocks[part] = mmap.mmap(file.fileno(), 8)
        if part != "redis":
            path = os.pathsep.join(filter(None, [str(SHIFTED), os.environ.get("PYTHONPATH")]))
            return {"PYTHONPATH": path, "SHIFTED_CLOCK": str(clock)}
        compiler = shutil.which("cc")
        if compiler is None:  # then its clock stays as it is
            return {}
        library = self.folder / "clock.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, CLOCK, "-ldl"], check=True)
        return {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(clock)}

    @property
    def entrances(self) -> tuple[list[str], list[str]]:
        """Where clients connect to, one per router: for gRPC, and for REST."""
        grpc = [self.proxies[f"client>{name}"].address for name in self.parts.routers]
        return grpc, [self.proxies[f"web client>{name}"].address for name in self.parts.routers]

    # Faults.

    async def strike(self, fault: Fault, seconds: float, soon: asyncio.Event) -> tuple[bool, float]:
        """Wait for the fault's event, so many seconds and until ``soon`` at most, and let it happen.

        Returns whether the event came, and when the fault happened.
        """
        happened = asyncio.Event()
        at = 0.0

        def hit() -> None:
            nonlocal at
            at = time.monotonic()
            self._hit(fault)
            happened.set()

        cue = self.proxies[fault.cue]
        alarm = cue.after(fault.count, way_of(fault), hit, fault.step, late=fault.late)
        waits = [asyncio.create_task(event.wait()) for event in (happened, soon)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if cued := happened.is_set():
            return cued, at
        cue.forget(alarm)
        hit()
        return cued, at

    def _hit(self, fault: Fault) -> None:
        part = fault.part
        match fault.kind:
            case "clock":
                self._clocks[part][:8] = struct.pack("d", fault.amount)
            case "freeze":
                self.parts.child(part).freeze()
            case "drain":
                self.parts.child(part).popen.terminate()
            case "kill":
                self.parts.child(part).kill()
            case "rewind":
                self.parts.child(part).kill()
                self._rewind(int(fault.amount))
            case "failover":
                assert self.redis is not None
                self._failing = asyncio.create_task(self.redis.fail(fault.amount))
            case _:
                for link in self._links(part):
                    _spoil(link, fault)

    async def mend(self, fault: Fault) -> None:
        """Returns when all parts are there again."""
        part = fault.part
        match fault.kind:
            case "clock":
                self._clocks[part][:8] = struct.pack("d", 0.0)
            case "freeze":
                self.parts.child(part).thaw()
            case "drain":
                await asyncio.to_thread(self.parts.child(part).popen.wait, DRAIN_S)
                await self._restart(part)
            case "kill" | "rewind":
                await self._restart(part)
            case "failover":
                assert self.redis is not None and self._failing is not None
                await self._failing
                await self.redis.failed_over()
                self._lose(Records(), self.redis.lost().read_bytes(), 0)
            case _:
                for link in self._links(part):
                    link.heal()

    async def _restart(self, part: str) -> None:
        """Again and again, as a kubelet does: a router that does not find its Redis ends."""
        for _ in range(STARTS):
            try:
                await self.parts.restart(part)
            except AssertionError:
                if self.parts.child(part).alive:
                    raise
                await asyncio.sleep(0.3)  # before the next try
            else:
                return
        await self.parts.restart(part)

    def _links(self, part: str) -> list[Proxy]:
        """Clients of both interfaces share their fate."""
        return [link for name, link in self.proxies.items() if name in (part, f"web {part}")]

    def _rewind(self, count: int) -> None:
        """Take Redis's last transactions from it, as a loss of power or a failover does. It must not run."""
        path = self.parts.redis.changes
        data, start = path.read_bytes(), self._read.get(path, 0)
        ends = [end for _, end in transactions(data, start)]
        cut = ends[-count - 1] if len(ends) > count else start
        self._note(path, data[:cut])
        self._lose(copy.deepcopy(self._records), data, cut)
        with path.open("r+b") as file:
            file.truncate(cut)

    def _lose(self, records: Records, data: bytes, start: int) -> None:
        """Note whose end is among these changes, which Redis does not have any more."""
        for lot, _ in transactions(data, start):
            records.apply(lot)
        self._ended |= records.ended

    # What can be seen of it from outside.

    def _note(self, path: Path, data: bytes) -> None:
        for lot, end in transactions(data, self._read.get(path, 0)):
            made = self._records.apply(lot)
            self._commits += [commit for commit in made if not commit.sequence.startswith(ALONE)]
            self._read[path] = end

    def commits(self) -> list[Commit]:
        """What Redis was told of the records since this was asked last; of each, what was known last comes first."""
        for path in self.redis.witnesses() if self.redis is not None else [self.parts.redis.changes]:
            self._note(path, path.read_bytes())
        fresh, self._commits = self._commits, []
        first = {commit.sequence: self._last[commit.sequence] for commit in fresh if commit.sequence in self._last}
        self._last |= {commit.sequence: commit for commit in fresh}
        return [*first.values(), *fresh]

    def _client(self) -> Any:
        return (
            self.redis.client()
            if self.redis is not None
            else valkey.Valkey(HOST, self.parts.redis.port, socket_timeout=5)
        )

    def leftovers(self, sequences: list[str], held: bool, unkept: Container[str] = ()) -> Mapping[str, str]:
        """What is not free though all these sequences have ended: what it is -> where. Blocking.

        ``held``: levels must not hold anything of them either (they may for a while: a router may come back).
        ``unkept``: sequences whose client may have got its end while Redis was away. Each record has an end, but where
        Redis lost or never got it, and the router that would write it again died too: the client has all, so nobody
        asks for the sequence, and the record expires like any orphan's.
        """
        found: dict[str, str] = {}
        for name, router in self.parts.routers.items():
            if running := router.metric("specrouter_sequences"):
                found[f"{running:g} running sequences"] = name
        for name, level in self.parts.levels.items():
            if calls := level.gauge("specrouter_level_calls_running"):
                found[f"{calls:g} running calls"] = name
            if held and (count := level.gauge("specrouter_level_sequences_held")):
                found[f"{count:g} held sequences"] = name
        with self._client() as client:
            for sequence in sequences:
                state, *ttls = (
                    client.pipeline()
                    .hgetall(f"specrouter:{{{sequence}}}:state")
                    .ttl(f"specrouter:{{{sequence}}}:state")
                    .ttl(f"specrouter:{{{sequence}}}:tokens")
                    .ttl(f"specrouter:{{{sequence}}}:spec")
                    .execute()
                )
                owner = state.get(b"owner", b"").decode() if sequence in unkept else ""
                writer = self._ended.get(sequence, owner)
                orphan = writer and not client.exists(family_key("test", f"lease:{writer}"))
                if state and state.get(b"finish", b"0") == b"0" and not orphan:
                    found[f"its record has no end: {state}"] = sequence
                if -1 in ttls:
                    found[f"its record lives for ever: {ttls}"] = sequence
        return found

    def tracebacks(self) -> list[tuple[str, str]]:
        """What logs have of them since this was asked last: whose log, and the end of the traceback."""
        found: list[tuple[str, str]] = []
        for path in self.folder.rglob("*.log"):
            text = path.read_bytes()
            fresh = text[self._logged.get(path, 0) :].decode(errors="replace")
            self._logged[path] = len(text)
            for part in fresh.split("Traceback (most recent call last)")[1:]:
                lines = [line for line in part.splitlines()[1:] if line.strip()]
                found.append((path.stem, next((line for line in lines if not line.startswith(" ")), "cut off")))
        return found


def _spoil(link: Proxy, fault: Fault) -> None:
    match fault.kind:
        case "latency":
            link.latency(fault.amount)
        case "slow":
            link.slow(fault.amount)
        case "blackhole":
            link.blackhole()
        case "one way":
            link.blackhole(fault.way)
        case "reset":
            link.reset()
        case "half-close":
            link.half_close(fault.way)
        case _:
            raise AssertionError(fault)
