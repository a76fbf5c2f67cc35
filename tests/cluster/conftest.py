"""The cluster that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster_mesh import Cluster, cluster


@pytest.fixture(scope="session")
def throwaway() -> Iterator[Cluster]:
    with cluster() as found:
        yield found
