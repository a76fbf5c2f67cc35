"""What a simulated mesh is asked for, and what came of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    at: float  # seconds
    tokens: int  # to generate
    prompt: int = 16  # tokens
    ease: float = 0.0  # added to each level's agreement
    text: int | None = None  # which synthetic text; None: one of its own


@dataclass(frozen=True, slots=True)
class Kind:
    """A share of the requests, easier (above 0) or harder than the levels' agreement says."""

    share: float
    ease: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that arrive at random (a Poisson process of ``rate`` a second), or all ``together`` at the start.

    Tokens and prompts are drawn evenly between their two bounds. Raises ValueError that begins with the field's name.
    """

    requests: int
    rate: float | None = None  # None: all at 0
    tokens: tuple[int, int] = (128, 128)
    prompt: tuple[int, int] = (16, 16)
    kinds: tuple[Kind, ...] = (Kind(1.0),)

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise ValueError(f"requests: must be 1 or more, got {self.requests}")
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"rate: must be above 0, got {self.rate}")
        for name, (low, high) in (("tokens", self.tokens), ("prompt", self.prompt)):
            if not 1 <= low <= high:
                raise ValueError(f"{name}: must be two growing numbers of 1 or more, got {low}, {high}")
        if not self.kinds or min(kind.share for kind in self.kinds) < 0 or not sum(kind.share for kind in self.kinds):
            raise ValueError("kinds: needs shares of 0 or more, one of them above 0")

    def arrivals(self, seed: int) -> list[Arrival]:
        """The requests in the order of their times; the same for the same seed."""
        drawn = random.Random(seed)
        shares = [kind.share for kind in self.kinds]
        now = 0.0
        out: list[Arrival] = []
        for _ in range(self.requests):
            if self.rate is not None:
                now += drawn.expovariate(self.rate)
            (kind,) = drawn.choices(self.kinds, shares)
            out.append(Arrival(now, drawn.randint(*self.tokens), drawn.randint(*self.prompt), kind.ease))
        return out


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in simulated seconds."""

    arrival: Arrival
    first: float = 0.0
    end: float = 0.0
    tokens: int = 0
    rounds: int = 0
    switches: int = 0
    chains: dict[tuple[str, ...], int] = field(default_factory=dict)  # tokens committed by chain

    @property
    def per_token(self) -> float:
        """Seconds per generated token, from arrival to end."""
        return (self.end - self.arrival.at) / max(self.tokens, 1)

    @property
    def to_first(self) -> float:
        """Seconds from arrival to the first token."""
        return self.first - self.arrival.at


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers; seconds, tokens and shares."""

    requests: int
    tokens: int
    seconds: float  # from the first arrival to the last end
    per_token_mean: float
    per_token_p50: float
    per_token_p99: float
    to_first_p50: float
    to_first_p99: float
    goodput: float  # tokens a second of requests that kept the objective
    kept: float  # share of requests that kept it
    switches: float  # changes of chain per 100 rounds
    chains: dict[tuple[str, ...], float]  # share of the tokens

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], objective: float | None = None) -> Summary:
        """``objective`` is the most seconds per token that a request may take; None: any."""
        seconds = max(o.end for o in outcomes) - min(o.arrival.at for o in outcomes)
        kept = [o for o in outcomes if objective is None or o.per_token <= objective]
        paces = sorted(o.per_token for o in outcomes)
        firsts = sorted(o.to_first for o in outcomes)
        chains: dict[tuple[str, ...], int] = {}
        for outcome in outcomes:
            for chain, count in outcome.chains.items():
                chains[chain] = chains.get(chain, 0) + count
        tokens = sum(o.tokens for o in outcomes)
        return cls(
            requests=len(outcomes),
            tokens=tokens,
            seconds=seconds,
            per_token_mean=sum(paces) / len(paces),
            per_token_p50=_at(paces, 0.5),
            per_token_p99=_at(paces, 0.99),
            to_first_p50=_at(firsts, 0.5),
            to_first_p99=_at(firsts, 0.99),
            goodput=sum(o.tokens for o in kept) / max(seconds, 1e-9),
            kept=len(kept) / len(outcomes),
            switches=100 * sum(o.switches for o in outcomes) / max(sum(o.rounds for o in outcomes), 1),
            chains={c: n / max(tokens, 1) for c, n in sorted(chains.items(), key=lambda entry: -entry[1])},
        )


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
