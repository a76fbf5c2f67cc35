"""The pods of a level: one container with our level image, restricted, probed, drained. Pure."""

from __future__ import annotations

import hashlib
import json

from specrouter_family.family import LevelSettings
from specrouter_operator.family_types import Level, ModelFamilySpec
from specrouter_operator.resource import FAMILY_LABEL, LEVEL_LABEL, Object
from specrouter_operator.schema import GROUP
from specrouter_operator.settings import Settings

HTTP_PORT, GRPC_PORT = 8080, 9000
MODEL_PATH = "/mnt/models"
TLS_PATH = "/etc/specrouter/tls"
TLS_ARGUMENTS = [
    f"--tls-cert={TLS_PATH}/tls.crt",
    f"--tls-key={TLS_PATH}/tls.key",
    f"--tls-client-ca={TLS_PATH}/ca.crt",
    "--http-tls=server",  # without a client's certificate: a kubelet has none to show
]
CERTIFICATE = {"name": "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "value": f"{TLS_PATH}/ca.crt"}  # of the OTLP port
GPU = "nvidia.com/gpu"
DEFAULTS = {"cpu": ("100m", "1"), "memory": ("256Mi", "2Gi")}  # request and limit of a level that gives neither
LOADING_S, PROBE_S = 1800, 5  # how long weights may take to load, seconds between two probes
GRACE_S = 10  # beyond the drain, to end
KV_PATH = "/etc/specrouter/kv"
POD_HASH = f"{GROUP}/pod-hash"  # annotation of pods: by it one sees whether KServe's Deployment is the one wanted
# Settings of a level that are options of its command just so; the others are the router's, or set below.
OPTIONS = tuple(name for name in LevelSettings.model_fields if name not in ("name", "engine", "device", "weight"))


def level_labels(family: str, level: str) -> dict[str, str]:
    """What marks the pods, and all objects, of a level."""
    return {"app.kubernetes.io/part-of": "specrouter", FAMILY_LABEL: family, LEVEL_LABEL: level}


def selector(family: str, level: str) -> dict[str, str]:
    """What selects a level's pods."""
    return {FAMILY_LABEL: family, LEVEL_LABEL: level}


def pod_spec(
    family: str, namespace: str, spec: ModelFamilySpec, level: Level, settings: Settings, *, kserve: bool
) -> Object:
    """The PodSpec of a level's replicas. With ``kserve``, its webhook brings the weights of a storageUri."""
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108  # the rest is read-only
    init: list[Object] = []
    environment = _environment(family, namespace, level, settings)
    if keeps_kv(level) and settings.kv_secret:
        environment += _kv_environment(settings.kv_secret)
        volumes.append({"name": "kv", "secret": {"secretName": settings.kv_secret, "defaultMode": 0o444}})
        mounts.append({"name": "kv", "mountPath": KV_PATH, "readOnly": True})
    if level.pvc is not None:
        claim = {"claimName": level.pvc.claim_name, "readOnly": True}
        volumes.append({"name": "weights", "persistentVolumeClaim": claim})
        mount: Object = {"name": "weights", "mountPath": MODEL_PATH, "readOnly": True}
        mounts.append(mount | ({"subPath": level.pvc.path.rstrip("/")} if level.pvc.path else {}))
    elif level.storage_uri is not None and kserve:
        environment.append({"name": "STORAGE_URI", "value": level.storage_uri})
    elif level.storage_uri is not None:
        volumes.append({"name": "weights", "emptyDir": {}})
        mounts.append({"name": "weights", "mountPath": MODEL_PATH, "readOnly": True})
        init.append(_fetch(level.storage_uri, settings))
    if settings.level_tls_secret:
        volumes.append({"name": "tls", "secret": {"secretName": settings.level_tls_secret, "defaultMode": 0o444}})
        mounts.append({"name": "tls", "mountPath": TLS_PATH, "readOnly": True})
    container: Object = {
        "name": "kserve-container",  # the name that KServe's webhook looks for
        "image": level.image or spec.image or settings.level_image,
        "args": arguments(spec, level) + (TLS_ARGUMENTS if settings.level_tls_secret else []),
        "env": environment,
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "h2c", "containerPort": GRPC_PORT, "protocol": "TCP"},
        ],
        "resources": _resources(level),
        "securityContext": _restricted(),
        "volumeMounts": mounts,
        **_probes("HTTPS" if settings.level_tls_secret else "HTTP"),
    }
    pod: Object = {
        "containers": [container],
        "volumes": volumes,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": spec.drain_seconds + GRACE_S,
        "automountServiceAccountToken": False,
    }
    return pod | ({"initContainers": init} if init else {}) | _placement(family, spec, level)


def pod_annotations(pod: Object) -> dict[str, str]:
    """What a level's pods are annotated with, given their spec."""
    text = json.dumps(pod, sort_keys=True)
    return {POD_HASH: hashlib.sha256(text.encode()).hexdigest()[:16]}


def keeps_kv(level: Level) -> bool:
    """Whether the level writes its KV to Redis."""
    return level.kv_checkpoints not in (None, "off")


def arguments(spec: ModelFamilySpec, level: Level) -> list[str]:
    """The command line of `specrouter-level`."""
    given = {
        "name": level.name,
        "engine": level.engine,
        "host": "0.0.0.0",  # noqa: S104  # other pods call it
        "http-port": HTTP_PORT,
        "grpc-port": GRPC_PORT,
        "drain-seconds": spec.drain_seconds,
    }
    if level.engine == "torch":
        given["model"] = MODEL_PATH
        given["device"] = level.device or ("cuda:0" if level.gpus else "cpu")
    for name in OPTIONS:
        if getattr(level, name) is not None:
            given[name.replace("_", "-")] = getattr(level, name)
    return [f"--{name}={value}" for name, value in given.items()]


def _environment(family: str, namespace: str, level: Level, settings: Settings) -> list[Object]:
    """Where metrics go, and whose they are (OpenTelemetry's own variables)."""
    if not settings.otlp_endpoint:
        return []
    whose = (
        f"specrouter.family={family},specrouter.level={level.name},k8s.namespace.name={namespace},"
        "service.instance.id=$(POD_NAME)"
    )
    return [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
        {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": settings.otlp_endpoint},
        {"name": "OTEL_SERVICE_NAME", "value": "specrouter-level"},
        {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": whose},
        *(token_environment(settings.otlp_secret) if settings.otlp_secret else []),
        *([CERTIFICATE] if settings.level_tls_secret and settings.otlp_endpoint.startswith("https:") else []),
    ]


def token_environment(secret: str) -> list[Object]:
    """Of metrics alone: traces may go to somebody else. Spaces are %20 there, as in W3C Baggage."""
    return [
        _from_secret("SPECROUTER_OTLP_TOKEN", secret, "token"),
        {"name": "OTEL_EXPORTER_OTLP_METRICS_HEADERS", "value": "authorization=Bearer%20$(SPECROUTER_OTLP_TOKEN)"},
    ]


def _from_secret(variable: str, secret: str, key: str) -> Object:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _kv_environment(secret: str) -> list[Object]:
    url = _from_secret("SPECROUTER_LEVEL_KV_URL", secret, "url")
    return [url, {"name": "SPECROUTER_LEVEL_KV_KEY_FILE", "value": f"{KV_PATH}/key"}]


def _fetch(uri: str, settings: Settings) -> Object:
    return {
        "name": "storage-initializer",
        "image": settings.storage_image,
        "args": [uri, MODEL_PATH],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "4Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "weights", "mountPath": MODEL_PATH}],
    }


def _resources(level: Level) -> Object:
    """As the level says, nothing left out (KServe would fill it in): request and limit of each are equal when one is
    given. GPUs are both."""
    requests, limits = _texts(level.resources.requests), _texts(level.resources.limits)
    for name, (least, most) in DEFAULTS.items():
        given = requests.get(name), limits.get(name)
        requests[name] = given[0] or given[1] or least
        limits[name] = given[1] or given[0] or most
    if level.gpus:
        requests[GPU] = limits[GPU] = str(level.gpus)
    return {"requests": requests, "limits": limits}


def _texts(quantities: dict[str, int | str]) -> dict[str, str]:
    return {name: str(value) for name, value in quantities.items()}


def _restricted() -> Object:
    """What Kubernetes' restricted pod security standard asks for, and a read-only root."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _probes(scheme: str) -> Object:
    def probe(path: str, failures: int) -> Object:
        return {
            "httpGet": {"path": path, "port": HTTP_PORT, "scheme": scheme},
            "periodSeconds": PROBE_S,
            "timeoutSeconds": PROBE_S,
            "failureThreshold": failures,
            "successThreshold": 1,
        }

    return {
        "startupProbe": probe("/v2/health/ready", LOADING_S // PROBE_S),
        "readinessProbe": probe("/v2/health/ready", 2),
        "livenessProbe": probe("/v2/health/live", 6),
    }


def _placement(family: str, spec: ModelFamilySpec, level: Level) -> Object:
    """Where the pods may run. What the level doesn't say is left out."""
    spread = [
        {**one.model_dump(by_alias=True), "labelSelector": {"matchLabels": selector(family, level.name)}}
        for one in level.topology_spread_constraints
    ]
    tolerations = [one.model_dump(by_alias=True, exclude_none=True) for one in level.tolerations]
    parts = {
        "runtimeClassName": level.runtime_class_name,
        "nodeSelector": level.node_selector,
        "tolerations": tolerations,
        "topologySpreadConstraints": spread,
        "serviceAccountName": spec.service_account_name,
    }
    return {name: value for name, value in parts.items() if value}
