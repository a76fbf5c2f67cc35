"""One request, whichever interface it came by."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from specrouter.v1 import level_pb2 as pb
from specrouter.v1 import state_pb2
from specrouter_core.sampling import Sampling
from specrouter_router.pin import Pin
from specrouter_router.refusal import InvalidError

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TEXT_BYTES = 1 << 20
MAX_MESSAGES = 1024
MAX_CLASS_CHARACTERS = 40
MAX_NAME = 64
SEED_BITS = 53  # of a random seed: JSON readers keep so many exactly

NO_PIN = Pin()
NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the target allows."""

    max_length: int  # tokens of prompt and answer together
    vocab_size: int  # 0 = any


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate."""

    prompt: list[int]
    max_tokens: int  # 0 = as many as fit
    sampling: Sampling
    stop: tuple[str, ...] = ()
    pin: Pin = NO_PIN
    traffic: str = ""  # its class
    ignore_eos: bool = False
    name: str = ""  # of the sequence, chosen by the client; "" = any
    digest: bytes = b""  # of what was asked, with a name
    presentation: state_pb2.Presentation | None = None

    def room(self, limits: Limits, field: str) -> int:
        """Tokens to generate at most. ``field`` names the prompt in the request. Raises InvalidError."""
        size = len(self.prompt)
        if size == 0:
            raise InvalidError(field, "must not be empty")
        if limits.vocab_size and max(self.prompt) >= limits.vocab_size:
            raise InvalidError(field, f"ids must be below {limits.vocab_size}, got {max(self.prompt)}")
        code = "context_length_exceeded"
        if size >= limits.max_length:
            raise InvalidError(field, f"{size} tokens; at most {limits.max_length - 1} fit", code=code)
        if size + self.max_tokens > limits.max_length:
            raise InvalidError(
                "max_tokens",
                f"the prompt's {size} tokens and {self.max_tokens} more exceed {limits.max_length}",
                code=code,
            )
        for token in self.sampling.logit_bias:
            if limits.vocab_size and token >= limits.vocab_size:
                raise InvalidError("logit_bias", f"ids must be below {limits.vocab_size}, got {token}")
        return self.max_tokens or limits.max_length - size


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """The stop texts, if they keep the bounds. Raises InvalidError."""
    if len(stops) > MAX_STOPS:
        raise InvalidError("stop", f"at most {MAX_STOPS} texts, got {len(stops)}")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise InvalidError("stop", f"each must be 1 to {MAX_STOP_CHARACTERS} characters, got {len(stop)}")
    return tuple(stops)


def check_name(field: str, name: str) -> str:
    """A sequence's name, if it can be one. Raises InvalidError."""
    if not NAME.fullmatch(name):
        raise InvalidError(field, f"must be 1 to {MAX_NAME} of A-Z a-z 0-9 . _ : -, got {name[:80]!r}")
    return name


def check_text(field: str, text: str) -> str:
    """The text, if it is not too large. Raises InvalidError."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_TEXT_BYTES:
        raise InvalidError(field, f"at most {MAX_TEXT_BYTES} bytes, got {size}", status=413)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidError(field, "must be Unicode text, but has a lone surrogate")
    return text


def random_seed() -> int:
    """A seed for a request that brings none."""
    return secrets.randbits(SEED_BITS)


def wire(sampling: Sampling) -> pb.Sampling:
    """The sampling parameters as messages carry them."""
    return pb.Sampling(
        seed=sampling.seed,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
    )
