"""Families and policies for tests."""

from __future__ import annotations

from typing import Any

from kube import NOWHERE

from specrouter_operator.resource import Object


def level(name: str, **more: Any) -> Object:
    """A stub level that no node takes."""
    return {"name": name, "engine": "stub", "nodeSelector": dict(NOWHERE), **more}


def family(*names: str, backend: str = "Deployment", **more: Any) -> Object:
    """The spec of a family of stub levels."""
    return {"backend": backend, "levels": [level(name) for name in names or ("draft", "target")], **more}


def policy(name: str, **more: Any) -> Object:
    """The spec of a policy of the family ``name``."""
    return {"familyRef": {"name": name}, **more}
