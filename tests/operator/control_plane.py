"""A real API server with the real KServe controller: the one $KUBECONFIG names, or a throwaway one for the session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "cluster"
CRDS = ROOT / "charts" / "specrouter-crds" / "templates"
CACHE = Path(os.environ.get("CACHE", str(Path.home() / ".cache/specrouter-cluster")))  # of the scripts
NUMBER = "7"  # of the throwaway cluster, so that it can stand beside others
PARTS = "kube-apiserver kube-controller-manager kube-scheduler kubectl"
BUILD_S, UP_S, DOWN_S = 2400, 300, 60


@contextmanager
def control_plane() -> Iterator[Path]:
    """The kubeconfig of a cluster administrator, with our definitions in place."""
    given = os.environ.get("KUBECONFIG")
    if given:
        apply_definitions(Path(given))
        yield Path(given)
        return
    if shutil.which("go") is None and not (CACHE / "bin" / "kserve-manager").is_file() and not os.environ.get("CI"):
        pytest.skip("the operator's tests need an API server: set KUBECONFIG, or install Go to build one")
    environment = {**os.environ, "CLUSTER": NUMBER, "KSERVE_MODE": "host", "K8S_PARTS": PARTS}
    _script("build.sh", ["deps", "k8s", "etcd", "kserve"], environment, BUILD_S)
    try:
        _script("up.sh", ["control", "kserve"], environment, UP_S)
        kubeconfig = CACHE / f"run{NUMBER}" / "admin.kubeconfig"
        apply_definitions(kubeconfig)
        yield kubeconfig
    finally:
        _script("down.sh", [], environment, DOWN_S)


def apply_definitions(kubeconfig: Path) -> None:
    """Our custom resource definitions, served."""
    kubectl(kubeconfig, "apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    for plural in ("modelfamilies", "routingpolicies"):
        condition = ("--for=jsonpath={.status.conditions[?(@.type=='Established')].status}=True", "--timeout=30s")
        kubectl(kubeconfig, "wait", *condition, f"crd/{plural}.specrouter.dev")


def kubectl(kubeconfig: Path, *arguments: str, check: bool = True) -> str:
    """What kubectl prints. Raises AssertionError with its errors when it fails."""
    program = CACHE / "bin" / "kubectl"
    command = [str(program) if program.is_file() else "kubectl", f"--kubeconfig={kubeconfig}", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0 or not check, f"{' '.join(command[2:])}: {ran.stderr}"
    return ran.stdout if check else ran.stdout + ran.stderr


def _script(name: str, arguments: list[str], environment: dict[str, str], seconds: int) -> None:
    command = ["bash", str(SCRIPTS / name), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    assert ran.returncode == 0 or name == "down.sh", f"{name}: {ran.stdout[-2000:]}{ran.stderr[-2000:]}"
