"""The file of ``specrouter simulate`` and ``specrouter plan``: levels, what is asked of them, and what they cost.

    levels:                       # lowest first; the last one is the target
      - {name: draft, step_ms: "1:2.5,64:3", agreement: 0.65, replicas: 1, price: 1.2}
      - {name: target, step_ms: "1:35,64:60", replicas: 2, price: 4.0, gpus: 2}
    arrivals: {requests: 200, rate: 2.0, tokens: [64, 256], prompt: 100, mix: [{share: 1, ease: 0.1}]}
    objective_ms: 40              # per token; left out: the cheapest

Unknown fields are errors, so that a typing mistake never passes silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from specrouter_core.capacity import Load, Offer
from specrouter_core.profile import Curve
from specrouter_core.replica import SimLevel
from specrouter_core.workload import Kind, Workload
from specrouter_family import spec_file
from specrouter_family.family import Family
from specrouter_family.spec_file import SpecFileError
from specrouter_level.stub import curve
from specrouter_local.errors import UserError

Range = int | tuple[int, int]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Spec(BaseModel):
    """What all parts of the file share: no unknown fields, no change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LevelSpec(Spec):
    """One level."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$")]
    step_ms: str  # "rows:milliseconds,...": time of a step over the tokens it feeds
    agreement: Share = 1.0  # with the target's draws
    replicas: Annotated[int, Field(ge=1, le=4096)] = 1
    price: Annotated[float, Field(ge=0)] = 1.0  # of one GPU, per hour
    gpus: Count = 1  # of one replica
    slots: Count = 64  # sequences that one replica holds at most; for `plan`
    max_rows: Annotated[int, Field(ge=129)] = 512  # tokens of one step at most

    @field_validator("step_ms")
    @classmethod
    def _is_curve(cls, value: str) -> str:
        if not any(point.seconds for point in curve(value)):
            raise ValueError("needs a point with more than 0 milliseconds")
        return value

    @property
    def curve(self) -> Curve:
        """Seconds over rows."""
        return Curve.of({point.rows: max(point.seconds, 1e-6) for point in curve(self.step_ms)})


class KindSpec(Spec):
    """A part of the requests."""

    share: Annotated[float, Field(ge=0)] = 1.0
    ease: Annotated[float, Field(ge=-1, le=1)] = 0.0  # added to each level's agreement below the target


class ArrivalsSpec(Spec):
    """What is asked for."""

    requests: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    rate: Positive | None = None  # requests a second; left out: all at once
    tokens: Range = 128  # of an answer, or [least, most]
    prompt: Range = 16
    mix: Annotated[list[KindSpec], Field(min_length=1)] = [KindSpec()]


class Scenario(Spec):
    """The whole file."""

    levels: Annotated[list[LevelSpec], Field(min_length=1, max_length=8)]
    arrivals: ArrivalsSpec = ArrivalsSpec()
    routers: Annotated[int, Field(ge=1, le=1024)] = 1
    hop_ms: Annotated[float, Field(ge=0, le=1000)] = 0.3  # one way, between router and level
    router_us: Annotated[float, Field(ge=0)] = 0.0  # a router's time for one reply
    objective_ms: Positive | None = None  # per token
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.8  # bound for `plan`
    seed: int = 1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [level.name for level in self.levels]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"levels.{i}.name: {name!r} is used twice")
        if self.levels[-1].agreement != 1:
            raise ValueError(f"levels.{len(names) - 1}.agreement: the target agrees with itself, leave it out")
        self.workload()
        return self

    @property
    def objective(self) -> float | None:
        """Seconds per token."""
        return None if self.objective_ms is None else self.objective_ms / 1000

    def sim_levels(self) -> list[SimLevel]:
        """The levels for the simulator."""
        return [SimLevel(x.name, x.curve, x.agreement, x.replicas, x.max_rows) for x in self.levels]

    def workload(self) -> Workload:
        """The requests."""
        asked = self.arrivals
        kinds = tuple(Kind(kind.share, kind.ease) for kind in asked.mix)
        return Workload(asked.requests, asked.rate, _pair(asked.tokens), _pair(asked.prompt), kinds)

    def offers(self) -> list[Offer]:
        """The levels for the capacity planner, as easy as the mix is on average."""
        total = sum(kind.share for kind in self.arrivals.mix)
        ease = sum(kind.share * kind.ease for kind in self.arrivals.mix) / total
        return [
            Offer(
                name=x.name,
                curve=x.curve,
                agreement=min(max(x.agreement + ease, 0.0), 1.0) if x.agreement < 1 else 1.0,
                price=x.price,
                gpus=x.gpus,
                slots=x.slots,
                max_rows=x.max_rows,
            )
            for x in self.levels
        ]

    def load(self) -> Load:
        """The load for the capacity planner. Raises UserError when there is no rate."""
        asked = self.arrivals
        if asked.rate is None:
            raise UserError("arrivals.rate: a plan needs the requests a second")
        tokens, prompt = _pair(asked.tokens), _pair(asked.prompt)
        return Load(asked.rate, sum(tokens) / 2, sum(prompt) / 2, self.objective, self.utilisation)


def _pair(value: Range) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def load(path: Path) -> Scenario:
    """Reads a file. Raises UserError that names the file and the field."""
    try:
        return spec_file.load(path, Scenario, "levels and arrivals")
    except SpecFileError as error:
        raise UserError(str(error)) from error


def of_family(family: Family) -> Scenario:
    """A family of stub levels, whose speeds are in its file. Raises UserError for others."""
    levels = []
    for i, level in enumerate(family.levels):
        if level.engine != "stub" or not level.step_ms:
            raise UserError(f"levels.{i}.step_ms: only stub levels say how fast they are; write a file with curves")
        levels.append(LevelSpec(name=level.name, step_ms=level.step_ms, agreement=level.agreement or 1.0))
    return Scenario(levels=levels)
