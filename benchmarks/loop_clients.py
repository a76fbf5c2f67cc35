"""Clients of the closed loop: requests over HTTP at random times, and what their answers say."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

TOKENS = 48
TEXTS = 24
RECENT_S = 10.0  # of p95


@dataclass
class Done:
    """One answered request."""

    at: float
    per_token: float  # seconds, prompt and client included
    same: bool
    kind: str
    text: int


@dataclass
class Clients:
    """Ask ``routers`` for ``rate`` requests a second of the model ``model``."""

    model: str
    routers: list[str]
    rate: float
    pinned: bool = False  # every second request is pinned to the chain without mid
    done: list[Done] = field(default_factory=list)
    failed: int = 0
    _want: dict[int, list[int]] = field(default_factory=dict)  # text -> tokens, as first answered

    async def every_text_alone(self) -> None:
        """Every text once by the target alone: what all later answers are compared with."""
        async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
            await asyncio.gather(*(self._ask(client, number, "alone") for number in range(TEXTS)))
        self.done.clear()

    async def run(self, stop: asyncio.Event) -> None:
        """Requests at random times, until ``stop``."""
        rng, tasks = random.Random(1), set[asyncio.Task[None]]()
        limits = httpx.Limits(max_connections=128, keepalive_expiry=2.0)  # routers close idle ones after 5 s
        async with httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as client:
            turn = 0
            while not stop.is_set():
                await asyncio.sleep(rng.expovariate(self.rate))
                turn += 1
                kind = "rest" if self.pinned and turn % 2 else "all"
                task = asyncio.create_task(self._ask(client, rng.randrange(TEXTS), kind))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def _ask(self, client: httpx.AsyncClient, number: int, kind: str) -> None:
        """``kind``: "all" chains may be used, "rest": the one without mid, "alone": the target."""
        chains = {"rest": {"chain": ["draft", "target"]}, "alone": {"chain": ["target"]}}
        ours: dict[str, Any] = {"report": True, **chains.get(kind, {})}
        body = {"model": self.model, "prompt": f"text number {number} begins", "max_tokens": TOKENS, "temperature": 0.8}
        url = f"{self.routers[number % len(self.routers)]}/v1/completions"
        begin = time.monotonic()
        response = await client.post(url, json={**body, "seed": number, "specrouter": ours})
        if response.status_code != 200:
            self.failed += 1
            return
        now, tokens = time.monotonic(), response.json()["specrouter"]["tokens"]
        same = self._want.setdefault(number, tokens) == tokens
        self.done.append(Done(now, (now - begin) / len(tokens), same, kind, number))

    def mean(self, since: float, until: float = float("inf")) -> float:
        """Milliseconds per token of the unpinned requests that ended in this time."""
        found = [one.per_token for one in self.done if one.kind == "all" and since <= one.at <= until]
        return 1000 * statistics.mean(found) if found else float("nan")

    def by_text(self, since: float) -> tuple[float, float]:
        """Milliseconds per token of unpinned and pinned requests, each text that both made counted alike."""
        found: dict[int, dict[str, list[float]]] = {}
        for one in self.done:
            if one.at >= since:
                found.setdefault(one.text, {}).setdefault(one.kind, []).append(one.per_token)
        both = [kinds for kinds in found.values() if len(kinds) == 2]
        ours, rest = ([statistics.mean(kinds[kind]) for kinds in both] for kind in ("all", "rest"))
        return 1000 * statistics.mean(ours), 1000 * statistics.mean(rest)

    def p95(self, now: float) -> float:
        """Of the seconds per token, of requests that ended in the last seconds before ``now``."""
        found = sorted(one.per_token for one in self.done if now - RECENT_S <= one.at <= now)
        return found[int(0.95 * (len(found) - 1))] if found else float("nan")
