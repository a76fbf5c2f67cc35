"""One cluster for all tests of the chart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster_mesh import Cluster, cluster


@pytest.fixture(scope="session")
def real_cluster() -> Iterator[Cluster]:
    """The one that $KUBECONFIG names, else the throwaway one."""
    with cluster() as found:
        yield found
