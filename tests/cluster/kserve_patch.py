#!/usr/bin/env python3
"""Adapt KServe's own manifests (JSON on the standard input): webhooks, default mode, image, no ingress objects."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SERVICE = {"name": "kserve-webhook-server-service", "namespace": "kserve"}
Object = dict[str, Any]


def objects(text: str) -> Iterator[Object]:
    """The objects of a text of JSON values; those of lists one by one."""
    decoder, at = json.JSONDecoder(), 0
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        found, at = decoder.raw_decode(text, at)
        yield from found["items"] if found["kind"] == "List" else [found]


def patch_webhooks(found: Object, ca: str, port: int | None) -> None:
    """Name the certificate's authority, and this machine's address where the manager runs beside the cluster."""
    for webhook in found["webhooks"]:
        path = webhook["clientConfig"]["service"]["path"]
        place: Object = (
            {"service": SERVICE | {"path": path}} if port is None else {"url": f"https://127.0.0.1:{port}{path}"}
        )
        webhook["clientConfig"] = {"caBundle": ca} | place


def patch_settings(found: Object, version: str) -> None:
    """Standard mode, no ingress objects, small default requests: the node has 2 cores."""
    data = found["data"]
    data.pop("_example", None)
    small = {"cpuLimit": "1", "memoryLimit": "1Gi", "cpuRequest": "50m", "memoryRequest": "64Mi"}
    for key, change in {
        "deploy": {"defaultDeploymentMode": "Standard"},
        "ingress": {"disableIngressCreation": True},
        "inferenceService": {"resource": small},
        "storageInitializer": {"image": f"docker.io/kserve/storage-initializer:{version}"},
    }.items():
        data[key] = json.dumps(json.loads(data[key]) | change)


def patch_manager(found: Object, version: str) -> None:
    """An image that is on the node, and no waiting: its own probe starts after 30 seconds, its CPU limit is 100m."""
    container = found["spec"]["template"]["spec"]["containers"][0]
    container |= {"image": f"docker.io/kserve/kserve-controller:{version}", "imagePullPolicy": "Never"}
    container["resources"] = {"requests": {"cpu": "50m", "memory": "100Mi"}, "limits": {"memory": "500Mi"}}
    container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 60}


def main() -> None:
    """Read, change, write one List."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--webhook-port", type=int, help="the manager runs beside the cluster; else in it")
    given = parser.parse_args()
    ca = base64.b64encode(given.ca.read_bytes()).decode()
    kept = []
    for found in objects(sys.stdin.read()):
        kind, name = found["kind"], found["metadata"]["name"]
        if kind == "Secret":
            continue  # an empty placeholder
        if kind.endswith("WebhookConfiguration"):
            patch_webhooks(found, ca, given.webhook_port)
        if kind == "ConfigMap" and name == "inferenceservice-config":
            patch_settings(found, given.version)
        if kind == "Deployment":
            patch_manager(found, given.version)
        kept.append(found)
    json.dump({"apiVersion": "v1", "kind": "List", "items": kept}, sys.stdout)


main()
