"""A family, its policy and its Deployments, as the controllers of weights and replicas see them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specrouter_operator.family_types import Level, ModelFamilySpec
from specrouter_operator.pods import POD_HASH
from specrouter_operator.policy_types import RoutingPolicySpec
from specrouter_operator.resource import Object
from specrouter_operator.rules import LevelState, Mesh, Rules


@dataclass(frozen=True, slots=True)
class Seen:
    """One level's Deployment. ``wanted`` is its spec.replicas; None: it isn't there yet."""

    wanted: int | None = None
    replicas: int = 0
    ready: int = 0
    rolled_out: str = ""  # the hash of its pods, if all that there are have it and it is the one that is wanted

    @classmethod
    def of(cls, deployment: Object | None, service: Object | None = None, known: str = "") -> Seen:
        """What a Deployment says. Its counts only count when they are about its newest spec. ``service``: the
        InferenceService that KServe makes it from. ``known``: ``rolled_out`` when last looked at; a newer spec with the
        same pods has only other replicas."""
        if deployment is None:
            return cls()
        spec, status = deployment["spec"], deployment.get("status", {})
        current = int(status.get("observedGeneration", 0)) >= int(deployment["metadata"].get("generation", 0))
        pods = _pod_hash(spec["template"]["metadata"])
        wish = pods if service is None else _pod_hash(service["spec"]["predictor"])  # KServe may not have read it yet
        return cls(
            wanted=int(spec.get("replicas", 1)),
            replicas=int(status.get("replicas", 0)) if current else max(int(status.get("replicas", 0)), 1),
            ready=int(status.get("readyReplicas", 0)),
            rolled_out=pods if (current or pods == known) and pods == wish and _is_complete(status) else "",
        )


def _pod_hash(metadata: Object) -> str:
    return str(metadata.get("annotations", {}).get(POD_HASH, ""))


def _is_complete(status: Object) -> bool:
    """Whether the last rollout has ended. It has while pods are added, which are all of the same version."""
    reasons = {one["type"]: one.get("reason") for one in status.get("conditions", [])}
    all_new = status.get("updatedReplicas", 0) == status.get("replicas", 0)
    return all_new and reasons.get("Progressing") == "NewReplicaSetAvailable"


def bounds(spec: ModelFamilySpec, level: Level, policy: RoutingPolicySpec | None) -> tuple[int, int]:
    """The fewest and most replicas of a level: its own bounds, for so many copies of the family."""
    if spec.replicas == 0:
        return 0, 0
    most = level.replicas.most
    least = min(level.replicas.min * spec.replicas, most)
    if least == 0 and policy is not None and policy.scaling.mode == "Auto" and not policy.scaling.scale_to_zero:
        least = min(1, most)
    return least, most


def mesh(
    key: str,
    spec: ModelFamilySpec,
    policy: RoutingPolicySpec | None,
    seen: Mapping[str, Seen],
    status: Object,
) -> Mesh:
    """The family ``key`` (namespace/name) now. ``status``: of its policy, as last written."""
    levels = []
    for level in spec.levels:
        one, (least, most) = seen[level.name], bounds(spec, level, policy)
        state = LevelState(
            name=level.name,
            replicas=one.wanted if one.wanted is not None else least,
            ready=one.ready,
            least=least,
            most=most,
            gpus=level.gpus,
            step_ms=policy.objective.step_ms.get(level.name) if policy is not None else None,
        )
        levels.append(state)
    return Mesh(
        name=key, levels=tuple(levels), weights=status.get("weights", {}), pinned=frozenset(status.get("pinned", []))
    )


def rules(policy: RoutingPolicySpec) -> Rules:
    """The policy, in the controllers' terms."""
    return Rules(
        pins={name: float(value) for name, value in policy.weights.pins.items()},
        tpot={name: one.tpot_ms / 1000 for name, one in policy.routing.classes.items() if one.tpot_ms is not None},
        ttft={name: one.ttft_ms / 1000 for name, one in policy.routing.classes.items() if one.ttft_ms is not None},
        error_rate=policy.objective.errors / 100,
        automatic=policy.scaling.mode == "Auto",
        utilisation=policy.objective.utilisation / 100,
        gpus=policy.scaling.gpu_budget,
        up_window=float(policy.scaling.stabilization.up_seconds),
        down_window=float(policy.scaling.stabilization.down_seconds),
        up_step=policy.scaling.max_step.up,
        down_step=policy.scaling.max_step.down,
        weight_interval=float(policy.weights.interval_seconds),
        stale=float(policy.signals.freshness_seconds),
        lookahead=policy.routing.lookahead,
    )
