"""Two replicas of each of three stub levels, two routers and a Valkey: processes that can be lost and started again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from processes import HOST, START_S, Process, Valkey, answers, until
from stub_mesh import Level, Router

LEVELS = ("draft", "mid", "target")
REPLICAS = 2
ROUTERS = 2
AGREEMENT = {"draft": 0.6, "mid": 0.8, "target": 1.0}
CHAIN = {"policy": "adaptive", "lookahead": 16, "windows": {"draft": 4, "mid": 6, "target": 8}}


async def direct(_link: str, address: str) -> str:
    """A connection as it is."""
    return address


class Replicated:
    """See the module. ``step_ms`` is the step-time curve of each level.

    Parts are named draft-0 ... target-1, router-0, router-1 and redis. ``via`` gives the address by which a link
    ("router-0>mid-1", "router-1>redis") goes to the address it is given, so that something can be put between.
    """

    def __init__(
        self,
        folder: Path,
        step_ms: Mapping[str, str],
        via: Callable[[str, str], Awaitable[str]] = direct,
        router_env: Callable[[str], Mapping[str, str]] = lambda _name: {},
    ) -> None:
        self.folder = folder
        self.redis = Valkey(folder / "valkey")
        self.levels: dict[str, Level] = {}
        self.routers: dict[str, Router] = {}
        self._step_ms = step_ms
        self._via = via
        self._router_env = router_env

    async def start(self) -> None:
        """Returns when all parts are ready. Raises AssertionError, with the logs."""
        self.redis.start()
        for name in LEVELS:
            for replica in range(REPLICAS):
                part = f"{name}-{replica}"
                (self.folder / part).mkdir()
                self.levels[part] = Level(name, AGREEMENT[name], self._step_ms[name], slots=256)
                self.levels[part].start(self.folder / part)
        for part in self.levels:
            await self.there(part)
        for number in range(ROUTERS):
            part = f"router-{number}"
            self.routers[part] = await self._router(part)
            self.routers[part].start(wait=False)
        for part in self.routers:
            await self.there(part)

    async def _router(self, part: str) -> Router:
        levels: list[dict[str, Any]] = []
        for name in LEVELS:
            replicas = {other: level for other, level in self.levels.items() if level.name == name}
            addresses = [await self._via(f"{part}>{other}", level.address) for other, level in replicas.items()]
            levels.append({"name": name, "engine": "stub", "addresses": addresses})
        path = self.folder / f"{part}.yaml"
        path.write_text(json.dumps({"name": "test", "tokenizer": "bytes", "levels": levels, "chain": CHAIN}))
        url = "redis://" + await self._via(f"{part}>redis", f"{HOST}:{self.redis.port}")
        return Router(path, url, self.folder / f"{part}.log", self._router_env(part))

    def stop(self) -> None:
        """End all of them at once."""
        for part in (*self.routers.values(), *self.levels.values()):
            if part.child is not None:
                part.child.kill()
        if self.redis.process is not None:
            self.redis.process.kill()

    def child(self, part: str) -> Process:
        """Its process."""
        found = self.redis.process if part == "redis" else (self.levels.get(part) or self.routers[part]).child
        assert found is not None
        return found

    async def restart(self, part: str) -> None:
        """Start a part that has ended. Returns when it is ready. Raises AssertionError, with its log."""
        if part == "redis":
            self.redis.start()
        elif part in self.levels:
            self.levels[part].start(self.folder / part)
            await self.there(part)
        else:
            self.routers[part].start(wait=False)
            await self.there(part)

    async def there(self, part: str) -> None:
        """Returns when a level or router is ready. Raises AssertionError, with its log."""
        if part in self.levels:
            ready = self.levels[part].ready
        else:
            url = self.routers[part].url

            def ready() -> bool:
                return answers(f"{url}/readyz")

        child = self.child(part)
        if not await asyncio.to_thread(until, lambda: ready() or not child.alive, START_S) or not child.alive:
            raise AssertionError(f"{part} {'is not ready' if child.alive else 'died'}\n{child.log.read_text()[-4000:]}")
