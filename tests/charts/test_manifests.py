"""What the chart renders: restricted pods, rights named singly, parts that find one another."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from rendered import CI, ROOT, Object, of_kind, one, pods, render

from specrouter_family import redis_url

VALUES = [None, *CI]
NAMES = [file.stem if file else "default" for file in VALUES]


@pytest.fixture(scope="module", params=VALUES, ids=NAMES)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(*([request.param] if request.param else []))


def test_every_pod_is_restricted(objects: list[Object]) -> None:
    """The restricted pod security standard, and a read-only root."""
    assert len(list(pods(objects))) >= 4
    for name, _, spec in pods(objects):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume], name
        for container in spec["containers"] + spec.get("initContainers", []):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True, name
            assert own["capabilities"] == {"drop": ["ALL"]} and not own.get("privileged"), name


def test_every_container_has_limits_and_probes(objects: list[Object]) -> None:
    for name, _, spec in pods(objects):
        for container in spec["containers"]:
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"], name
            if name.startswith(("Deployment", "StatefulSet")):
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name
                ports = {port["name"] for port in container["ports"]}
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    (how,) = set(container[probe]) & {"httpGet", "tcpSocket"}
                    assert container[probe][how]["port"] in ports, name


def test_only_who_needs_it_has_a_token(objects: list[Object]) -> None:
    for name, _, spec in pods(objects):
        may = name.endswith(("-operator", "-removal"))
        assert spec["automountServiceAccountToken"] is may, name
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_rights_are_named_singly_and_are_the_operators(objects: list[Object]) -> None:
    assert not of_kind(objects, "ClusterRole") and not of_kind(objects, "ClusterRoleBinding")
    for role in of_kind(objects, "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], role["metadata"]["name"]
            assert not {"secrets", "pods/exec", "roles", "rolebindings"} & set(rule["resources"])
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
    own = yaml.safe_load_all((ROOT / "operator/manifests/rbac.yaml").read_text())
    (role,) = [found for found in own if found["kind"] == "Role"]
    assert one(objects, "Role", "operator")["rules"] == role["rules"], "rbac.yaml of the chart and of operator/ differ"


def test_selectors_and_ports_meet_pods(objects: list[Object]) -> None:
    """Every Service, budget and controller selects pods of the release, and its ports are theirs."""
    for found in [*of_kind(objects, "Deployment"), *of_kind(objects, "StatefulSet")]:
        wanted = found["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= found["spec"]["template"]["metadata"]["labels"].items()
    for service in of_kind(objects, "Service"):
        (met,) = [spec for _, meta, spec in pods(objects) if meets(service["spec"]["selector"], meta)]
        named = {port["name"] for port in met["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named
    for budget in of_kind(objects, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"]
        assert len([name for name, meta, _ in pods(objects) if meets(selector, meta)]) == 1


def meets(selector: dict[str, str], meta: Object) -> bool:
    return bool(selector.items() <= meta["labels"].items())


def test_every_mounted_object_is_there(objects: list[Object]) -> None:
    there = {(found["kind"], found["metadata"]["name"]) for found in objects}
    family = (of_kind(objects, "ModelFamily") or [{"metadata": {"name": ""}}])[0]["metadata"]["name"]
    there |= {("ConfigMap", f"{family}-family")}  # by the operator
    there |= {("Secret", name) for name in ("mesh-redis", "redis-tls")}  # the values files' own
    for name, _, spec in pods(objects):
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there, name
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in there, name
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        claims = {"data"} if name.startswith("StatefulSet") else set()
        assert mounted <= {volume["name"] for volume in spec["volumes"]} | claims, name


def test_labels_and_namespace_are_everywhere(objects: list[Object]) -> None:
    for found in objects:
        if "extra" in found["metadata"]["name"] or "more" in found["metadata"]["name"]:
            continue
        assert found["metadata"]["labels"]["app.kubernetes.io/part-of"] == "specrouter", found
        if found["kind"] != "PriorityClass":
            assert found["metadata"]["namespace"] == "place", found


def test_no_secret_is_outside_of_secrets(objects: list[Object]) -> None:
    secrets = [value for found in of_kind(objects, "Secret") for value in found["stringData"].values()]
    rest = yaml.safe_dump([found for found in objects if found["kind"] != "Secret"])
    assert not [secret for secret in secrets if secret in rest]


# Single values.


def test_a_registry_for_all_images() -> None:
    objects = render(global__imageRegistry="registry.example.com/mirror")
    images = [container["image"] for _, _, spec in pods(objects) for container in spec["containers"]]
    images += [one(objects, "ModelFamily")["spec"]["image"]]
    assert images and all(image.startswith("registry.example.com/mirror/") for image in images)


def test_a_digest_goes_before_a_tag() -> None:
    digest = "sha256:" + "0" * 64
    objects = render(router__image__digest=digest)
    assert one(objects, "Deployment", "router")["spec"]["template"]["spec"]["containers"][0]["image"] == (
        f"docker.io/specrouter/router@{digest}"
    )


def test_pull_secrets_reach_all_pods_and_the_levels() -> None:
    objects = render(global__imagePullSecrets=[{"name": "registry"}])
    assert all(spec["imagePullSecrets"] == [{"name": "registry"}] for _, _, spec in pods(objects))
    account = one(objects, "ServiceAccount", "level")
    assert account["imagePullSecrets"] == [{"name": "registry"}]
    assert one(objects, "ModelFamily")["spec"]["serviceAccountName"] == account["metadata"]["name"]


def test_the_family_is_what_was_given() -> None:
    levels = [{"name": "target", "engine": "stub", "image": "other:1"}]
    objects = render(
        family__name="mine", family__spec__levels=levels, policy__spec={"weights": {"pins": {"target": 50}}}
    )
    family, policy = one(objects, "ModelFamily"), one(objects, "RoutingPolicy")
    assert family["metadata"]["name"] == "mine" and family["spec"]["levels"] == levels
    assert policy["spec"] == {"familyRef": {"name": "mine"}, "weights": {"pins": {"target": 50}}}


def test_own_image_and_account_of_a_family_stay() -> None:
    objects = render(family__spec__image="mine:2", family__spec__serviceAccountName="me")
    assert one(objects, "ModelFamily")["spec"]["image"] == "mine:2"
    assert one(objects, "ModelFamily")["spec"]["serviceAccountName"] == "me"


def test_autoscaling_owns_the_number_of_routers() -> None:
    objects = render(router__autoscaling={"enabled": True, "sequencesPerRouter": 32})
    assert "replicas" not in one(objects, "Deployment", "router")["spec"]
    metrics = one(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["Resource", "Pods"]
    assert one(render(), "Deployment", "router")["spec"]["replicas"] == 2


@pytest.mark.parametrize(
    ("redis", "url"),
    [
        ({"url": "redis://r:6379/1"}, "redis://r:6379/1"),
        ({"url": "rediss://r", "tls": {"secretName": "redis-tls"}}, "rediss://r?ssl_ca_certs=%s/ca.crt"),
        (
            {"url": "rediss://r?ssl_check_hostname=false", "tls": {"secretName": "t", "clientCertificate": True}},
            "rediss://r?ssl_check_hostname=false&ssl_ca_certs=%s/ca.crt&ssl_certfile=%s/tls.crt&ssl_keyfile=%s/tls.key",
        ),
        (
            {"url": "rediss+sentinel://a:1,b:2/mesh", "tls": {"secretName": "t"}},
            "rediss+sentinel://a:1,b:2/mesh?ssl_ca_certs=%s/ca.crt",
        ),
    ],
)
def test_the_address_of_redis_is_one_that_the_router_reads(redis: dict[str, Any], url: str) -> None:
    objects = render(redis=redis | {"bundled": {"enabled": False}})
    secret = one(objects, "Secret", "redis")
    assert secret["stringData"] == {"url": url.replace("%s", "/etc/specrouter/redis-tls")}
    redis_url.parse(secret["stringData"]["url"])  # as routers and the operator read it
    for component in ("router", "operator"):
        spec = one(objects, "Deployment", component)["spec"]["template"]["spec"]
        (variable,) = [one for one in spec["containers"][0]["env"] if one["name"] == "SPECROUTER_REDIS_URL"]
        assert variable["valueFrom"]["secretKeyRef"] == {"name": secret["metadata"]["name"], "key": "url"}
        mounts = [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]]
        assert ("/etc/specrouter/redis-tls" in mounts) is ("tls" in redis)


def test_the_bundled_redis_has_a_password_that_its_users_have() -> None:
    objects = render()
    secret = one(objects, "Secret", "redis")["stringData"]
    assert len(secret["password"]) == 32
    assert f"requirepass {secret['password']}\n" in secret["valkey.conf"] and "appendonly yes" in secret["valkey.conf"]
    assert secret["url"] == f"redis://:{secret['password']}@mesh-specrouter-redis.place.svc:6379/0"


def variables(deployment: Object) -> dict[str, Any]:
    environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in environment}


@pytest.mark.parametrize(
    ("tls", "level", "router"),
    [
        ({"mode": "secrets", "levelSecretName": "a", "routerSecretName": "b"}, "a", "b"),
        (
            {"mode": "certManager", "issuerRef": {"name": "ca"}},
            "mesh-specrouter-level-tls",
            "mesh-specrouter-router-tls",
        ),
    ],
)
def test_routers_and_levels_know_one_another(tls: dict[str, Any], level: str, router: str) -> None:
    """One side's certificate is for the name that the other asks for."""
    objects = render(tls=tls, monitoring__serviceMonitor__enabled=True)
    assert variables(one(objects, "Deployment", "operator"))["SPECROUTER_OPERATOR_LEVEL_TLS_SECRET"] == level
    there = variables(one(objects, "Deployment", "router"))
    spec = one(objects, "Deployment", "router")["spec"]["template"]["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "tls"]
    (mount,) = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "tls"]
    assert (
        volume["secret"]["secretName"] == router and there["SPECROUTER_LEVEL_TLS_CA"] == f"{mount['mountPath']}/ca.crt"
    )
    assert there["SPECROUTER_LEVEL_TLS_NAME"] == "stub-levels.place.svc"
    (endpoint,) = one(objects, "PodMonitor", "level")["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https" and endpoint["tlsConfig"]["serverName"] == "stub-levels.place.svc"
    assert endpoint["tlsConfig"]["ca"] == {"secret": {"name": level, "key": "ca.crt"}}
    made = {found["spec"]["secretName"]: found["spec"] for found in of_kind(objects, "Certificate")}
    if tls["mode"] == "certManager":
        assert made[level]["dnsNames"] == ["stub-levels.place.svc"] and made[level]["usages"] == ["server auth"]
        assert made[router]["usages"] == ["client auth"]
        assert {spec["issuerRef"]["name"] for spec in made.values()} == {"ca"}
    else:
        assert not made


def test_routers_ports_can_be_tls() -> None:
    """Whoever calls them in the cluster, probes and scrapes among them, does so over TLS then."""
    tls = {"mode": "certManager", "issuerRef": {"name": "ca"}, "routerPorts": True}
    objects = render(tls=tls, monitoring__serviceMonitor__enabled=True)
    there = variables(one(objects, "Deployment", "router"))
    assert there["SPECROUTER_TLS_CERT"] == "/etc/specrouter/tls/tls.crt"
    container = one(objects, "Deployment", "router")["spec"]["template"]["spec"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    service = one(objects, "Service", "router")
    assert [port["appProtocol"] for port in service["spec"]["ports"]] == ["https", "https"]
    host = f"{service['metadata']['name']}.place.svc"
    (made,) = [found["spec"] for found in of_kind(objects, "Certificate") if "-router" in found["metadata"]["name"]]
    assert made["dnsNames"] == [host] and made["usages"] == ["client auth", "server auth"]
    (endpoint,) = one(objects, "ServiceMonitor", "router")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https" and endpoint["tlsConfig"]["serverName"] == host
    assert endpoint["tlsConfig"]["ca"] == {"secret": {"name": made["secretName"], "key": "ca.crt"}}
    (test,) = of_kind(objects, "Pod")
    assert {"name": "CA", "value": "/etc/specrouter/tls/ca.crt"} in test["spec"]["containers"][0]["env"]
    plain = one(render(), "Deployment", "router")
    assert "SPECROUTER_TLS_CERT" not in variables(plain)


def test_in_the_clear_unless_asked_otherwise() -> None:
    objects = render()
    assert "SPECROUTER_OPERATOR_LEVEL_TLS_SECRET" not in variables(one(objects, "Deployment", "operator"))
    assert "SPECROUTER_LEVEL_TLS_CA" not in variables(one(objects, "Deployment", "router"))


def test_levels_that_keep_kv_get_redis_and_a_key() -> None:
    objects = render(redis__kvCheckpoints__enabled=True)
    (secret,) = [found for found in of_kind(objects, "Secret") if found["metadata"]["name"] == "mesh-specrouter-kv"]
    assert secret["stringData"]["url"] == one(objects, "Secret", "redis")["stringData"]["url"]
    assert len(secret["stringData"]["key"]) == 32
    assert variables(one(objects, "Deployment", "operator"))["SPECROUTER_OPERATOR_KV_SECRET"] == "mesh-specrouter-kv"
    assert "SPECROUTER_OPERATOR_KV_SECRET" not in variables(one(render(), "Deployment", "operator"))


@pytest.mark.parametrize(("given", "name"), [("", "mesh-specrouter-otlp"), ("mine", "mine")])
def test_whoever_pushes_has_the_token_that_the_operator_asks_for(given: str, name: str) -> None:
    objects = render(otel__existingSecret=given)
    for side in ("operator", "router"):
        environment = one(objects, "Deployment", side)["spec"]["template"]["spec"]["containers"][0]["env"]
        (token,) = [entry for entry in environment if entry["name"] == "SPECROUTER_OTLP_TOKEN"]
        assert token["valueFrom"]["secretKeyRef"] == {"name": name, "key": "token"}
    assert variables(one(objects, "Deployment", "operator"))["SPECROUTER_OPERATOR_OTLP_SECRET"] == name
    shown = variables(one(objects, "Deployment", "router"))["OTEL_EXPORTER_OTLP_METRICS_HEADERS"]
    assert shown == "authorization=Bearer%20$(SPECROUTER_OTLP_TOKEN)"
    made = [found["stringData"] for found in of_kind(objects, "Secret") if found["metadata"]["name"] == name]
    assert [len(secret["token"]) for secret in made] == ([] if given else [32])


def test_metrics_go_by_tls_where_the_operator_has_a_certificate() -> None:
    tls = {"mode": "secrets", "levelSecretName": "l", "routerSecretName": "r", "operatorSecretName": "o"}
    objects = render(**{f"tls__{name}": value for name, value in tls.items()})
    router, operator = (one(objects, "Deployment", side) for side in ("router", "operator"))
    assert variables(router)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "https://mesh-specrouter-operator.place.svc:4317"
    assert variables(router)["OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE"] == "/etc/specrouter/tls/ca.crt"
    assert variables(operator)["SPECROUTER_OPERATOR_OTLP_TLS_CERT"] == "/etc/specrouter/tls/tls.crt"
    (volume,) = [one for one in operator["spec"]["template"]["spec"]["volumes"] if one["name"] == "tls"]
    assert volume["secret"]["secretName"] == "o"


def test_routers_know_which_levels_they_are_for() -> None:
    """Another set of levels is another pod template: routers are rolled, and wait for the operator's file."""
    levels = [{"name": "a", "engine": "stub", "agreement": 0.5}, {"name": "b", "engine": "stub"}]
    assert variables(one(render(), "Deployment", "router"))["SPECROUTER_LEVELS"] == "draft,mid,target"
    assert variables(one(render(family__spec__levels=levels), "Deployment", "router"))["SPECROUTER_LEVELS"] == "a,b"


def test_without_a_family_there_is_the_operator_alone() -> None:
    kinds = {found["kind"] for found in render(family__create=False)}
    assert "ModelFamily" not in kinds and "HTTPRoute" not in kinds
    assert [found["metadata"]["name"] for found in of_kind(render(family__create=False), "Deployment")] == [
        "mesh-specrouter-operator"
    ]


def test_names_do_not_repeat_the_chart() -> None:
    names = {found["metadata"]["name"] for found in of_kind(render(release="specrouter"), "Deployment")}
    assert names == {"specrouter-operator", "specrouter-router"}


def test_routes_have_two_hostnames_and_lead_to_the_router() -> None:
    objects = render(gateway={"enabled": True, "parentRefs": [{"name": "public", "namespace": "gateways"}]})
    rest, grpc = one(objects, "HTTPRoute"), one(objects, "GRPCRoute")
    assert rest["spec"]["hostnames"] != grpc["spec"]["hostnames"]
    service = one(objects, "Service", "router")
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    for route, port in ((rest, "http"), (grpc, "grpc")):
        (rule,) = route["spec"]["rules"]
        assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": ports[port]}]
        assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    assert not of_kind(objects, "Gateway")
    assert rest["spec"]["rules"][0]["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]


def test_a_gateway_of_our_own_can_speak_tls() -> None:
    gateway = {"enabled": True, "create": True, "className": "traefik", "tls": {"secretName": "cert"}, "port": 443}
    listeners = one(render(gateway=gateway), "Gateway")["spec"]["listeners"]
    assert [(listener["protocol"], listener["port"]) for listener in listeners] == [("HTTPS", 443)] * 2
    assert listeners[0]["tls"]["certificateRefs"] == [{"kind": "Secret", "name": "cert"}]


def test_extra_manifests_are_filled_in() -> None:
    (file,) = [file for file in CI if file.stem.startswith("external-redis")]
    names = {found["metadata"]["name"]: found for found in of_kind(render(file), "ConfigMap")}
    assert names["mesh-extra"]["data"] == {"family": "stub"} and "mesh-more" in names


def test_definitions_come_with_the_chart() -> None:
    """Helm installs what is in crds/, which is what the chart of their own has."""
    assert (ROOT / "charts/specrouter/crds").resolve() == (ROOT / "charts/specrouter-crds/templates").resolve()


def test_the_monitors_find_services() -> None:
    objects = render(monitoring={"serviceMonitor": {"enabled": True}})
    monitors = of_kind(objects, "ServiceMonitor")
    assert len(monitors) == 2, "of routers and the operator"
    for monitor in monitors:
        selector = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [found for found in of_kind(objects, "Service") if meets(selector, found["metadata"])]
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_no_route_bounds_how_long_a_stream_lasts() -> None:
    """By the HTTPRoute's own field; a GRPCRoute has none, and Envoy Gateway takes a policy."""
    settings: dict[str, Any] = {"gateway__enabled": True, "gateway__parentRefs": [{"name": "any"}]}
    objects = render(**settings)
    assert one(objects, "HTTPRoute")["spec"]["rules"][0]["timeouts"] == {"request": "0s"}
    assert not of_kind(objects, "BackendTrafficPolicy")
    policy = one(render(apis=["gateway.envoyproxy.io/v1alpha1"], **settings), "BackendTrafficPolicy")["spec"]
    route = one(objects, "GRPCRoute")["metadata"]["name"]
    assert policy["targetRefs"] == [{"group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "name": route}]
    assert policy["timeout"] == {"http": {"requestTimeout": "0s"}}
