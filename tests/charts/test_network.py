"""Who may speak with whom, by the rendered policies: every path that exists, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from network import End, allowed
from rendered import CI, Object, of_kind, pods, render

STRANGER = End("stranger", {"app": "x"})
GATEWAY = End("gateway", {"app": "traefik"}, "gateways")
PROMETHEUS = End("prometheus", {"app": "prometheus"}, "monitoring")
DNS = End("dns", {"k8s-app": "kube-dns"}, "kube-system")
API = End("api", address="10.1.2.3", pod=False)
WEB = End("web", address="93.184.216.34", pod=False)
REDIS = End("external redis", {"app": "redis"}, "redis")
PORTS = (53, 443, 4317, 6379, 6443, 8000, 8001, 8080, 8081, 9000, 22)
Path4 = tuple[str, str, int, str]


def ends(objects: list[Object], family: str) -> dict[str, End]:
    """The pods of the release by component, a level's, and those outside."""
    made = {}
    for _, meta, _ in pods(objects):
        component = meta["labels"]["app.kubernetes.io/component"]
        made[component] = End(component, meta["labels"])
    labels = {"app.kubernetes.io/part-of": "specrouter", "specrouter.dev/family": family, "specrouter.dev/level": "x"}
    made["level"] = End("level", labels)
    made["other level"] = End("other level", labels | {"specrouter.dev/family": "another"})
    for end in (STRANGER, GATEWAY, PROMETHEUS, DNS, API, WEB, REDIS):
        made[end.name] = end
    return made


def open_paths(objects: list[Object], family: str = "stub") -> set[Path4]:
    """Every path that the policies leave open of which one end is the release's."""
    policies, found = of_kind(objects, "NetworkPolicy"), ends(objects, family)
    own = {"router", "operator", "redis", "level", "test", "removal"} & found.keys()
    return {
        (source.name, target.name, port, protocol)
        for source in found.values()
        for target in found.values()
        if source is not target and {source.name, target.name} & own
        for port in PORTS
        for protocol in ("TCP", "UDP")
        if allowed(policies, source, target, port, protocol)
    }


def everywhere(found: dict[str, End], source: str, port: int, *, udp: bool = False) -> set[Path4]:
    """From one to all that no policy protects."""
    outside = {end.name for end in (STRANGER, GATEWAY, PROMETHEUS, DNS, API, WEB, REDIS)} | {"other level"}
    protocols = ("TCP", "UDP") if udp else ("TCP",)
    return {(source, name, port, protocol) for name in outside & found.keys() for protocol in protocols}


def test_by_default_the_paths_that_exist_are_open_and_no_others() -> None:
    objects = render()
    found = ends(objects, "stub")
    expected: set[Path4] = {
        ("router", "level", 9000, "TCP"),
        ("router", "redis", 6379, "TCP"),
        ("operator", "redis", 6379, "TCP"),
        ("router", "operator", 4317, "TCP"),
        ("level", "operator", 4317, "TCP"),
        ("other level", "operator", 4317, "TCP"),  # one operator serves all families of a namespace
        ("test", "router", 8000, "TCP"),
        ("test", "router", 8001, "TCP"),
    }
    for component in ("router", "operator", "level", "test", "removal"):
        expected |= everywhere(found, component, 53, udp=True)
    for component in ("operator", "removal"):  # wherever the API server is
        for port in (443, 6443):
            expected |= everywhere(found, component, port)
    outside = ("stranger", "gateway", "prometheus", "dns", "api", "web", "external redis", "other level")
    for source in outside:  # clients and monitoring are everybody until they are named
        for target, port in (("router", 8000), ("router", 8001), ("operator", 8081), ("level", 8080)):
            expected.add((source, target, port, "TCP"))
    assert open_paths(objects) == expected


def test_who_is_named_is_the_only_one() -> None:
    (file,) = [file for file in CI if file.stem.startswith("multi-gpu")]
    objects = render(file)
    paths = open_paths(objects, "llama")
    into = {(source, port) for source, target, port, _ in paths if target == "router"}
    assert into == {("gateway", 8000), ("gateway", 8001), ("test", 8000), ("test", 8001), ("prometheus", 8000)}
    assert {source for source, target, port, _ in paths if (target, port) == ("level", 9000)} == {"router"}
    assert {source for source, target, port, _ in paths if (target, port) == ("level", 8080)} == {"prometheus"}
    assert {target for source, target, port, _ in paths if (source, port) == ("router", 6379)} == {"external redis"}
    assert {target for source, target, port, _ in paths if (source, port) == ("router", 53)} == {"dns"}
    # weights: levels may fetch them from anywhere, on 443 only
    assert ("level", "web", 443, "TCP") in paths and ("level", "web", 22, "TCP") not in paths
    assert ("router", "web", 443, "TCP") not in paths


def test_a_collector_stands_between() -> None:
    (file,) = [file for file in CI if file.stem.startswith("external-redis")]
    paths = open_paths(render(file))
    for source in ("router", "level"):
        assert (source, "prometheus", 4317, "TCP") in paths and (source, "operator", 4317, "TCP") not in paths
    assert ("prometheus", "operator", 4317, "TCP") in paths


def test_levels_do_not_reach_one_another_nor_redis() -> None:
    paths = open_paths(render())
    assert ("level", "redis", 6379, "TCP") not in paths
    assert not [
        path for path in paths if path[0] == "level" and path[1] in ("router", "level", "api") and path[2] != 53
    ]


@pytest.mark.parametrize("file", [None, *CI], ids=lambda file: file.stem if isinstance(file, Path) else "default")
def test_every_pod_of_the_release_is_denied_what_is_not_named(file: Path | None) -> None:
    objects = render(*([file] if file else []))
    for name, meta, _ in pods(objects):
        applying = [
            policy
            for policy in of_kind(objects, "NetworkPolicy")
            if policy["spec"]["podSelector"]["matchLabels"].items() <= meta["labels"].items()
        ]
        assert applying and all(policy["spec"]["policyTypes"] == ["Ingress", "Egress"] for policy in applying), name


def test_policies_can_be_left_out() -> None:
    assert not of_kind(render(networkPolicy__enabled=False), "NetworkPolicy")
