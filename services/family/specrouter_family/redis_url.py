"""Where Redis is, from its URL.

    redis://[user:password@]host[:port][/database]                  one server
    redis+sentinel://[...@]host[:port][,host[:port]...]/service[/database]
                                                                    the master that these sentinels name
    redis+cluster://[...@]host[:port][,host[:port]...]              a cluster, of which these are some nodes

With ``rediss`` for ``redis``: TLS. Query: ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` (paths of PEM files),
``ssl_check_hostname`` (true, false); with sentinels: ``sentinel_username``, ``sentinel_password`` (else they are asked
without any). User, password and query values are percent-encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis
import redis.asyncio.cluster
import redis.asyncio.retry
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

Kind = Literal["single", "sentinel", "cluster"]

KINDS: dict[str, Kind] = {"redis": "single", "redis+sentinel": "sentinel", "redis+cluster": "cluster"}
PORTS: dict[Kind, int] = {"single": 6379, "sentinel": 26379, "cluster": 6379}
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
MAX_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """What a URL says. Its text without secrets is ``address``."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    service: str  # of the sentinels
    settings: dict[str, Any] = field(repr=False)  # of every connection
    sentinel_settings: dict[str, Any] = field(repr=False)

    @property
    def address(self) -> str:
        """For people."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return hosts if self.kind == "single" else f"{self.kind} {hosts}{f'/{self.service}' if self.service else ''}"

    def client(self, seconds: float) -> Any:
        """An asyncio client of redis-py that waits ``seconds`` for one answer and leaves trying again to its user."""
        never = redis.asyncio.retry.Retry(NoBackoff(), 0)
        if self.kind == "cluster":
            nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in self.hosts]
            once = redis.asyncio.retry.Retry(NoBackoff(), 1)  # with 0 it never learns that a slot has moved
            return redis.asyncio.RedisCluster(
                startup_nodes=nodes, retry=once, require_full_coverage=False, **_times(seconds), **self.settings
            )
        settings = _times(seconds) | self.settings | {"retry": never, "max_connections": MAX_CONNECTIONS}
        if self.kind == "sentinel":
            asked = _times(seconds) | self.sentinel_settings | {"retry": never}
            return redis.asyncio.Sentinel(list(self.hosts), sentinel_kwargs=asked, **settings).master_for(self.service)
        (host, port) = self.hosts[0]
        return redis.asyncio.Redis(host=host, port=port, **settings)

    def blocking_client(self, seconds: float) -> Any:
        """The same, for threads."""
        if self.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in self.hosts]
            once = Retry(NoBackoff(), 1)
            return redis.RedisCluster(
                startup_nodes=nodes, retry=once, require_full_coverage=False, **_times(seconds), **self.settings
            )
        never = Retry(NoBackoff(), 0)
        settings = _times(seconds) | self.settings | {"retry": never}
        if self.kind == "sentinel":
            asked = _times(seconds) | self.sentinel_settings | {"retry": never}
            return redis.Sentinel(list(self.hosts), sentinel_kwargs=asked, **settings).master_for(self.service)
        (host, port) = self.hosts[0]
        return redis.Redis(host=host, port=port, **settings)


def _times(seconds: float) -> dict[str, float]:
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds}


def parse(url: str) -> RedisUrl:
    """Raises ValueError, without anything secret in it."""
    try:
        parts = urlsplit(url)
        scheme, tls = parts.scheme.replace("rediss", "redis"), parts.scheme.startswith("rediss")
        kind = KINDS[scheme]
    except (ValueError, KeyError):
        schemes = ", ".join(f"{name}://, {name.replace('redis', 'rediss')}://" for name in KINDS)
        raise ValueError(f"redis_url: must begin with one of {schemes}") from None
    name, at, hosts = parts.netloc.rpartition("@")
    settings: dict[str, Any] = {}
    if at:
        user, colon, password = name.partition(":")
        if user:
            settings["username"] = unquote(user)
        if colon:
            settings["password"] = unquote(password)
    query = _query(parts, kind, tls)
    sentinel = {key.removeprefix("sentinel_"): query.pop(key) for key in list(query) if key.startswith("sentinel_")}
    secured = {"ssl": True, **query} if tls else {}
    service, database = _path(parts, kind)
    if database:
        settings["db"] = database
    return RedisUrl(kind, _hosts(hosts, kind), service, settings | secured, sentinel | secured)


def _hosts(text: str, kind: Kind) -> tuple[tuple[str, int], ...]:
    found = []
    for one in text.split(","):
        try:
            parts = urlsplit(f"//{one}")
            host, port = parts.hostname, parts.port or PORTS[kind]
        except ValueError:
            raise ValueError("redis_url: a port must be a number from 1 to 65535") from None
        if not host:
            raise ValueError("redis_url: a host is missing")
        found.append((host, port))
    if kind == "single" and len(found) > 1:
        raise ValueError("redis_url: several hosts only with +sentinel or +cluster")
    return tuple(found)


def _path(parts: SplitResult, kind: Kind) -> tuple[str, int]:
    """Service and database."""
    names = [unquote(name) for name in parts.path.split("/") if name]
    service = ""
    if kind == "sentinel":
        if not names:
            raise ValueError("redis_url: with +sentinel, the service's name must follow the hosts: /NAME")
        service = names.pop(0)
    if kind == "cluster" and names not in ([], ["0"]):
        raise ValueError("redis_url: a cluster has database 0 only")
    if len(names) > 1 or not all(name.isascii() and name.isdigit() for name in names):
        raise ValueError("redis_url: the database must be a number")
    return service, int(names[0]) if names else 0


def _query(parts: SplitResult, kind: Kind, tls: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in FILES and tls:
            found[name] = value
        elif name == "ssl_check_hostname" and tls:
            if value not in ("true", "false"):
                raise ValueError(f"redis_url: {name} must be true or false")
            found[name] = value == "true"
        elif name in ("sentinel_username", "sentinel_password") and kind == "sentinel":
            found[name] = value
        else:
            known = [*(FILES if tls else ()), *(("ssl_check_hostname",) if tls else ())]
            known += ["sentinel_username", "sentinel_password"] if kind == "sentinel" else []
            hint = f"known here: {', '.join(known)}" if known else "none is known here (TLS needs rediss://)"
            raise ValueError(f"redis_url: an unknown query field; {hint}")
    return found
