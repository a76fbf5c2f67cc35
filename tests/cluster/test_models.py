"""Where weights come from on a real cluster: volumes, and what KServe's own storage initializer fetches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cluster_mesh import CACHE, SCRIPTS, Cluster, Release, until

FOLDER = CACHE / "models"
VOCAB = 96
PROMPT, TOKENS = (5, 17, 33, 2, 60), 24
AS = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def made() -> None:
    """A volume's contents: the folder of a model with random weights, and the same as an archive."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    torch.manual_seed(11)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, max_position_embeddings=4096, eos_token_id=2, **sizes))
    for weight in model.parameters():
        weight.data += 0.15 * torch.randn(weight.shape)
    model.save_pretrained(FOLDER / "tiny")
    words = {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(VOCAB)}, "unk_token": "t0"}
    tokenizer = {"version": "1.0", "model": words, "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": []}
    (FOLDER / "tiny/tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.make_archive(str(FOLDER / "tiny"), "zip", FOLDER / "tiny")
    for path in [FOLDER, *FOLDER.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def volume(release: Release) -> list[dict[str, Any]]:
    """The folder as a claim ``models``, and a pod that serves it by HTTP."""
    claim = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "by-hand",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    of_node = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "by-hand",
        "hostPath": {"path": str(FOLDER), "type": "Directory"},
        "claimRef": {"name": "models", "namespace": release.namespace},
    }
    container = {
        "name": "files",
        "image": "docker.io/specrouter/router:0.1.0",
        "command": ["python", "-m", "http.server", "8000", "--directory", "/models"],
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    source = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
    service = {"selector": {"app": "files"}, "ports": [{"port": 8000}]}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "tiny-models"}, "spec": of_node},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": claim},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "files"}, "spec": service},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "files", "labels": {"app": "files"}},
            "spec": {"containers": [container], "volumes": [source], "securityContext": AS},
        },
    ]


@pytest.fixture(scope="module")
def release(real_cluster: Cluster) -> Iterator[Release]:
    if "specrouter" not in real_cluster.kubectl("get", "nodes", "-o", "name"):
        pytest.skip("the models are in a folder of the throwaway cluster's node")
    hosts = {"rest_host": "rest.models.test", "grpc_host": "grpc.models.test"}
    found = Release(real_cluster, SCRIPTS / "models-values.yaml", namespace="models", **hosts)
    made()
    found.prepare()
    real_cluster.kubectl("apply", "-f", SCRIPTS / "storage-container.yaml")
    found.kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": volume(found)}))
    found.install()
    yield found
    found.uninstall()
    real_cluster.kubectl("delete", "namespace", "models", "--wait=false")
    real_cluster.kubectl("delete", "pv", "tiny-models", "--wait=false")


@pytest.mark.timeout(360)  # torch and three levels on a small node
def test_weights_come_from_a_volume_and_by_kserve(release: Release) -> None:
    def ask(*chain: str) -> str:
        body = {"specrouter": {"chain": chain}} if chain else {}
        return release.ask(PROMPT, TOKENS, family="tiny", seed=3, temperature=0.8, **body)

    until(ask, 240)
    release.kubectl("wait", "--for=condition=Ready", "--timeout=120s", "mf/tiny")
    assert ask() == ask("target") == ask("draft", "mid", "target")


@pytest.fixture
def clouds(release: Release) -> Iterator[dict[str, str]]:
    """A family of levels that run nowhere, whose weights are in clouds. Level -> where."""
    uris = {"s3": "s3://bucket/model", "hub": "hf://org/model", "image": "oci://registry.example.com/model:1"}
    levels = [
        {"name": name, "storageUri": uri, "nodeSelector": {"there": "is-none"}, "threads": 1}
        for name, uri in uris.items()
    ]
    family = {"apiVersion": "specrouter.dev/v1alpha1", "kind": "ModelFamily", "metadata": {"name": "clouds"}}
    release.kubectl("apply", "-f", "-", given=json.dumps(family | {"spec": {"levels": levels}}))
    yield uris
    release.kubectl("delete", "mf", "clouds", "--timeout=120s")


def test_kserve_fetches_what_is_not_on_a_volume(release: Release, clouds: dict[str, str]) -> None:
    """Of clouds there are only the pods that would fetch: names outside do not resolve here."""

    def fetched(level: str) -> list[str]:
        pods = release.get("pods", "-l", f"specrouter.dev/family=clouds,specrouter.dev/level={level}")["items"]
        return [
            argument for pod in pods for container in pod["spec"]["initContainers"] for argument in container["args"]
        ]

    def as_said(level: str) -> bool:
        return fetched(level) == [clouds[level], "/mnt/models"]

    for level in ("s3", "hub"):
        until(partial(as_said, level), 60)


def test_an_image_with_weights_is_not_for_restricted_namespaces(release: Release, clouds: dict[str, str]) -> None:
    """KServe's container of it has no security context; docs/install.md says so."""

    def said() -> str:
        return release.kubectl("get", "isvc", "clouds-image", "-o", "jsonpath={.status.conditions[*].message}")

    until(lambda: 'violates PodSecurity "restricted' in said(), 60)
