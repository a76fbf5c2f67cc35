"""Helm, built where it is not there yet; the API server of the operator's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from rendered import helm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Building Helm and the control plane takes minutes the first time: only the tests themselves are timed."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(180, func_only=True))


@pytest.fixture(scope="session", autouse=True)
def program() -> str:
    """Helm."""
    return helm()
