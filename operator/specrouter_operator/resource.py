"""The Kubernetes resources that the operator reads and writes, and where the API server has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specrouter_operator.schema import GROUP, VERSION

Object = dict[str, Any]  # one Kubernetes object, as its JSON


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of namespaced objects."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str, name: str = "", part: str = "") -> str:
        """URL path of all objects in a namespace, of one, or of one's subresource (``part``)."""
        root = "apis" if "/" in self.api_version else "api"
        path = f"/{root}/{self.api_version}/namespaces/{namespace}/{self.plural}"
        return "/".join([path, *(piece for piece in (name, part) if piece)])


FAMILY = Resource(f"{GROUP}/{VERSION}", "ModelFamily", "modelfamilies")
POLICY = Resource(f"{GROUP}/{VERSION}", "RoutingPolicy", "routingpolicies")
INFERENCE_SERVICE = Resource("serving.kserve.io/v1beta1", "InferenceService", "inferenceservices")
DEPLOYMENT = Resource("apps/v1", "Deployment", "deployments")
SERVICE = Resource("v1", "Service", "services")
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps")
BUDGET = Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
LEASE = Resource("coordination.k8s.io/v1", "Lease", "leases")
EVENT = Resource("v1", "Event", "events")

FAMILY_LABEL, LEVEL_LABEL = f"{GROUP}/family", f"{GROUP}/level"


def name_of(item: Mapping[str, Any]) -> str:
    """An object's name."""
    return str(item["metadata"]["name"])


def family_of(item: Mapping[str, Any]) -> str:
    """The family that an object of ours (or a Deployment that KServe made for one) belongs to; "" if none."""
    return str(item["metadata"].get("labels", {}).get(FAMILY_LABEL, ""))
