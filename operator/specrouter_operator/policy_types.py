"""RoutingPolicy: how a family is used. The source of its custom resource definition (see crd.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from specrouter_family.family import ChainSpec, Spec
from specrouter_operator.schema import Label, rules
from specrouter_operator.status_types import Condition

Milliseconds = Annotated[float, Field(gt=0, le=600_000)]
Percent = Annotated[int, Field(ge=0, le=100)]
LevelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$", max_length=40)]


class FamilyRef(Spec):
    """The family that the policy is about."""

    name: Label
    """A ModelFamily in the policy's namespace."""


class Objective(Spec):
    """What each level is held to; time to first token and per token are per traffic class, in routing.classes."""

    step_ms: Annotated[dict[LevelName, Milliseconds], Field(max_length=8)] = Field(default_factory=dict)
    """Level -> median of a step, in milliseconds; of a level without one: what it measured when it started."""
    utilisation: Annotated[int, Field(ge=10, le=100)] = 80
    """Of what a level's replicas can carry, in percent; above it, replicas are added."""
    errors: Percent = 5
    """Share of a level's calls that may fail, in percent."""


class Weights(Spec):
    """How freely the levels may be used: 100 = free to use, 0 = not used."""

    pins: Annotated[dict[LevelName, Percent], Field(max_length=8)] = Field(default_factory=dict)
    """Level -> weight that stays, whatever is measured."""
    interval_seconds: Annotated[int, Field(ge=1, le=3600)] = 2
    """Shortest time between two changes."""


class Stabilization(Spec):
    """How long other replicas must have been needed until they are set."""

    up_seconds: Annotated[int, Field(ge=0, le=3600)] = 10
    """For more replicas."""
    down_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    """For fewer replicas."""


class MaxStep(Spec):
    """How many replicas a level may gain or lose at once."""

    up: Annotated[int, Field(ge=1, le=100)] = 4
    """Gain, or as many as there are, if that is more."""
    down: Annotated[int, Field(ge=1, le=100)] = 1
    """Lose."""


class Scaling(Spec):
    """Who sets how many replicas there are, and how fast that may change."""

    mode: Literal["Auto", "Manual"] = "Auto"
    """Auto: the operator, by load; Manual: you, with kubectl scale."""
    stabilization: Stabilization = Field(default_factory=Stabilization)
    """How long other replicas must have been needed."""
    max_step: MaxStep = Field(default_factory=MaxStep)
    """How many replicas a level may gain or lose at once."""
    gpu_budget: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """GPUs of all levels together; left out: no bound."""
    scale_to_zero: bool = False
    """Whether a level with replicas.min 0 that doesn't pay may lose its last replica."""


class Prometheus(Spec):
    """A Prometheus server to read the levels' metrics from."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=1024)]
    """Its base URL, as http://prometheus.monitoring:9090."""


class Signals(Spec):
    """Where measurements come from."""

    source: Literal["OTLP", "Prometheus"] = "OTLP"
    """OTLP: pushed to the operator; Prometheus: asked for."""
    freshness_seconds: Annotated[int, Field(ge=2, le=3600)] = 10
    """Measurements older than this are stale; nothing is changed by stale ones."""
    prometheus: Prometheus | None = None
    """The server, with source Prometheus."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.source == 'Prometheus') == has(self.prometheus)",
                "prometheus: goes with source Prometheus, and only",
            ),
        )
    )


# Which levels there are is in another object: validation.yaml, beside the definitions, has the rules about both.
CHAIN_RULES = rules(
    (
        "!has(self.chains) || self.chains.all(c, c[size(c) - 1] == self.chains[0][size(self.chains[0]) - 1])",
        "chains: every chain must end in the same level, the family's target",
    ),
    (
        "!has(self.chains) || self.chains.all(c, c.all(a, c.exists_one(b, b == a)))",
        "chains: a level can be in a chain once",
    ),
)


class RoutingPolicySpec(Spec):
    """How the family is used."""

    family_ref: FamilyRef
    """The family."""
    routing: Annotated[ChainSpec, Field(json_schema_extra=CHAIN_RULES)] = Field(default_factory=ChainSpec)
    """What routers may choose: chains, windows, lookahead, and what each traffic class was promised."""
    objective: Objective = Field(default_factory=Objective)
    """What each level is held to."""
    weights: Weights = Field(default_factory=Weights)
    """How freely the levels may be used."""
    scaling: Scaling = Field(default_factory=Scaling)
    """Who sets the replicas."""
    signals: Signals = Field(default_factory=Signals)
    """Where measurements come from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.familyRef.name == oldSelf.familyRef.name", "familyRef.name: can't be changed; make a new policy")
        )
    )


class RoutingPolicyStatus(Spec):
    """What the policy came to."""

    observed_generation: int
    """The metadata.generation that this status is about."""
    conditions: list[Condition]
    """Ready, FamilyFound, Valid, SignalsFresh, Scaling."""
    weights: Annotated[dict[str, int], Field(max_length=8)]
    """Level -> weight in force."""
    pinned: Annotated[list[str], Field(max_length=8)]
    """Levels whose weight is a pin of spec.weights.pins."""
    weights_version: int
    """Version of the weights that routers were given."""
    replicas: Annotated[dict[str, int], Field(max_length=8)]
    """Level -> replicas wanted."""
    reasons: Annotated[list[str], Field(max_length=32)]
    """Why weights and replicas are what they are."""
