"""The command as a process: its rights, its probes, its words."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from families import family, policy
from kube import Place, until

from specrouter_operator.resource import FAMILY, LEASE, POLICY

COMMAND = [sys.executable, "-c", "from specrouter_operator.scripts import main; main()"]


@contextmanager
def running(place: Place, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`specrouter-operator run` with the operator's own rights, and the address of its health server."""
    log = folder / "operator.log"
    options = {"namespace": place.name, "kubeconfig": place.operator_kubeconfig(), "port": 0, "otlp-port": 0}
    arguments = ["run", *(f"--{name}={value}" for name, value in options.items())]
    with log.open("wb") as out:
        process = subprocess.Popen([*COMMAND, *arguments], stdout=out, stderr=out)
    try:
        found = until("the port", lambda: re.search(r"health on port (\d+)", log.read_text()))
        yield process, f"http://127.0.0.1:{found[1]}"
    finally:
        process.kill()
        process.wait(10)


def explain(place: Place, name: str) -> subprocess.CompletedProcess[str]:
    """`specrouter-operator explain-policy`."""
    arguments = ["explain-policy", name, f"--namespace={place.name}", f"--kubeconfig={place.kubeconfig}"]
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_command_serves_health_and_metrics_and_gives_its_lease_back(place: Place, tmp_path: Path) -> None:
    with running(place, tmp_path) as (process, url):
        assert httpx.get(f"{url}/healthz").status_code == 200
        until("ready", lambda: httpx.get(f"{url}/readyz").status_code == 200)
        assert httpx.get(f"{url}/else").status_code == 404
        place.create("ModelFamily", "demo", family())
        place.create("RoutingPolicy", "demo", policy("demo", weights={"pins": {"draft": 40}}))
        place.ready(FAMILY, "demo")
        place.ready(POLICY, "demo")
        text = httpx.get(f"{url}/metrics").text
        assert "specrouter_operator_leads 1.0" in text
        assert 'specrouter_operator_writes_total{kind="Deployment"} 2.0' in text
        assert re.search(r'specrouter_operator_reconcile_seconds_count\{outcome="ok"\} [1-9]', text)
        assert 'outcome="error"' not in text
        assert not re.search(r'requests_total\{status="403"', text), "a right is missing"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    lease = place.get(LEASE, "specrouter-operator")
    assert lease is not None and lease["spec"]["holderIdentity"] == ""
    log = (tmp_path / "operator.log").read_text()
    assert "Traceback" not in log and place.token not in log


def test_explain_policy(place: Place) -> None:
    place.operator()
    place.create("ModelFamily", "demo", family())
    place.create("RoutingPolicy", "demo", policy("demo", weights={"pins": {"draft": 40}}))
    place.ready(FAMILY, "demo")
    until("weights", lambda: (place.get(POLICY, "demo") or {}).get("status", {}).get("weights"))
    ran = explain(place, "demo")
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"draft +40 +pinned +1 +1 +1 to 1", ran.stdout)
    assert "pinned by the policy" in ran.stdout and re.search(r"SignalsFresh +False +Stale", ran.stdout)
    again = ["explain-policy", "demo", f"--namespace={place.name}", f"--kubeconfig={place.kubeconfig}"]
    code = "from specrouter_local.scripts import main; main()"
    same = subprocess.run([sys.executable, "-c", code, *again], capture_output=True, text=True, timeout=60, check=False)
    assert same.stdout.splitlines()[:4] == ran.stdout.splitlines()[:4]
    ran = explain(place, "none")
    assert ran.returncode == 2 and "there is no RoutingPolicy 'none'" in ran.stderr and "Traceback" not in ran.stderr


def test_without_kserve_a_family_says_so(place: Place) -> None:
    """An API server without the resource is what a family for KServe may meet."""
    operator = place.operator()

    from specrouter_operator.resource import INFERENCE_SERVICE  # noqa: PLC0415

    until("synced", operator.ready)
    operator._world.mirrors[INFERENCE_SERVICE].missing = True
    place.create("ModelFamily", "demo", family(backend="KServe"))

    def said() -> bool:
        conditions = (place.get(FAMILY, "demo") or {}).get("status", {}).get("conditions", [])
        return any(one["reason"] == "KServeMissing" and one["type"] == "Ready" for one in conditions)

    until("the reason", said)
