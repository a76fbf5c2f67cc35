"""The objects of a family, as they should be. Pure: a family in, Kubernetes objects out.

Of each level: an InferenceService (or a Deployment and a Service), a headless Service whose DNS name gives every
replica's address, a PodDisruptionBudget. Of the family: a ConfigMap with the family file that routers mount. None has
replicas in it: those are only ever written to the Deployment's scale.
"""

from __future__ import annotations

import yaml

from specrouter_family.family import BYTES, FROM_TARGET, ChainSpec, Family, LevelSettings
from specrouter_operator.family_types import Level, ModelFamilySpec
from specrouter_operator.pods import GRPC_PORT, HTTP_PORT, MODEL_PATH, level_labels, pod_annotations, pod_spec, selector
from specrouter_operator.resource import (
    BUDGET,
    CONFIG_MAP,
    DEPLOYMENT,
    FAMILY,
    FAMILY_LABEL,
    INFERENCE_SERVICE,
    SERVICE,
    Object,
    Resource,
    name_of,
)
from specrouter_operator.settings import Settings

# Of an upgrade without a GPU to spare; else Kubernetes' own strategy is right: a new replica first, one at least ready.
ONE_BY_ONE = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
Wanted = list[tuple[Resource, Object]]


def deployment_name(family: str, level: str) -> str:
    """The level's Deployment, whoever makes it: KServe has this name for its own."""
    return f"{family}-{level}-predictor"


def service_name(family: str, level: str) -> str:
    """The level's InferenceService."""
    return f"{family}-{level}"


def replicas_name(family: str, level: str) -> str:
    """The headless Service that gives the address of every replica."""
    return f"{family}-{level}-replicas"


def family_file(name: str, namespace: str, spec: ModelFamilySpec, chain: ChainSpec) -> str:
    """The routers' family file. Raises pydantic.ValidationError when chain and levels don't fit together."""
    levels = []
    for level in spec.levels:
        settings = {field: getattr(level, field) for field in LevelSettings.model_fields}
        given = {field: value for field, value in settings.items() if value is not None}
        given["address"] = f"{replicas_name(name, level.name)}.{namespace}.svc:{GRPC_PORT}"
        levels.append(given | ({"model": MODEL_PATH} if level.engine == "torch" else {}))
    data = {
        "name": name,
        "tokenizer": BYTES if spec.target.engine == "stub" else FROM_TARGET,
        "levels": levels,
        "chain": chain.model_dump(exclude_unset=True),
    }
    Family.model_validate(data)
    return yaml.safe_dump(data, sort_keys=False)


def wanted(owner: Object, spec: ModelFamilySpec, chain: ChainSpec, settings: Settings) -> Wanted:
    """All objects of the family ``owner`` (the ModelFamily as the API server has it)."""
    name, namespace = name_of(owner), owner["metadata"]["namespace"]
    text = family_file(name, namespace, spec, chain)
    made: Wanted = [(CONFIG_MAP, {"metadata": {"name": f"{name}-family"}, "data": {"family.yaml": text}})]
    for level in spec.levels:
        pod = pod_spec(name, namespace, spec, level, settings, kserve=spec.backend == "KServe")
        made += _level(name, spec, level, pod)
    return [(resource, _owned(resource, item, owner)) for resource, item in made]


def _level(name: str, spec: ModelFamilySpec, level: Level, pod: Object) -> Wanted:
    labels, chosen = level_labels(name, level.name), selector(name, level.name)

    def meta(object_name: str) -> Object:
        return {"name": object_name, "labels": dict(labels)}

    headless = {
        "clusterIP": "None",
        "selector": chosen,
        "ports": [_port("grpc", GRPC_PORT, "kubernetes.io/h2c"), _port("http", HTTP_PORT, None)],
    }
    common: Wanted = [
        (SERVICE, {"metadata": meta(replicas_name(name, level.name)), "spec": headless}),
        (
            BUDGET,
            {
                "metadata": meta(f"{name}-{level.name}"),
                "spec": {"maxUnavailable": 1, "selector": {"matchLabels": chosen}},
            },
        ),
    ]
    if spec.backend == "KServe":
        return [
            (INFERENCE_SERVICE, _inference_service(meta(service_name(name, level.name)), spec, level, pod)),
            *common,
        ]
    deployment = {
        "selector": {"matchLabels": chosen},
        "template": {"metadata": {"labels": dict(labels), "annotations": pod_annotations(pod)}, "spec": pod},
        **({} if level.surge else {"strategy": ONE_BY_ONE}),
    }
    service = {
        "type": "ClusterIP",
        "selector": chosen,
        "ports": [
            {**_port("http", 80, None), "targetPort": HTTP_PORT},
            _port("h2c", GRPC_PORT, "kubernetes.io/h2c"),
        ],
    }
    at = deployment_name(name, level.name)
    return [
        (DEPLOYMENT, {"metadata": meta(at), "spec": deployment}),
        (SERVICE, {"metadata": meta(at), "spec": service}),
        *common,
    ]


def _inference_service(meta: Object, spec: ModelFamilySpec, level: Level, pod: Object) -> Object:
    """In KServe's Standard mode, reachable in the cluster only, with nobody but us to scale its Deployment."""
    meta["labels"]["networking.kserve.io/visibility"] = "cluster-local"
    meta["annotations"] = {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "external",
    }
    # minReplicas counts when the Deployment is made, and never again: so its first replicas are right
    first = min(level.replicas.min * spec.replicas, level.replicas.most)
    strategy = {} if level.surge else {"deploymentStrategy": ONE_BY_ONE}
    predictor = {"annotations": pod_annotations(pod), "minReplicas": first, **strategy, **pod}
    return {"metadata": meta, "spec": {"predictor": predictor}}


def _port(name: str, number: int, protocol: str | None) -> Object:
    port: Object = {"name": name, "port": number, "targetPort": number, "protocol": "TCP"}
    return port | ({"appProtocol": protocol} if protocol else {})


def _owned(resource: Resource, item: Object, owner: Object) -> Object:
    """``item`` as an object of ``owner``, that goes when it goes."""
    meta = owner["metadata"]
    reference = {
        "apiVersion": FAMILY.api_version,
        "kind": FAMILY.kind,
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
    labels = {FAMILY_LABEL: meta["name"], "app.kubernetes.io/part-of": "specrouter"}
    metadata = {
        **item["metadata"],
        "namespace": meta["namespace"],
        "labels": item["metadata"].get("labels", labels),
        "ownerReferences": [reference],
    }
    return {"apiVersion": resource.api_version, "kind": resource.kind, **item, "metadata": metadata}
