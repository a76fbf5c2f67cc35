"""The mesh under test: real processes, a proxy on every connection, and the faults of faults.py done to them.

    client -> client>router-0 -> router-0 -> router-0>mid-1 -> mid-1
                                          -> router-0>redis -> Valkey

Every process is this one's child and ends with it.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import valkey
from changes import Commit, Records, transactions
from faults import LEVELS, REPLICAS, ROUTERS, Fault
from proxy import Proxy

from processes import HOST, START_S, Valkey, answers, until
from stub_mesh import Level, Router

AGREEMENT = {"draft": 0.6, "mid": 0.8, "target": 1.0}
STEP_MS = {"draft": "1:0.5,32:2", "mid": "1:1,32:3", "target": "1:2,32:4"}
DRAIN_S = 30.0  # until a part that was asked to end has ended
SHIFTED = Path(__file__).with_name("shifted")
CHAIN = {"policy": "adaptive", "lookahead": 16, "windows": {"draft": 4, "mid": 6, "target": 8}}


class ChaosMesh:
    """See the module. An asynchronous context manager; ``folder`` gets the logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis = Valkey(folder / "valkey")
        self.levels: dict[str, Level] = {}
        self.routers: dict[str, Router] = {}
        self.proxies: dict[str, Proxy] = {}
        self._clocks: dict[str, mmap.mmap] = {}
        self._records = Records()
        self._read = 0  # bytes of Redis's file
        self._commits: list[Commit] = []

    async def __aenter__(self) -> ChaosMesh:
        self.redis.start()
        for name in LEVELS:
            for replica in range(REPLICAS):
                level = self.levels[f"{name}-{replica}"] = Level(name, AGREEMENT[name], STEP_MS[name], slots=256)
                (self.folder / f"{name}-{replica}").mkdir()
                self._start_level(f"{name}-{replica}")
        for name, level in self.levels.items():
            await self._there(level.ready, name)
        for number in range(ROUTERS):
            await self._make_router(f"router-{number}")
        for name, router in self.routers.items():
            await self._there(lambda router=router: answers(f"{router.url}/readyz"), name)
        return self

    async def __aexit__(self, *_: object) -> None:
        for part in [*self.routers.values(), *self.levels.values()]:
            if part.child is not None:
                part.child.kill()
        if self.redis.process is not None:
            self.redis.process.kill()
        for proxy in self.proxies.values():
            await proxy.close()

    async def _make_router(self, name: str) -> None:
        async def proxied(link: str, address: str) -> str:
            self.proxies[link] = Proxy(link, address)
            return await self.proxies[link].start()

        levels: list[dict[str, Any]] = []
        for level in LEVELS:
            parts = [part for part in self.levels if part.startswith(level)]
            addresses = [await proxied(f"{name}>{part}", self.levels[part].address) for part in parts]
            levels.append({"name": level, "engine": "stub", "addresses": addresses})
        family = {"name": "test", "tokenizer": "bytes", "levels": levels, "chain": CHAIN}
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(family))  # JSON is YAML
        url = "redis://" + await proxied(f"{name}>redis", f"{HOST}:{self.redis.port}")
        clock = self.folder / f"{name}.clock"
        clock.write_bytes(struct.pack("d", 0.0))
        with clock.open("r+b") as file:
            self._clocks[name] = mmap.mmap(file.fileno(), 8)
        path_ = os.pathsep.join(filter(None, [str(SHIFTED), os.environ.get("PYTHONPATH")]))
        env = {"PYTHONPATH": path_, "SHIFTED_CLOCK": str(clock)}
        router = self.routers[name] = Router(path, url, self.folder / f"{name}.log", env)
        await proxied(f"client>{name}", router.grpc)
        await proxied(f"web client>{name}", router.url.removeprefix("http://"))
        router.start(wait=False)

    @property
    def entrances(self) -> tuple[list[str], list[str]]:
        """Where clients connect to, one per router: for gRPC, and for REST."""
        grpc = [self.proxies[f"client>{name}"].address for name in self.routers]
        return grpc, [self.proxies[f"web client>{name}"].address for name in self.routers]

    # Faults.

    async def strike(self, fault: Fault, seconds: float) -> tuple[bool, float]:
        """Wait for the fault's event, so many seconds at most, and let it happen.

        Returns whether the event came, and when it happened. What brought it (a chunk of bytes) had not been passed on.
        """
        happened = asyncio.Event()
        at = 0.0

        def hit() -> None:
            nonlocal at
            at = time.monotonic()
            self._hit(fault)
            happened.set()

        cue = self.proxies[fault.cue]
        cue.after(fault.chunks, fault.way, hit)
        try:
            await asyncio.wait_for(happened.wait(), seconds)
        except TimeoutError:
            cue.forget_alarms()
            hit()
            return False, at
        return True, at

    def _hit(self, fault: Fault) -> None:
        part = fault.part
        match fault.kind:
            case "clock":
                self._clocks[part][:8] = struct.pack("d", fault.amount)
            case "freeze":
                self._child(part).freeze()
            case "drain":
                self._child(part).popen.terminate()
            case "kill":
                self._child(part).kill()
            case "rewind":
                self._child(part).kill()
                self._rewind(int(fault.amount))
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
                self._child(part).thaw()
            case "drain":
                await asyncio.to_thread(self._child(part).popen.wait, DRAIN_S)
                await self._restart(part)
            case "kill" | "rewind":
                await self._restart(part)
            case _:
                for link in self._links(part):
                    link.heal()

    def _links(self, part: str) -> list[Proxy]:
        """Clients of both interfaces share their fate."""
        return [link for name, link in self.proxies.items() if name in (part, f"web {part}")]

    def _child(self, part: str) -> Any:
        child = self.redis.process if part == "redis" else (self.levels.get(part) or self.routers[part]).child
        assert child is not None
        return child

    async def _restart(self, part: str) -> None:
        if part == "redis":
            self.redis.start()
        elif part in self.levels:
            self._start_level(part)
            await self._there(self.levels[part].ready, part)
        else:
            router = self.routers[part].start(wait=False)
            await self._there(lambda: answers(f"{router.url}/readyz"), part)

    def _start_level(self, part: str) -> None:
        self.levels[part].start(self.folder / part)

    async def _there(self, ready: Callable[[], bool], name: str) -> None:
        if not await asyncio.to_thread(until, ready, START_S):
            logs = "\n".join(path.read_text()[-2000:] for path in self.folder.rglob(f"*{name}*.log"))
            raise AssertionError(f"{name} is not ready after {START_S:g} s\n{logs}")

    def _rewind(self, count: int) -> None:
        """Take Redis's last transactions from it, as a loss of power or a failover does. It must not run."""
        data = self.redis.changes.read_bytes()
        ends = [end for _, end in transactions(data, self._read)]
        cut = ends[-count - 1] if len(ends) > count else self._read
        self._note(data[:cut])
        branch, read, seen = self._records.copy(), self._read, len(self._commits)
        self._note(data)  # what was lost was allowed, too, or not
        self.lost_branch = self._commits[seen:]
        del self._commits[seen:]
        self._records, self._read = branch, read
        with self.redis.changes.open("r+b") as file:
            file.truncate(cut)

    # What can be seen of it from outside.

    def _note(self, data: bytes) -> None:
        for lot, end in transactions(data, self._read):
            self._commits += self._records.apply(lot)
            self._read = end

    def commits(self) -> list[Commit]:
        """What Redis was told of the records since this was asked last."""
        self._note(self.redis.changes.read_bytes())
        commits, self._commits = self._commits, []
        return commits

    def leftovers(self, sequences: list[str], held: bool) -> Mapping[str, str]:
        """What is not free though all these sequences have ended: what it is -> where. Blocking.

        ``held``: levels must not hold anything of them either (they may for a while: a router may come back).
        """
        found: dict[str, str] = {}
        for name, router in self.routers.items():
            if running := router.metric("specrouter_sequences"):
                found[f"{running:g} running sequences"] = name
        for name, level in self.levels.items():
            if calls := level.gauge("specrouter_level_calls_running"):
                found[f"{calls:g} running calls"] = name
            if held and (count := level.gauge("specrouter_level_sequences_held")):
                found[f"{count:g} held sequences"] = name
        with valkey.Valkey(HOST, self.redis.port, socket_timeout=5) as client:
            for sequence in sequences:
                state, *ttls = (
                    client.pipeline()
                    .hgetall(f"specrouter:{{{sequence}}}:state")
                    .ttl(f"specrouter:{{{sequence}}}:state")
                    .ttl(f"specrouter:{{{sequence}}}:tokens")
                    .ttl(f"specrouter:{{{sequence}}}:spec")
                    .execute()
                )
                if state and state.get(b"finish", b"0") == b"0":
                    found[f"record {sequence} without an end"] = str(state)
                if -1 in ttls:
                    found[f"record {sequence} without a time to live"] = str(ttls)
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
