"""Which faults there are, and which one an episode of a given seed has. Pure: a seed always gives the same plan."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from language import asks
from proxy import WAYS, Way

from replicated import LEVELS, REPLICAS, ROUTERS
from sighting import Ask

TRIGGER_S = 0.3  # a fault whose event does not come comes by itself

Kind = Literal[
    "kill", "freeze", "drain", "clock", "rewind", "latency", "blackhole", "one way", "reset", "half-close", "slow"
]  # fmt: skip
Where = Literal["level", "router", "redis", "level link", "redis link", "client link"]

ON_LINKS: tuple[Kind, ...] = ("latency", "blackhole", "one way", "reset", "half-close", "slow")
FAULTS: tuple[tuple[Kind, Where], ...] = (
    ("kill", "level"), ("freeze", "level"), ("drain", "level"),
    ("kill", "router"), ("freeze", "router"), ("drain", "router"), ("clock", "router"),
    ("kill", "redis"), ("freeze", "redis"), ("rewind", "redis"),
    *((kind, "level link") for kind in ON_LINKS),
    *((kind, "redis link") for kind in ON_LINKS),
    *((kind, "client link") for kind in ON_LINKS),
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """What happens to which process or link, for how long, and after which event.

    ``amount``: latency in seconds; slow in bytes per second; clock in seconds; rewind in transactions.
    The event is the ``chunks``-th chunk from now on that comes ``way`` on the link ``cue``.
    """

    kind: Kind
    where: Where
    part: str
    seconds: float
    amount: float
    way: Way
    cue: str
    chunks: int

    def __str__(self) -> str:
        amount = f" {self.amount:g}" if self.amount else ""
        when = f"at chunk {self.chunks} {self.way} {self.cue}"
        return f"{self.kind}{amount} of {self.part} for {self.seconds:g} s, {when}"


@dataclass(frozen=True)
class Plan:
    """One episode."""

    seed: str
    fault: Fault
    asks: tuple[Ask, ...]


def plan(run: int, episode: int, sequences: int, kind: str = "") -> Plan:
    """The episode's fault and requests. ``kind``: only faults whose name contains it.

    Every kind has its turn in a run; what it hits, when and for how long is drawn.
    """
    seed = f"{run}.{episode}"
    dice = random.Random(seed)
    chosen = [fault for fault in FAULTS if kind in f"{fault[0]} {fault[1]}"]
    if not chosen:
        raise ValueError(f"kind: no fault is named {kind!r}")
    what, where = chosen[episode % len(chosen)]
    return Plan(seed, _fault(dice, what, where), tuple(asks(seed, sequences)))


def _fault(dice: random.Random, kind: Kind, where: Where) -> Fault:
    router = f"router-{dice.randrange(ROUTERS)}"
    level = f"{dice.choice(LEVELS)}-{dice.randrange(REPLICAS)}"
    link = {"level": f"{router}>{level}", "redis": f"{router}>redis", "client": f"client>{router}"}
    cues = {"level": "level", "router": dice.choice(("level", "redis", "client")), "redis": "redis"}
    part = {"level": level, "router": router, "redis": "redis"}.get(where) or link[where.removesuffix(" link")]
    way = dice.choice(WAYS)
    return Fault(
        kind=kind,
        where=where,
        part=part,
        seconds=_seconds(dice, kind, where),
        amount=_amount(dice, kind),
        way=way,
        cue=link[cues.get(where) or where.removesuffix(" link")],
        chunks=dice.choice((dice.randint(1, 10), dice.randint(10, 150))),
    )


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
        case _:
            return 0.0
