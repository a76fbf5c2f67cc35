"""The chart's manifests as Helm renders them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/specrouter"
CI = sorted((CHART / "ci").glob("*-values.yaml"))
CACHE = Path(os.environ.get("CACHE", Path.home() / ".cache/specrouter-cluster"))
Object = dict[str, Any]


@cache
def helm() -> str:
    """The program; built first where it is not in the cache of tests/cluster."""
    script = ROOT / "tests/cluster/build.sh"
    subprocess.run(["bash", script, "helm"], check=True, capture_output=True, timeout=1200)
    return str(CACHE / "bin/helm")


def run_helm(*arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """What Helm says."""
    return subprocess.run([helm(), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=timeout)


def render(
    *files: Path, release: str = "mesh", namespace: str = "place", apis: Sequence[str] = (), **values: Any
) -> list[Object]:
    """The objects of a release with these values files and values (dotted names with __ for the dots), on a cluster
    that has these further APIs."""
    settings = [f"--set-json={name.replace('__', '.')}={json.dumps(value)}" for name, value in values.items()]
    sources = [f"--values={file}" for file in files] + [f"--api-versions={api}" for api in apis]
    ran = run_helm("template", release, CHART, "--namespace", namespace, *sources, *settings)
    assert ran.returncode == 0, ran.stderr
    return [found for found in yaml.safe_load_all(ran.stdout) if found]


def of_kind(objects: list[Object], kind: str, component: str = "") -> list[Object]:
    """Those of a kind, and of a component where one is named."""
    return [
        found
        for found in objects
        if found["kind"] == kind
        and component in ("", found["metadata"].get("labels", {}).get("app.kubernetes.io/component", ""))
    ]


def one(objects: list[Object], kind: str, component: str = "") -> Object:
    """The only one."""
    (found,) = of_kind(objects, kind, component)
    return found


def pods(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Name, metadata and spec of every pod that the objects lead to."""
    for found in objects:
        name = f"{found['kind']} {found['metadata']['name']}"
        if found["kind"] == "Pod":
            yield name, found["metadata"], found["spec"]
        elif found["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = found["spec"]["template"]
            yield name, template["metadata"], template["spec"]
