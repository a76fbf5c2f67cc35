"""Gives routers their weights and chains: one hash per family in Redis, by compare-and-set on its version.

See specrouter_family.published for the hash. Versions only grow, also over a loss of Redis: what was last published
(the policy's status holds it) is the least that the next version exceeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from redis import Redis, RedisCluster, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from specrouter_family.family import ChainSpec
from specrouter_family.published import document, policy_key

SOCKET_S = 2.0
TRIES = 5  # when others write at the same time
SENTINEL_PORT = 26379

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
        """``url``: as routers take it, redis[s][+sentinel|+cluster]://. Raises ValueError when it is none."""
        self._redis = _client(url)

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


def _client(url: str) -> Any:
    """A client that waits a little and leaves trying again to its user."""
    settings: dict[str, Any] = {"socket_timeout": SOCKET_S, "socket_connect_timeout": SOCKET_S}
    never = Retry(NoBackoff(), 0)
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    if base not in ("redis", "rediss") or kind not in ("", "sentinel", "cluster"):
        raise ValueError("redis-url: must begin with redis[s]://, redis[s]+sentinel:// or redis[s]+cluster://")
    if not kind:
        return Redis.from_url(url, retry=never, **settings)
    parts = urlsplit(f"{base}://{rest}")
    hosts = [host.rpartition(":") for host in parts.netloc.rpartition("@")[2].split(",")]
    first, tail = f"{hosts[0][0]}:{hosts[0][2]}" if hosts[0][0] else hosts[0][2], f"?{parts.query}"
    secret = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    if kind == "cluster":  # the first node that answers knows the others
        return RedisCluster.from_url(f"{base}://{secret}{first}{tail}", retry=Retry(NoBackoff(), 1), **settings)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("redis-url: with +sentinel, the service's name must follow the hosts: /NAME")
    nodes = [(host or port, int(port) if host else SENTINEL_PORT) for host, _, port in hosts]
    connection = Redis.from_url(f"{base}://{secret}{first}/{database or 0}{tail}", **settings)
    wanted = {k: v for k, v in connection.connection_pool.connection_kwargs.items() if k not in ("host", "port")}
    wanted = {k: v for k, v in wanted.items() if not k.startswith("sentinel_")}
    connection.close()
    sentinel_settings = settings | ({"ssl": True} if base == "rediss" else {})
    return Sentinel(nodes, sentinel_kwargs=sentinel_settings, **wanted).master_for(service, retry=never)
