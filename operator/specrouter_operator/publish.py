"""Gives routers their weights and chains: one hash per family in Redis, by compare-and-set on its version.

See specrouter_family.published for the hash. Versions only grow, also over a loss of Redis: what was last published
(the policy's status holds it) is the least that the next version exceeds.
"""

from __future__ import annotations

from collections.abc import Mapping

from redis.exceptions import RedisError

from specrouter_family.family import ChainSpec
from specrouter_family.published import document, policy_key
from specrouter_family.redis_url import parse

SOCKET_S = 2.0
TRIES = 5  # when others write at the same time

# KEYS: policy. ARGV: version expected ("" = none), new version, document. Answers whether it was written.
WRITE = """
if (redis.call('HGET', KEYS[1], 'version') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'document', ARGV[3])
return 1
"""


class PublishError(OSError):
    """The policy can't be written. One line for people, without secrets."""


class RedisPublisher:
    """One Redis. Safe to use from several threads."""

    def __init__(self, url: str) -> None:
        """``url``: see specrouter_family.redis_url, as routers take it. Raises ValueError when it is none."""
        self._redis = parse(url).blocking_client(SOCKET_S)

    def publish(self, family: str, weights: Mapping[str, int], chain: ChainSpec | None, above: int = 0) -> int:
        """Have routers of ``family`` (name, or namespace/name) use these from their next look on.

        Returns the version that holds them. Nothing is written when they hold already, in a version of at least
        ``above`` (the one published last). Raises PublishError, and ValueError when a weight is not 0 to 100.
        """
        key = policy_key(family.rpartition("/")[2])
        text = document({name: float(weight) for name, weight in weights.items()}, chain)
        try:
            for _ in range(TRIES):
                said, there = self._redis.hmget(key, "version", "document")
                version = int(said) if said is not None and said.isdigit() else 0
                if version >= above and there is not None and there.decode() == text:
                    return version
                expected = said.decode() if said is not None else ""
                new = max(version, above) + 1
                if self._redis.eval(WRITE, 1, key, expected, new, text):
                    return new
        except (RedisError, OSError) as error:
            raise PublishError(f"cannot write to Redis: {' '.join(str(error).split())}") from error
        raise PublishError(f"others wrote {key} at the same time, {TRIES} times in a row")

    def close(self) -> None:
        """Disconnect."""
        self._redis.close()
