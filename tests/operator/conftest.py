"""A control plane for the session, a namespace for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from control_plane import control_plane
from kube import Kubelet, Place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting the control plane may take minutes (building it, more): only the tests themselves are timed. With
    xdist's --dist loadgroup, one worker runs them all, so that it is started once."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(120, func_only=True))
            item.add_marker(pytest.mark.xdist_group("operator"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """Kubeconfig of the administrator. Pods become ready by themselves."""
    with control_plane() as kubeconfig:
        kubelet = Kubelet(kubeconfig)
        kubelet.start()
        yield kubeconfig
        kubelet.stop()


@pytest.fixture
def place(cluster: Path, tmp_path: Path) -> Iterator[Place]:
    """A namespace."""
    made = Place(cluster, tmp_path)
    yield made
    made.close()
