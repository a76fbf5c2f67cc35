"""A real API server takes what the chart renders."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rendered import CI, ROOT, render

from cluster_mesh import Cluster, control_plane

PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"  # for its definitions
NAMESPACE = "place"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """An API server that knows all kinds of the chart, and a namespace where restricted pod security is enforced."""
    with control_plane(6) as found:
        found.kubectl("apply", "--server-side", "--force-conflicts", "-f", ROOT / "charts/specrouter-crds/templates")
        ran = subprocess.run(
            ["go", "mod", "download", "-json", PROMETHEUS_OPERATOR],
            capture_output=True,
            check=True,
            cwd="/",
            timeout=300,
        )
        crds = Path(json.loads(ran.stdout)["Dir"]) / "example/prometheus-operator-crd"
        for plural in ("servicemonitors", "podmonitors"):
            file = crds / f"monitoring.coreos.com_{plural}.yaml"
            found.kubectl("apply", "--server-side", "--force-conflicts", "-f", file)
            found.kubectl(
                "wait", "--for=jsonpath={.status.acceptedNames.plural}", f"crd/{plural}.monitoring.coreos.com"
            )
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        place = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
        found.kubectl("apply", "-f", "-", given=json.dumps(place))
        yield found


@pytest.mark.parametrize("file", [None, *CI], ids=lambda file: file.stem if isinstance(file, Path) else "default")
def test_the_api_server_takes_every_object(cluster: Cluster, file: Path | None) -> None:
    objects = render(*([file] if file else []), namespace=NAMESPACE)
    for found in objects:  # pods of a Deployment are only warned of; so each is offered by itself as well
        template = found["spec"].get("template") if found["kind"] in ("Deployment", "StatefulSet", "Job") else None
        if template:
            name = f"{found['metadata']['name']}-pod"
            claims = [{"name": "data", "emptyDir": {}}] if found["kind"] == "StatefulSet" else []
            spec = template["spec"] | {"volumes": claims + template["spec"]["volumes"]}
            spec.pop("serviceAccountName", None)  # which is not there yet
            spec.pop("priorityClassName", None)
            meta = {"name": name, "namespace": NAMESPACE, "labels": template["metadata"]["labels"]}
            if not [volume for volume in template["spec"]["volumes"] if volume["name"] == "data"] or not claims:
                objects = [*objects, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}]
    offered = yaml.safe_dump_all(objects)
    said = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", given=offered)
    assert said.count("(server dry run)") == len(objects), said


def test_the_definitions_are_a_chart_of_their_own(cluster: Cluster) -> None:
    """It can take over those that came with the other chart, and leaves them when it goes."""
    arguments = ["--namespace", NAMESPACE, "--take-ownership"]
    cluster.run("helm", "upgrade", "--install", "specrouter-crds", ROOT / "charts/specrouter-crds", *arguments)
    cluster.run("helm", "uninstall", "specrouter-crds", "--namespace", NAMESPACE)
    assert "modelfamilies.specrouter.dev" in cluster.kubectl("get", "crd", "-o", "name")
