"""Request bodies of the OpenAI interface, checked.

Fields of OpenAI's API that the router does not support are refused unless they have their default; a few that can't
change the answer are taken and ignored; unknown ones are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from specrouter_core.chain import MAX_LEVELS, MAX_LOOKAHEAD, MAX_WINDOW
from specrouter_core.noise import SEED_MAX
from specrouter_core.sampling import MAX_LOGIT_BIAS, Sampling
from specrouter_router.pin import Pin
from specrouter_router.request import MAX_CLASS_CHARACTERS, MAX_MESSAGES, MAX_STOP_CHARACTERS, MAX_STOPS, random_seed

# Field -> the values that ask for nothing.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "echo": (None, False),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
}

MAX_TOKENS = 1 << 20
Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
Window = Annotated[int, Field(ge=1, le=MAX_WINDOW)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class Body(BaseModel):
    """No unknown fields, no coercion."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream carries besides the text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None  # taken and ignored


class Ours(Body):
    """SpecRouter's own part of a request."""

    chain: list[str] = Field(default_factory=list, max_length=MAX_LEVELS, description="levels, lowest first")
    mode: Literal["overlapped", "lockstep"] | None = Field(default=None, description="whether levels overlap")
    windows: list[Window] = Field(default_factory=list, max_length=MAX_LEVELS, description="one per level of chain")
    lookahead: int | None = Field(default=None, ge=1, le=MAX_LOOKAHEAD, description="tokens ahead of the committed")
    least: list[Window] = Field(default_factory=list, max_length=MAX_LEVELS, description="proposals a level waits for")
    traffic: str = Field(
        default="", alias="class", max_length=MAX_CLASS_CHARACTERS, description="texts of a class are alike"
    )
    report: bool = Field(default=False, description="whether to send the account of what happened")
    ignore_eos: bool = Field(default=False, description="do not end at the model's own end-of-turn ids")

    def pin(self) -> Pin:
        """What is fixed of the plan."""
        return Pin(tuple(self.chain), tuple(self.windows), self.lookahead, self.mode, tuple(self.least))


class Generation(Body):
    """What both kinds of request share."""

    model: str = Field(description="the family's name")
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, lt=1 << 31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Bias] | None = Field(default=None, max_length=MAX_LOGIT_BIAS, description="id -> bias")
    seed: int | None = Field(default=None, ge=-(1 << 63), le=SEED_MAX)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    specrouter: Ours = Field(default_factory=Ours)
    user: Any = Field(default=None, description="ignored")
    metadata: Any = Field(default=None, description="ignored")
    store: Any = Field(default=None, description="ignored")
    service_tier: Any = Field(default=None, description="ignored")
    safety_identifier: Any = Field(default=None, description="ignored")
    prompt_cache_key: Any = Field(default=None, description="ignored")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, harmless in UNSUPPORTED.items():
            if name in data and not any(data[name] is value or data[name] == value for value in harmless):
                raise ValueError(f"{name}: not supported")
        return {name: value for name, value in data.items() if name not in UNSUPPORTED}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in self.logit_bias or ():
            if not (name.isascii() and name.isdigit() and len(name) <= 10):
                raise ValueError(f"logit_bias: keys must be token ids, got {name[:40]!r}")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream")
        return self

    def sampling(self) -> Sampling:
        """How to draw; a seed is made up when none is given."""
        seed = random_seed() if self.seed is None else self.seed % (SEED_MAX + 1)
        given = {
            name: value
            for name in (
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "repetition_penalty",
                "presence_penalty",
                "frequency_penalty",
            )
            if (value := getattr(self, name)) is not None
        }
        bias = {int(name): value for name, value in (self.logit_bias or {}).items()}
        return Sampling(seed=seed, logit_bias=bias, **given)

    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)]
    name: Any = Field(default=None, description="ignored")

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Generation):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)

    @property
    def limit(self) -> int:
        """Tokens to generate at most; 0 = as many as fit."""
        return self.max_completion_tokens or self.max_tokens or 0


class CompletionRequest(Generation):
    """Body of /v1/completions."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKENS)]

    @property
    def limit(self) -> int:
        """Tokens to generate at most; OpenAI's default is 16."""
        return self.max_tokens or 16
