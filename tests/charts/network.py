"""What rendered NetworkPolicies allow, worked out as Kubernetes defines it (networking.k8s.io/v1)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class End:
    """A pod (with labels, in a namespace) or an address outside."""

    name: str
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    namespace: str = "place"
    address: str = "10.0.0.1"
    pod: bool = True

    @property
    def namespace_labels(self) -> dict[str, str]:
        """As the API server sets them."""
        return {"kubernetes.io/metadata.name": self.namespace}


def allowed(policies: list[Object], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether ``source`` may open a connection: both sides must let it."""
    out = _side(policies, source, target, "Egress", port, protocol)
    return out and _side(policies, target, source, "Ingress", port, protocol)


def _side(policies: list[Object], own: End, other: End, direction: str, port: int, protocol: str) -> bool:
    if not own.pod:
        return True
    applying = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == own.namespace
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], own.labels)
    ]
    if not applying:
        return True
    key = "from" if direction == "Ingress" else "to"
    return any(
        _peers(rule.get(key), policy_namespace=own.namespace, other=other) and _ports(rule.get("ports"), port, protocol)
        for spec in applying
        for rule in spec.get(direction.lower(), [])
    )


def _ports(ports: list[Object] | None, port: int, protocol: str) -> bool:
    return not ports or any(one["port"] == port and one["protocol"] == protocol for one in ports)


def _peers(peers: list[Object] | None, *, policy_namespace: str, other: End) -> bool:
    return not peers or any(_peer(peer, policy_namespace, other) for peer in peers)


def _peer(peer: Object, policy_namespace: str, other: End) -> bool:
    if "ipBlock" in peer:
        address = ipaddress.ip_address(other.address)
        inside = address in ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return inside and not any(address in ipaddress.ip_network(block) for block in peer["ipBlock"].get("except", []))
    if not other.pod:
        return False
    if "namespaceSelector" in peer:
        if not _selects(peer["namespaceSelector"], other.namespace_labels):
            return False
    elif other.namespace != policy_namespace:
        return False
    return _selects(peer.get("podSelector", {}), other.labels)


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    for wanted in selector.get("matchExpressions", []):
        if wanted["operator"] != "Exists":
            raise NotImplementedError(wanted["operator"])
        if wanted["key"] not in labels:
            return False
    wanted_labels: dict[str, str] = selector.get("matchLabels", {})
    return wanted_labels.items() <= labels.items()
