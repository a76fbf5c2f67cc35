"""Values: what is written about them is what they are, and wrong ones are refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered import CHART, CI, ROOT, run_helm

REF: dict[str, Any] = {"name": "a", "namespace": "b"}
LEVEL: dict[str, Any] = {"name": "target", "engine": "stub"}
# What is wrong: the values, and what the refusal must name.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"router": {"replica": 3}}, "'replica' not allowed"),
    ({"routers": {}}, "'routers' not allowed"),
    ({"nameOverride": "Not_a_name"}, "/nameOverride"),
    ({"fullnameOverride": "-x"}, "/fullnameOverride"),
    ({"commonLabels": {"team": 3}}, "/commonLabels/team"),
    ({"commonLabels": {"team": "a b"}}, "/commonLabels/team"),
    ({"commonLabels": []}, "/commonLabels"),
    ({"global": {"imageRegistry": "https://registry"}}, "/global/imageRegistry"),
    ({"global": {"imagePullSecrets": ["registry"]}}, "/global/imagePullSecrets/0"),
    ({"global": {"imagePullSecrets": [{}]}}, "/global/imagePullSecrets/0"),
    ({"global": {"registry": "x"}}, "'registry' not allowed"),
    ({"family": {"create": "yes"}}, "/family/create"),
    ({"family": {"name": "My_Family"}}, "/family/name"),
    ({"family": {"name": ""}}, "/family/name"),
    ({"family": {"spec": {"levels": []}}}, "/family/spec/levels"),
    ({"family": {"spec": {"level": []}}}, "'level' not allowed"),
    ({"family": {"spec": {"levels": [LEVEL | {"engine": "tensorflow"}]}}}, "/family/spec/levels/0/engine"),
    ({"family": {"spec": {"levels": [LEVEL | {"gpu": 1}]}}}, "'gpu' not allowed"),
    ({"family": {"spec": {"levels": [LEVEL | {"gpus": -1}]}}}, "/family/spec/levels/0/gpus"),
    ({"family": {"spec": {"levels": [LEVEL | {"weight": 101}]}}}, "/family/spec/levels/0/weight"),
    ({"family": {"spec": {"levels": [LEVEL | {"replicas": {"min": -1}}]}}}, "/family/spec/levels/0/replicas/min"),
    ({"family": {"spec": {"levels": [LEVEL | {"device": "gpu"}]}}}, "/family/spec/levels/0/device"),
    ({"family": {"spec": {"levels": [LEVEL | {"storageUri": "models"}]}}}, "/family/spec/levels/0/storageUri"),
    ({"family": {"spec": {"backend": "Knative", "levels": [LEVEL]}}}, "/family/spec/backend"),
    ({"family": {"serviceAccount": {"annotations": {"a": 1}}}}, "/family/serviceAccount/annotations/a"),
    ({"policy": {"spec": {"familyRef": {"name": "x"}}}}, "'familyRef' not allowed"),
    ({"policy": {"spec": {"weights": {"pins": {"mid": 101}}}}}, "/policy/spec/weights/pins/mid"),
    ({"policy": {"spec": {"routing": {"mode": "fast"}}}}, "/policy/spec/routing/mode"),
    ({"policy": {"spec": {"scaling": {"mode": "auto"}}}}, "/policy/spec/scaling/mode"),
    ({"level": {"image": {"tag": "v 1"}}}, "/level/image/tag"),
    ({"level": {"image": {"digest": "abc"}}}, "/level/image/digest"),
    ({"level": {"image": {"repository": "Specrouter/Level"}}}, "/level/image/repository"),
    ({"router": {"replicas": -1}}, "/router/replicas"),
    ({"router": {"replicas": "2"}}, "/router/replicas"),
    ({"router": {"image": {"pullPolicy": "Sometimes"}}}, "/router/image/pullPolicy"),
    ({"router": {"autoscaling": {"minReplicas": 0}}}, "/router/autoscaling/minReplicas"),
    ({"router": {"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 2}}}, "autoscaling.minReplicas"),
    ({"router": {"autoscaling": {"enabled": True, "cpuUtilization": 0}}}, "autoscaling.cpuUtilization"),
    ({"router": {"podDisruptionBudget": {"maxUnavailable": "half"}}}, "/router/podDisruptionBudget/maxUnavailable"),
    ({"router": {"resources": {"limits": {"memory": "lots"}}}}, "/router/resources/limits/memory"),
    ({"router": {"resources": None}}, "missing property 'resources'"),
    ({"router": {"drainSeconds": -1}}, "/router/drainSeconds"),
    ({"router": {"extraEnv": [{"value": "x"}]}}, "/router/extraEnv/0"),
    ({"router": {"tolerations": [{"effect": "Never"}]}}, "/router/tolerations/0/effect"),
    ({"router": {"affinity": {"node": {}}}}, "'node' not allowed"),
    ({"router": {"topologySpreadConstraints": [{"topologyKey": "zone"}]}}, "/router/topologySpreadConstraints/0"),
    ({"router": {"service": {"type": "External"}}}, "/router/service/type"),
    ({"router": {"service": {"httpPort": 70000}}}, "/router/service/httpPort"),
    ({"router": {"orphans": "keep"}}, "/router/orphans"),
    ({"operator": {"replicas": 0}}, "/operator/replicas"),
    ({"operator": {"priorityClassName": "High Priority"}}, "/operator/priorityClassName"),
    ({"redis": {"url": "http://redis"}}, "/redis/url"),
    ({"redis": {"url": "redis://:secret@redis"}}, "/redis/url"),
    ({"redis": {"url": "redis://redis"}}, "redis.url"),
    ({"redis": {"bundled": {"enabled": False}}}, "redis.url"),
    ({"redis": {"existingSecret": {"name": "a"}}}, "redis.existingSecret.name"),
    (
        {"redis": {"url": "redis://r", "tls": {"secretName": "t"}, "bundled": {"enabled": False}}},
        "redis.tls.secretName",
    ),
    ({"redis": {"bundled": {"persistence": {"size": "big"}}}}, "/redis/bundled/persistence/size"),
    ({"redis": {"bundled": {"password": "with space"}}}, "/redis/bundled/password"),
    ({"gateway": {"enabled": True}}, "gateway.parentRefs"),
    ({"gateway": {"enabled": True, "create": True}}, "gateway.className"),
    ({"gateway": {"enabled": True, "parentRefs": [REF], "rest": {"hostname": ""}}}, "gateway.rest.hostname"),
    (
        {"gateway": {"enabled": True, "parentRefs": [REF], "rest": {"hostname": "a.b"}, "grpc": {"hostname": "a.b"}}},
        "gateway.grpc.hostname",
    ),
    ({"gateway": {"parentRefs": [{"namespace": "a"}]}}, "/gateway/parentRefs/0"),
    ({"gateway": {"rest": {"hostname": "under_score.com"}}}, "/gateway/rest/hostname"),
    ({"ingress": {"enabled": True, "rest": {"hostname": ""}}}, "ingress.rest.hostname"),
    ({"networkPolicy": {"clients": [{}]}}, "/networkPolicy/clients/0"),
    ({"networkPolicy": {"apiServer": {"cidrs": []}}}, "/networkPolicy/apiServer/cidrs"),
    ({"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}}, "/networkPolicy/apiServer/cidrs/0"),
    ({"networkPolicy": {"redis": {"ports": ["6379"]}}}, "/networkPolicy/redis/ports/0"),
    ({"redis": {"kvCheckpoints": {"enabled": 1}}}, "/redis/kvCheckpoints/enabled"),
    (
        {"redis": {"existingSecret": {"name": "a"}, "bundled": {"enabled": False}, "kvCheckpoints": {"enabled": True}}},
        "redis.kvCheckpoints.existingSecret",
    ),
    (
        {
            "redis": {
                "url": "rediss://r",
                "tls": {"secretName": "t"},
                "bundled": {"enabled": False},
                "kvCheckpoints": {"enabled": True},
            }
        },
        "redis.kvCheckpoints.existingSecret",
    ),
    ({"tls": {"mode": "mutual"}}, "/tls/mode"),
    ({"tls": {"operatorSecretName": "o"}}, "tls.operatorSecretName"),
    ({"otel": {"existingSecret": "A b"}}, "/otel/existingSecret"),
    ({"tls": {"mode": "secrets", "routerSecretName": "a"}}, "tls.levelSecretName"),
    ({"tls": {"mode": "secrets", "levelSecretName": "a"}}, "tls.routerSecretName"),
    ({"tls": {"mode": "certManager"}}, "tls.issuerRef.name"),
    ({"tls": {"routerPorts": True}}, "tls.routerPorts"),
    ({"tls": {"issuerRef": {"kind": "Authority"}}}, "/tls/issuerRef/kind"),
    ({"tls": {"duration": "1y"}}, "/tls/duration"),
    ({"otel": {"endpoint": "collector:4317"}}, "/otel/endpoint"),
    ({"otel": {"intervalMs": 10}}, "/otel/intervalMs"),
    ({"monitoring": {"serviceMonitor": {"interval": "often"}}}, "/monitoring/serviceMonitor/interval"),
    ({"priorityClasses": {"router": 2_000_000_000}}, "/priorityClasses/router"),
    ({"tests": {"tokens": 0}}, "/tests/tokens"),
    ({"extraManifests": {"a": 1}}, "/extraManifests"),
]


@pytest.mark.parametrize(("values", "named"), WRONG, ids=[named for _, named in WRONG])
def test_wrong_values_are_refused_by_name(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    ran = run_helm("template", "mesh", CHART, "--values", file)
    assert ran.returncode != 0, f"accepted: {values}"
    assert named in ran.stderr.replace(".spec.levels", "/spec/levels"), ran.stderr


@pytest.mark.parametrize("file", [None, *CI], ids=lambda file: file.stem if file else "default")
def test_lint_finds_nothing(file: Path | None) -> None:
    ran = run_helm("lint", "--strict", CHART, *([f"--values={file}"] if file else []))
    assert ran.returncode == 0, ran.stdout
    ran = run_helm("lint", "--strict", ROOT / "charts/specrouter-crds")
    assert ran.returncode == 0, ran.stdout


def test_readme_and_schema_are_those_of_the_values() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "charts/document.py", "--check"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_every_value_is_used() -> None:
    """A value that no template reads would be a promise that nothing keeps."""
    templates = "\n".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def leaves(at: dict[str, Any], path: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = []
        for key, value in at.items():
            here = (*path, key)
            nested = isinstance(value, dict) and value and key not in ("spec", "resources")
            found += leaves(value, here) if nested else [here]
        return found

    for path in leaves(values, ()):
        assert f".{path[-1]}" in templates or path[-1] in ("rest", "grpc") or path[0] == "priorityClasses", path
