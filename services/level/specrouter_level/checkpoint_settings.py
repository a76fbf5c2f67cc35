"""What a level's options say of its checkpoints. Needs no torch, and redis only where they are on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specrouter_family.redis_url import RedisUrl

LEAST_KEY = 32  # bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """See docs/checkpoints.md."""

    policy: str  # prompts: blocks that end within the prompt; all: those with generated text too
    url: RedisUrl
    codec: str
    budget: int  # bytes in Redis
    key: bytes = field(default=b"", repr=False)  # the tenant's; empty = none


def of(policy: str, url: str, codec: str, budget_mib: int, key_file: Path | None, exactness: str) -> Settings | None:
    """None when they are off. Raises ValueError that names the option, without anything secret in it."""
    if policy == "off":
        return None
    if not url:
        raise ValueError("kv-url: needed with kv-checkpoints")
    if exactness == "bitwise" and codec != "exact":
        raise ValueError(f"kv-codec: must be exact where exactness is bitwise, got {codec}")
    key = b""
    if key_file is not None:
        try:
            key = key_file.read_bytes().strip()
        except OSError as error:
            raise ValueError(f"kv-key-file: {key_file} can't be read ({error.strerror})") from error
        if len(key) < LEAST_KEY:
            raise ValueError(f"kv-key-file: the key in {key_file} must have {LEAST_KEY} bytes or more")
    return Settings(policy, where(url), codec, budget_mib << 20, key)


def where(url: str) -> RedisUrl:
    """Raises ValueError that names the option, without anything secret in it."""
    from specrouter_family import redis_url  # noqa: PLC0415  # redis, which most levels do without

    try:
        return redis_url.parse(url)
    except ValueError as error:
        raise ValueError(str(error).replace("redis_url", "kv-url", 1)) from None
