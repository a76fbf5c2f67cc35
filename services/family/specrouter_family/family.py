"""The family file: which levels work together, and the chain they form.

    name: demo                  # the model name clients use
    tokenizer: DIR              # tokenizer.json, chat template; "target": the target sends them; "bytes": for stubs
    levels:                     # lowest first; the last one is the target
      - {name: draft, engine: ngram, address: "127.0.0.1:7101"}
      - {name: target, engine: torch, model: DIR, dtype: float32, address: "127.0.0.1:7102"}
    chain:
      policy: adaptive          # the router chooses, by what it measures; or fixed: always all levels
      mode: auto                # what it may choose: overlapped, lockstep, or either
      windows: {draft: 4, target: 8}   # adaptive: the most it may choose; fixed: what is used
      lookahead: 16                    # likewise

Unknown fields are errors, so that a typing mistake never passes silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from specrouter_family import spec_file
from specrouter_family.spec_file import SpecFileError, explain

MAX_LEVELS = 8
BYTES = "bytes"  # the tokenizer of stub levels
FROM_TARGET = "target"  # the router asks the target for the tokenizer's files when it starts
LOWER_WINDOW = 4  # tokens; window of a level that the file doesn't give one, with a fixed policy
TARGET_WINDOW = 8
LOOKAHEAD = 16
MOST_WINDOW = 16  # tokens; the same with an adaptive policy
MOST_LOOKAHEAD = 64

# Fields that only make sense for some engines; every other field is for all.
ENGINE_FIELDS = {
    "torch": frozenset(
        {
            *("model", "dtype", "quantization", "device", "threads", "exactness"),
            *("kv_checkpoints", "kv_codec", "kv_budget_mib", "kv_url", "kv_key_file"),
        }
    ),
    "ngram": frozenset[str](),
    "stub": frozenset({"agreement", "step_ms"}),
}


HOLDS = "name, tokenizer, levels and chain"
FamilyError = SpecFileError  # of a family file


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"must be host:port, got {value!r}")
    return value


def _curve(value: str) -> str:
    last = 0
    for point in value.split(","):
        rows, colon, milliseconds = point.partition(":")
        try:
            right = bool(colon) and int(rows) > last and 0 <= float(milliseconds) <= 60_000
        except ValueError:
            right = False
        if not right:
            raise ValueError(f'must be points rows:milliseconds with growing rows, as "1:2.5,8:3.0", got {value!r}')
        last = int(rows)
    return value


def _depends(schema: dict[str, Any]) -> None:
    """A field whose default depends on others has none in a schema."""
    schema.pop("default", None)


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$")]
Window = Annotated[int, Field(ge=1, le=64)]
Address = Annotated[str, AfterValidator(_address)]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=40)]


class Spec(BaseModel):
    """What all parts of the file share: no unknown fields, no coercion, no change afterwards.

    The operator's Kubernetes types are of these too: there (by_alias=True) fields are in camelCase, and a field's
    docstring is its description.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        alias_generator=to_camel,
        validate_by_alias=False,
        validate_by_name=True,
    )


class LevelSettings(Spec):
    """What a level is, wherever it runs. What is left out is the level's own default."""

    name: Name
    """The level's name: what chains, windows and weights call it."""
    engine: Literal["torch", "ngram", "stub"] = "torch"
    """What draws the tokens: a model (torch), prompt lookup (ngram), or a synthetic language for trials (stub)."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What the model computes in (torch)."""
    quantization: Literal["none", "int8", "int4"] | None = None
    """Of the weights (torch)."""
    device: Annotated[str, StringConstraints(pattern=r"^(cpu|cuda:\d{1,3})$")] | None = None
    """cpu, or cuda:N (torch)."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads (torch)."""
    exactness: Literal["shape", "bitwise"] | None = None
    """What two runs of a text share (torch): bitwise, or as far as their steps have the same shape."""
    max_length: Annotated[int, Field(ge=2, le=1_048_576)] | None = None
    """Tokens of one sequence at most, prompt included."""
    slots: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Sequences held at once."""
    kv_checkpoints: Literal["off", "prompts", "all"] | None = None
    """Whether KV is written to Redis, for other replicas: of prompts, or of generated text too (torch)."""
    kv_codec: Literal["exact", "bf16", "fp16", "int8"] | None = None
    """How it is written (torch). All but exact change the text a little after a restore."""
    kv_budget_mib: Annotated[int, Field(ge=1, le=16_777_216)] | None = None
    """Memory in Redis for this level's KV (torch)."""
    weight: Annotated[float, Field(ge=0, le=100)] = 100.0
    """100 = free to use, 0 = not used; it divides the level's speed when chains are compared."""
    agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of draws equal to those of the target's language (stub); 1 is the target."""
    step_ms: Annotated[str, AfterValidator(_curve)] | None = None
    """Cost of a step as a curve "rows:milliseconds,..." (stub)."""

    @model_validator(mode="after")
    def _fits_engine(self) -> Self:
        for engine, fields in ENGINE_FIELDS.items():
            for name in sorted(fields - ENGINE_FIELDS[self.engine]):
                if getattr(self, name, None) is not None:
                    raise ValueError(f"{name}: is for engine {engine}, but this level's engine is {self.engine}")
        if self.exactness == "bitwise" and self.kv_codec not in (None, "exact"):
            raise ValueError(f"kv_codec: must be exact where exactness is bitwise, got {self.kv_codec}")
        return self


class LevelSpec(LevelSettings):
    """One level of a family file: what it is, and where."""

    address: Address | None = None
    """gRPC, host:port. A host name with several A records stands for one replica each, that come and go."""
    addresses: Annotated[list[Address], Field(max_length=256)] = Field(default_factory=list)
    """Further replicas of the level."""
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that `specrouter up` starts, where there are fewer addresses."""
    model: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Directory of the weights, or a Hugging Face repository (torch)."""
    kv_url: Annotated[str, StringConstraints(pattern=r"^rediss?(\+[a-z]+)?://\S+$")] | None = None
    """Redis for its KV (torch); with `specrouter up`, left out, the mesh's own."""
    kv_key_file: Annotated[str, StringConstraints(min_length=1)] | None = None
    """File with the tenant's key, by which KV is signed (torch)."""

    @property
    def endpoints(self) -> list[str]:
        """All addresses, without repetition."""
        return list(dict.fromkeys([*([self.address] if self.address else []), *self.addresses]))

    @model_validator(mode="after")
    def _has_model(self) -> Self:
        if self.engine == "torch" and self.model is None:
            raise ValueError("model: required for engine torch")
        return self


class ClassSpec(Spec):
    """What a class of traffic (``class`` in a request) was promised, and who gives way."""

    priority: Annotated[int, Field(ge=0, le=100)] = 50
    """Under load, classes with less lose speculation first, and wait longer for a place."""
    ttft_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    """Milliseconds until the first token: a request behind it goes before others of its priority."""
    tpot_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    """Milliseconds per token after the first: a request behind it may speculate more than others of its priority."""


class ChainSpec(Spec):
    """How the levels work together. In a loaded family, ``windows`` has an entry for every level.

    Windows (lowest level: tokens drawn per call; others: proposals taken) and lookahead (tokens the lowest level may
    run ahead of the committed text) are what is used with the fixed policy, and the most that the adaptive may choose.
    """

    policy: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: the router chooses by what it measures; fixed: always all levels."""
    mode: Literal["auto", "overlapped", "lockstep"] = "auto"
    """Whether levels work at once (overlapped) or one at a time; auto: either, with the fixed policy overlapped."""
    windows: dict[str, Window] = Field(default_factory=dict)
    """Level -> tokens: drawn per call by the lowest level, proposals taken by the others."""
    lookahead: Annotated[int, Field(ge=1, le=256, json_schema_extra=_depends)] = LOOKAHEAD
    """Tokens the lowest level may run ahead of the committed text; adaptive: at most, 64 unless given."""
    chains: Annotated[list[Annotated[list[Name], Field(min_length=1, max_length=MAX_LEVELS)]], Field(max_length=32)] = (
        Field(default_factory=list)
    )
    """Chains that may be used, levels lowest first; empty = all. The target alone is what is left when none can be."""
    classes: Annotated[dict[ClassName, ClassSpec], Field(max_length=64)] = Field(default_factory=dict)
    """What classes of traffic were promised (adaptive)."""
    waste: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of what the lowest level drafts, the share that may come to nothing (adaptive); 1 = no bound."""

    @model_validator(mode="before")
    @classmethod
    def _by_policy(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("policy", "adaptive") == "adaptive":
            return {"lookahead": MOST_LOOKAHEAD, **data}
        return data

    @property
    def modes(self) -> tuple[bool, ...]:
        """Whether levels overlap, in every way that is allowed."""
        return {"auto": (True, False), "overlapped": (True,), "lockstep": (False,)}[self.mode]

    def default_window(self, target: bool) -> int:
        """The window of a level that the file doesn't give one."""
        if self.policy == "adaptive":
            return MOST_WINDOW
        return TARGET_WINDOW if target else LOWER_WINDOW


class Family(Spec):
    """The levels that work together, lowest first; the last is the target."""

    name: Name
    tokenizer: Annotated[str, StringConstraints(min_length=1)]
    levels: Annotated[list[LevelSpec], Field(min_length=1, max_length=MAX_LEVELS)]
    chain: ChainSpec = Field(default_factory=ChainSpec)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [level.name for level in self.levels]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"levels.{i}.name: {name!r} is used twice")
        for name in self.chain.windows:
            if name not in names:
                raise ValueError(f"chain.windows.{name}: no level has this name (levels: {', '.join(names)})")
        self._check_chains(names)
        last = len(names) - 1
        if self.target.engine == "ngram":
            raise ValueError(f"levels.{last}.engine: ngram can't be the target, it has no text of its own")
        if self.target.agreement not in (None, 1.0):
            raise ValueError(f"levels.{last}.agreement: the target agrees with itself, leave it out")
        if self.target.weight == 0:
            raise ValueError(f"levels.{last}.weight: the target is always used, it must be above 0")
        if (self.tokenizer == BYTES) != (self.target.engine == "stub"):
            raise ValueError(f"tokenizer: {BYTES!r} is for families whose target is a stub, and only for them")
        for name in names:
            self.chain.windows.setdefault(name, self.chain.default_window(name == names[last]))
        return self

    def _check_chains(self, names: list[str]) -> None:
        for i, chain in enumerate(self.chain.chains):
            unknown = next((name for name in chain if name not in names), None)
            if unknown is not None:
                raise ValueError(f"chain.chains.{i}: no level has the name {unknown!r} (levels: {', '.join(names)})")
            places = [names.index(name) for name in chain]
            if places != sorted(set(places)) or chain[-1] != names[-1]:
                raise ValueError(f"chain.chains.{i}: levels in their order, the target {names[-1]!r} last")

    def with_chain(self, chain: ChainSpec) -> Self:
        """The same levels with another chain section. Raises FamilyError when it doesn't fit them."""
        try:
            return type(self).model_validate({**dict(self), "chain": chain.model_copy(deep=True)})
        except ValidationError as error:
            raise FamilyError(explain(error)) from error

    @property
    def target(self) -> LevelSpec:
        """The level whose text the client gets."""
        return self.levels[-1]


def parse(text: str, source: str) -> Family:
    """The family that ``text`` (YAML) describes. Raises FamilyError, which begins with ``source``."""
    return spec_file.parse(text, source, Family, HOLDS)


def load(path: Path | str) -> Family:
    """Reads a family file. Raises FamilyError that names the file and the field."""
    return spec_file.load(Path(path), Family, HOLDS)
