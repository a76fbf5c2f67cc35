"""ModelFamily: which levels run, and on what. The source of its custom resource definition (see crd.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from specrouter_family.family import ENGINE_FIELDS, MAX_LEVELS, LevelSettings, Spec
from specrouter_operator.schema import Key, Label, Quantity, Value, rules
from specrouter_operator.status_types import Condition

# Names of a level's objects are FAMILY-LEVEL-predictor and FAMILY-LEVEL-replicas: DNS labels, 63 characters at most.
MOST_NAME = 52
IMAGE = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$"


class Resources(Spec):
    """What a container asks for, and may use at most."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(default_factory=dict)
    """Resource -> quantity that a node must have free, as {cpu: 4, memory: 16Gi}."""
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(default_factory=dict)
    """Resource -> quantity the container may use at most. GPUs are set by gpus."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || "
                "quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)",
                "requests: must be at most limits",
            ),
            (
                "(!has(self.requests) || !('nvidia.com/gpu' in self.requests)) && "
                "(!has(self.limits) || !('nvidia.com/gpu' in self.limits))",
                "limits: GPUs are set by the level's gpus",
            ),
        )
    )


class Toleration(Spec):
    """A taint that the level's pods tolerate."""

    key: Key | None = None
    """The taint's key; left out with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Whether the taint's value counts (Equal) or not (Exists)."""
    value: Value | None = None
    """The taint's value, with Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; left out: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """How long a pod stays on a node that got the taint, with NoExecute."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!(self.operator == 'Exists' && has(self.value))", "value: must be left out with operator Exists"),
            ("has(self.key) || self.operator == 'Exists'", "key: required with operator Equal"),
            (
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds: only with effect NoExecute",
            ),
        )
    )


class TopologySpread(Spec):
    """How the replicas of a level spread over nodes or zones. The operator adds the selector of the level's pods."""

    max_skew: Annotated[int, Field(ge=1, le=100)] = 1
    """How many replicas more one domain may hold than another."""
    topology_key: Key
    """Label of the nodes whose value makes a domain, as kubernetes.io/hostname."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "ScheduleAnyway"
    """What happens to a replica that can't be placed so."""


class Claim(Spec):
    """Weights on a persistent volume, mounted read-only."""

    claim_name: Label
    """The PersistentVolumeClaim, in the family's namespace."""
    path: Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*/?)*$", max_length=253)] = ""
    """Directory of the weights in the volume; empty: its root."""


class ReplicaBounds(Spec):
    """How many replicas of a level there may be."""

    min: Annotated[int, Field(ge=0, le=1000)] = 1
    """Replicas at least. 0 lets a level below the target be scaled to zero, if the policy allows it."""
    max: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Replicas at most; left out: as min, but 1 at least."""

    model_config = ConfigDict(
        json_schema_extra=rules(("!has(self.max) || self.min <= self.max", "max: must be at least min"))
    )

    @property
    def most(self) -> int:
        """Replicas at most."""
        return max(self.min, 1) if self.max is None else self.max


def _engine_rules() -> list[tuple[str, str]]:
    pairs = []
    for engine, fields in sorted(ENGINE_FIELDS.items()):
        for name in sorted(fields & LevelSettings.model_fields.keys()):
            alias = LevelSettings.model_fields[name].alias or name
            pairs.append((f"!has(self.{alias}) || self.engine == '{engine}'", f"{alias}: is for engine {engine} only"))
    return pairs


class Level(LevelSettings):
    """One level: a model with its own replicas."""

    storage_uri: (
        Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+://[^\s]+$", min_length=1, max_length=1024)] | None
    ) = None
    """Where the weights are, as KServe's storage initializer takes it: hf://, s3://, gs://, https:// (torch)."""
    pvc: Claim | None = None
    """Weights on a volume that exists already, in place of storageUri (torch)."""
    image: Annotated[str, StringConstraints(pattern=IMAGE, max_length=512)] | None = None
    """Image of this level in place of the family's."""
    resources: Resources = Field(default_factory=Resources)
    """What the level's container asks for and may use."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of each replica (nvidia.com/gpu)."""
    runtime_class_name: Label | None = None
    """RuntimeClass of the pods, where GPUs need one."""
    node_selector: Annotated[dict[str, Value], Field(max_length=16)] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    """Taints that the pods tolerate."""
    topology_spread_constraints: Annotated[list[TopologySpread], Field(max_length=4)] = Field(default_factory=list)
    """How replicas spread over nodes or zones."""
    replicas: ReplicaBounds = Field(default_factory=ReplicaBounds)
    """How many replicas there may be."""
    surge: bool = True
    """In an upgrade a new replica starts before an old one ends; false: after it, where no GPU is free for both."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *_engine_rules(),
            (
                "self.engine != 'torch' || has(self.storageUri) != has(self.pvc)",
                "storageUri: engine torch needs either storageUri or pvc",
            ),
            (
                "self.engine == 'torch' || !(has(self.storageUri) || has(self.pvc))",
                "storageUri: storageUri and pvc are for engine torch only",
            ),
            (
                "!has(self.exactness) || self.exactness != 'bitwise' || !has(self.kvCodec) || self.kvCodec == 'exact'",
                "kvCodec: must be exact where exactness is bitwise",
            ),
            (
                "self.gpus > 0 || !has(self.device) || !self.device.startsWith('cuda')",
                "gpus: device cuda needs at least one GPU",
            ),
        )
    )


TARGET = "self[size(self) - 1]"
_LEVEL_RULES = (
    ("self.all(a, self.exists_one(b, b.name == a.name))", "names must be unique"),
    (
        "oldSelf.all(o, self.exists(n, n.name == o.name)) || self.all(n, oldSelf.exists(o, o.name == n.name))",
        "a name can't be changed; add the new level first and remove the old one afterwards",
    ),
    (
        f"{TARGET}.name == oldSelf[size(oldSelf) - 1].name",
        "the target (the last level) is the family's identity and can't be another level; make a new family",
    ),
    (f"{TARGET}.engine != 'ngram'", "the last level is the target; engine ngram has no text of its own"),
    (f"{TARGET}.weight > 0.0", "weight of the target (the last level) must be above 0"),
    (
        f"!has({TARGET}.agreement) || {TARGET}.agreement == 1.0",
        "agreement of the target (the last level) must be left out, it agrees with itself",
    ),
    (f"{TARGET}.replicas.min >= 1", "replicas.min of the target (the last level) must be at least 1"),
    (
        f"self.all(l, l.engine != 'stub' || {TARGET}.engine == 'stub') && "
        f"({TARGET}.engine != 'stub' || self.all(l, l.engine != 'torch'))",
        "engine stub and engine torch don't share a vocabulary, and can't be in one family",
    ),
)
# that there is a level at all is said by the list's own bound
LEVEL_RULES = rules(*((f"size(self) == 0 || ({rule})", f"levels: {message}") for rule, message in _LEVEL_RULES))


class ModelFamilySpec(Spec):
    """What runs."""

    backend: Literal["KServe", "Deployment"] = "KServe"
    """What a level becomes: a KServe InferenceService, or (where KServe isn't installed) a Deployment and a Service."""
    image: Annotated[str, StringConstraints(pattern=IMAGE, max_length=512)] | None = None
    """Image of the levels; left out: the one that came with the operator."""
    levels: Annotated[list[Level], Field(min_length=1, max_length=MAX_LEVELS, json_schema_extra=LEVEL_RULES)]
    """The levels, lowest first; the last one is the target, whose text the client gets."""
    replicas: Annotated[int, Field(ge=0, le=100)] = 1
    """Copies of the family: each level has at least replicas times its replicas.min. 0 stops all levels."""
    drain_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """How long a replica may take to hand over its sequences before it ends."""
    service_account_name: Label | None = None
    """ServiceAccount of the levels' pods, as for credentials of storageUri."""

    model_config = ConfigDict(
        json_schema_extra=rules(("self.backend == oldSelf.backend", "backend: can't be changed; make a new family"))
    )

    @property
    def target(self) -> Level:
        """The level whose text the client gets."""
        return self.levels[-1]


class LevelStatus(Spec):
    """What is seen of one level."""

    name: str
    """The level."""
    desired: int
    """Replicas wanted."""
    replicas: int
    """Replicas there are."""
    ready: int
    """Replicas that answer."""
    copies: int
    """The family's replicas field when this level's scale was last set by it."""
    message: str
    """What is missing, if anything."""


class ModelFamilyStatus(Spec):
    """What is seen of the family."""

    observed_generation: int
    """The metadata.generation that this status is about."""
    conditions: list[Condition]
    """Ready, LevelsReady, Configured, Scaling."""
    levels: list[LevelStatus]
    """One entry for each level, lowest first."""
    chain: str
    """The levels, lowest first."""
    ready_levels: str
    """Levels that are ready, of all."""
    replicas: int
    """Replicas of the target, for kubectl scale."""
    selector: str
    """Label selector of the family's pods."""
    gpus: int
    """GPUs that the wanted replicas take."""
