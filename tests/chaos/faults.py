"""Which faults there are, and which ones an episode of a given seed has. Pure: a seed always gives the same plan."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from language import asks, model_asks
from proxy import WAYS, Way
from steps import OF_CLIENTS, OF_RECORDS, STEPS, WAYS_OF, Step

from replicated import REPLICAS, ROUTERS
from sighting import Ask

TRIGGER_S = 0.4  # a fault whose event does not come comes by itself

World = Literal["stub", "models", "sentinel", "cluster"]
Kind = Literal[
    "kill", "freeze", "drain", "clock", "rewind", "failover",
    "latency", "blackhole", "one way", "reset", "half-close", "slow",
]  # fmt: skip
Where = Literal["level", "router", "redis", "level link", "redis link", "client link"]
Sort = tuple[Kind, Where]

ON_LINKS: tuple[Kind, ...] = ("latency", "blackhole", "one way", "reset", "half-close", "slow")
FAULTS: tuple[Sort, ...] = (
    ("kill", "level"), ("freeze", "level"), ("drain", "level"), ("clock", "level"),
    ("kill", "router"), ("freeze", "router"), ("drain", "router"), ("clock", "router"),
    ("kill", "redis"), ("freeze", "redis"), ("rewind", "redis"), ("clock", "redis"),
    *((kind, "level link") for kind in ON_LINKS),
    *((kind, "redis link") for kind in ON_LINKS),
    *((kind, "client link") for kind in ON_LINKS),
)  # fmt: skip
WITHOUT_REDIS = tuple(fault for fault in FAULTS if "redis" not in fault[1])
LEVELS: dict[World, tuple[str, ...]] = {
    "stub": ("draft", "mid", "target"),
    "models": ("draft", "target"),
    "sentinel": ("draft", "mid", "target"),
    "cluster": ("draft", "mid", "target"),
}


@dataclass(frozen=True)
class Fault:
    """What happens to which process or link, for how long, and after which event.

    ``amount``: latency and failover in seconds; slow in bytes per second; clock in seconds; rewind in transactions.
    The event is the ``count``-th ``step`` from now on that is made on the link ``cue``; ``late``: the fault comes a
    millisecond after it, else just before.
    """

    kind: Kind
    where: Where
    part: str
    seconds: float
    amount: float
    way: Way
    cue: str
    step: Step
    late: bool
    count: int

    @property
    def name(self) -> str:
        """Its kind."""
        return f"{self.kind} {self.where}"

    @property
    def moment(self) -> str:
        """For people."""
        return f"{'during' if self.late else 'before'} {self.step}"

    def __str__(self) -> str:
        amount = f" {self.amount:g}" if self.amount else ""
        return f"{self.kind}{amount} of {self.part} for {self.seconds:g} s, {self.moment} {self.count} on {self.cue}"


@dataclass(frozen=True)
class Plan:
    """One episode. The first fault comes first; the others come while it lasts, as far as their events do."""

    seed: str
    world: World
    faults: tuple[Fault, ...]
    asks: tuple[Ask, ...]

    @property
    def name(self) -> str:
        """What it is counted as."""
        if self.world in ("sentinel", "cluster"):
            return f"{self.world} {self.faults[0].kind}" + (" and another" if len(self.faults) > 1 else "")
        models = "models: " if self.world == "models" else ""
        return models + (self.faults[0].name if len(self.faults) == 1 else f"{len(self.faults)} at once")


def plan(run: int, episode: int, sequences: int, kind: str = "", world: World = "stub") -> Plan:
    """The episode's faults and requests. ``kind``: its first fault is one whose name contains it.

    Every kind has its turn in a run, and so has every step, before and during it; what else is drawn. Every other
    episode has one fault only.
    """
    seed = f"{run}.{episode}"
    dice = random.Random(seed)
    others = WITHOUT_REDIS if world in ("sentinel", "cluster") else FAULTS
    firsts: tuple[Sort, ...] = FAULTS
    if world in ("sentinel", "cluster"):
        firsts = (("failover", "redis"),)
    chosen = [fault for fault in firsts if kind in f"{fault[0]} {fault[1]}"]
    if not chosen:
        raise ValueError(f"kind: no fault is named {kind!r}")
    sorts = [chosen[episode % len(chosen)]]
    if episode % 2:
        sorts += dice.choices(others, k=1 if world in ("sentinel", "cluster") else dice.choice((1, 2)))
    faults: list[Fault] = []
    for number, sort in enumerate(sorts):
        fault = _fault(dice, *sort, world, episode * 5 + number * 7)
        if all(fault.part != other.part for other in faults):  # one process can't be killed and frozen
            faults.append(fault)
    made = model_asks(seed, sequences) if world == "models" else asks(seed, sequences)
    return Plan(seed, world, tuple(faults), tuple(made))


def _fault(dice: random.Random, kind: Kind, where: Where, world: World, turn: int) -> Fault:
    router = f"router-{dice.randrange(ROUTERS)}"
    level = f"{dice.choice(LEVELS[world])}-{dice.randrange(REPLICAS)}"
    link = {"level": f"{router}>{level}", "redis": f"{router}>redis", "client": f"client>{router}"}
    part = {"level": level, "router": router, "redis": "redis"}.get(where) or link[where.removesuffix(" link")]
    steps = tuple(step for step in STEPS if world in ("stub", "models") or step not in OF_RECORDS)
    step = steps[turn % len(steps)]
    cue = link["client" if step in OF_CLIENTS else "redis" if step in OF_RECORDS else "level"]
    most = {"admission": 2, "first call": 4, "finish": 6}.get(step)  # requests come together, several in a chunk
    return Fault(
        kind=kind,
        where=where,
        part=part,
        seconds=_seconds(dice, kind, where),
        amount=_amount(dice, kind),
        way=dice.choice(WAYS),
        cue=cue,
        step=step,
        late=bool(turn // len(steps) % 2),
        count=dice.randint(1, most) if most else dice.choice((dice.randint(1, 10), dice.randint(10, 60))),
    )


def way_of(fault: Fault) -> Way:
    """In which direction its event goes."""
    return WAYS_OF[fault.step]


def _seconds(dice: random.Random, kind: Kind, where: Where) -> float:
    """How long it lasts: shorter and longer than the deadlines that notice it."""
    if kind in ("reset", "half-close"):
        return 0.0
    if kind == "freeze" and where == "router":
        return dice.choice((0.5, 5.0))  # a lease is 3
    return dice.choice((0.3, 1.5, 4.0))


def _amount(dice: random.Random, kind: Kind) -> float:
    match kind:
        case "latency":
            return dice.choice((0.005, 0.05, 0.3))
        case "slow":
            return dice.choice((2_000, 20_000))
        case "clock":
            return dice.choice((-86_400, -5, 5, 86_400))
        case "rewind":
            return dice.randint(1, 60)
        case "failover":
            return dice.choice((0.1, 0.4))  # so long the replica gets nothing before its master dies
        case _:
            return 0.0
