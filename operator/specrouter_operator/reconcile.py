"""From what is wanted to what is there, one family at a time.

Level-triggered: everything is worked out anew from what the mirrors show, whatever happened before, so that a missed or
repeated event, a restart between two writes, or a second operator changes nothing about where it ends.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import ValidationError

from specrouter_family.family import ChainSpec
from specrouter_operator.api import ApiError
from specrouter_operator.conditions import Finding
from specrouter_operator.control import Control, Decision
from specrouter_operator.drain import Drains
from specrouter_operator.events import Events
from specrouter_operator.family_types import ModelFamilySpec
from specrouter_operator.metrics import WRITES
from specrouter_operator.objects import deployment_name, family_file, service_name, wanted
from specrouter_operator.pods import keeps_kv
from specrouter_operator.policy_types import RoutingPolicySpec
from specrouter_operator.report import Reporter, family_status, policy_status
from specrouter_operator.resource import CONFIG_MAP, DEPLOYMENT, FAMILY, INFERENCE_SERVICE, POLICY, Object, name_of
from specrouter_operator.settings import Settings
from specrouter_operator.signals import Signals
from specrouter_operator.situation import Seen, bounds, mesh, rules
from specrouter_operator.world import AlienError, World

log = logging.getLogger(__name__)

# Seconds to the next look at a family: with signals to follow, without, and while something is refused.
TICK_S, REST_S, FAULT_S = 1.0, 30.0, 5.0


APPLIED = Finding("Configured", True, "Applied", "every object is as it should be")


class Publisher(Protocol):
    """Where routers read the weights."""

    def publish(self, family: str, weights: Mapping[str, int], chain: ChainSpec, above: int) -> int:
        """Make weights and chain known to the routers of ``family`` (namespace/name). Returns their version; what is
        the same as before keeps it, if that is not below ``above``. Raises OSError when it can't be reached."""


class NoPublisher:
    """Without Redis, routers have what is in the family file."""

    def publish(self, family: str, weights: Mapping[str, int], chain: ChainSpec, above: int) -> int:
        """Nothing to do."""
        return 0


@dataclass(slots=True)
class Case:
    """One family, while it is reconciled."""

    owner: Object
    spec: ModelFamilySpec
    policies: list[Object]  # oldest first; the first is the one in force
    policy: RoutingPolicySpec | None = None  # that one, if it fits the family
    findings: list[Finding] = field(default_factory=list)  # of the family
    invalid: Finding | None = None  # why the policy doesn't fit


class Reconciler:
    """Reconciles the families of one namespace. One family must not be reconciled twice at once."""

    def __init__(
        self,
        world: World,
        events: Events,
        settings: Settings,
        *,
        signals_of: Callable[[RoutingPolicySpec], Signals],
        publisher: Publisher,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._world, self._events, self._settings = world, events, settings
        self._signals_of, self._publisher = signals_of, publisher
        self._clock, self._today = clock, today
        self._control = Control()
        self._drains = Drains(world, clock)
        self._reporter = Reporter(world, events, clock)
        self._made: dict[str, tuple[object, float]] = {}  # family -> what its objects were made of, and when
        self._rolled_out: dict[str, dict[str, str]] = {}  # family -> level -> Seen.rolled_out
        self._scaled: dict[str, tuple[str, int]] = {}  # Deployment -> its version when it was scaled, and to what

    def reconcile(self, name: str) -> float | None:
        """Bring the family ``name`` nearer to what is wanted. Returns seconds until to look again, None: when something
        changes.

        Raises ApiError and RetryError for what should be tried again soon.
        """
        owner = self._world.get(FAMILY, name)
        policies = self._world.policies(name)
        if owner is None:
            self._control.forget(self._key(name))
            self._orphans(name, policies)
            return None
        if owner["metadata"].get("deletionTimestamp"):
            if not self._drains.family(owner):
                return TICK_S
            self._control.forget(self._key(name))
            self._made.pop(name, None)
            self._rolled_out.pop(name, None)
            return None
        owner = self._drains.ensure_finalizer(owner)
        try:
            spec = ModelFamilySpec.model_validate(owner["spec"], by_alias=True, by_name=False)
        except ValidationError as error:
            finding = Finding("Configured", False, "Invalid", _explain("spec", error))
            status = family_status(owner, None, {}, {}, [finding], self._today())
            self._reporter.write(FAMILY, owner, status)
            return REST_S
        return self._carry_out(self._case(owner, spec, policies))

    def _key(self, name: str) -> str:
        return f"{self._world.api.namespace}/{name}"

    def _orphans(self, name: str, policies: list[Object]) -> None:
        """Policies whose family isn't there."""
        missing = Finding("FamilyFound", False, "NoFamily", f"familyRef.name: there is no ModelFamily {name!r}")
        for policy in policies:
            version = int(policy.get("status", {}).get("weightsVersion", 0))
            self._reporter.write(POLICY, policy, policy_status(policy, [missing], None, {}, version, self._today()))

    def _case(self, owner: Object, spec: ModelFamilySpec, policies: list[Object]) -> Case:
        case = Case(owner, spec, policies)
        if policies:
            try:
                policy = RoutingPolicySpec.model_validate(policies[0]["spec"], by_alias=True, by_name=False)
                misfit = _misfit(owner, spec, policy)
            except ValidationError as error:
                case.invalid = Finding("Valid", False, "Invalid", _explain("spec", error))
            else:
                case.policy = policy if misfit is None else None
                case.invalid = misfit
        return case

    def _carry_out(self, case: Case) -> float:
        draining = self._make(case)
        seen = self._seen(name_of(case.owner), case.spec)
        decision = self._decide(case, seen)
        wants = self._wants(case, seen, decision)
        version = self._publish(case, decision)
        self._scale(case, seen, wants, decision)
        scaling = _scaling(case, seen, wants, decision)
        findings = [*case.findings, scaling]
        now = self._today()
        self._reporter.write(FAMILY, case.owner, family_status(case.owner, case.spec, seen, wants, findings, now))
        self._report_policies(case, decision, wants, version, scaling)
        if draining or decision is not None:
            return TICK_S
        return REST_S if case.findings == [APPLIED] else FAULT_S

    def _make(self, case: Case) -> list[str]:
        """Apply all objects, if anything of them may differ; drain what is no longer wanted. Returns what drains."""
        name, meta = name_of(case.owner), case.owner["metadata"]
        signature = (meta["uid"], meta["generation"], case.policy, self._world.touched(name))
        known, at = self._made.get(name, (None, 0.0))
        if signature == known and self._clock() - at < REST_S:
            case.findings.append(APPLIED)
            return []
        draining = self._apply(case)
        if case.findings == [APPLIED] and not draining:
            self._made[name] = (signature, self._clock())
        else:
            self._made.pop(name, None)
        return draining

    def _apply(self, case: Case) -> list[str]:
        if case.spec.backend == "KServe" and self._world.lacks(INFERENCE_SERVICE):
            text = "KServe is not installed (no InferenceService); install it, or use backend Deployment"
            case.findings.append(Finding("Configured", False, "KServeMissing", text))
            return []
        if not self._settings.kv_secret and any(map(keeps_kv, case.spec.levels)):
            text = "spec.levels.kvCheckpoints: the operator was not given a Secret for them (--kv-secret)"
            case.findings.append(Finding("Configured", False, "NoSecret", text))
            return []
        chain = case.policy.routing if case.policy is not None else ChainSpec()
        objects = wanted(case.owner, case.spec, chain, self._settings)
        # a new level is there before routers hear of it, and one that goes is forgotten by them first
        objects.sort(key=lambda pair: pair[0] is CONFIG_MAP)
        faults = []
        for resource, wish in objects:
            try:
                self._world.apply(resource, wish)
            except AlienError as error:
                faults.append(str(error))
            except ApiError as error:
                if error.status not in (400, 403, 422):
                    raise
                faults.append(f"{resource.kind} {name_of(wish)} refused: {error}")
        if faults:
            case.findings.append(Finding("Configured", False, "Refused", "; ".join(faults)))
            return []
        case.findings.append(APPLIED)
        return self._drains.leftovers(case.owner, {(resource, name_of(wish)) for resource, wish in objects})

    def _seen(self, family: str, spec: ModelFamilySpec) -> dict[str, Seen]:
        seen, known = {}, self._rolled_out.get(family, {})
        for level in (one.name for one in spec.levels):
            deployment = self._world.get(DEPLOYMENT, deployment_name(family, level))
            service = self._world.get(INFERENCE_SERVICE, service_name(family, level))
            seen[level] = Seen.of(deployment, service, known.get(level, ""))
        self._rolled_out[family] = {level: one.rolled_out for level, one in seen.items()}
        return seen

    def _decide(self, case: Case, seen: Mapping[str, Seen]) -> Decision | None:
        if case.policy is None:
            return None
        status = case.policies[0].get("status", {})
        family = mesh(self._key(name_of(case.owner)), case.spec, case.policy, seen, status)
        return self._control.decide(family, rules(case.policy), self._signals_of(case.policy), self._clock())

    def _wants(self, case: Case, seen: Mapping[str, Seen], decision: Decision | None) -> dict[str, int]:
        """Level -> replicas. By hand they stay as they are, within the level's bounds, until the family's copies
        change."""
        automatic = case.policy is not None and case.policy.scaling.mode == "Auto"
        copies = {one["name"]: one["copies"] for one in case.owner.get("status", {}).get("levels", [])}
        wants = {}
        for level in case.spec.levels:
            least, most = bounds(case.spec, level, case.policy)
            have = seen[level.name].wanted
            if automatic and decision is not None:
                wants[level.name] = min(max(decision.replicas[level.name], least), most)
            elif have is None or copies.get(level.name) != case.spec.replicas:
                wants[level.name] = least
            else:
                wants[level.name] = min(max(have, min(least, level.replicas.min)), most)
        return wants

    def _publish(self, case: Case, decision: Decision | None) -> int:
        if case.policy is None or decision is None:
            return 0
        known = int(case.policies[0].get("status", {}).get("weightsVersion", 0))
        try:
            return self._publisher.publish(self._key(name_of(case.owner)), decision.weights, case.policy.routing, known)
        except OSError as error:  # routers go on with what they have; the next tick tries again
            log.warning("weights of %s not published: %s", name_of(case.owner), error)
            return known

    def _scale(self, case: Case, seen: Mapping[str, Seen], wants: Mapping[str, int], decision: Decision | None) -> None:
        for level in case.spec.levels:
            name, have, want = (
                deployment_name(name_of(case.owner), level.name),
                seen[level.name].wanted,
                wants[level.name],
            )
            if have is None or have == want:
                continue
            deployment = self._world.get(DEPLOYMENT, name)
            version = deployment["metadata"]["resourceVersion"] if deployment is not None else ""
            if self._scaled.get(name) == (version, want):
                continue  # written already; the mirror will show it
            self._world.api.merge(DEPLOYMENT, name, {"spec": {"replicas": want}}, "scale")
            WRITES.labels("Scale").inc()
            self._scaled[name] = (version, want)
            decided = decision is not None and decision.replicas[level.name] == want
            why = decision.replica_reasons[level.name] if decision is not None and decided else "the family's bounds"
            self._events.tell(case.owner, "Scaled", f"{level.name}: {have} to {want} replicas: {why}")

    def _report_policies(
        self, case: Case, decision: Decision | None, wants: Mapping[str, int], version: int, scaling: Finding
    ) -> None:
        found = Finding("FamilyFound", True, "Found", f"ModelFamily {name_of(case.owner)}")
        for i, owner in enumerate(case.policies):
            if i == 0:
                valid = case.invalid or Finding("Valid", True, "Fits", "the policy fits the family")
                findings = [found, valid, _fresh(decision), scaling]
                status = policy_status(owner, findings, decision, wants, version, self._today())
            else:
                text = f"familyRef.name: RoutingPolicy {name_of(case.policies[0])!r} is older and is the one in force"
                findings = [found, Finding("Valid", False, "Superseded", text)]
                status = policy_status(owner, findings, None, {}, 0, self._today())
            self._reporter.write(POLICY, owner, status)


def _misfit(owner: Object, spec: ModelFamilySpec, policy: RoutingPolicySpec) -> Finding | None:
    """What of the policy the family doesn't have, where the API server let it pass: the family may have changed."""
    names = [level.name for level in spec.levels]
    pins, steps = policy.weights.pins, policy.objective.step_ms
    named: dict[str, Mapping[str, float]] = {"weights.pins": pins, "objective.stepMs": steps}
    faults = [
        f"spec.{field}.{name}: no level has this name (levels: {', '.join(names)})"
        for field, entries in named.items()
        for name in entries
        if name not in names
    ]
    if pins.get(names[-1], 100) == 0:
        faults.append(f"spec.weights.pins.{names[-1]}: the target is always used, it must be above 0")
    try:
        family_file(name_of(owner), owner["metadata"]["namespace"], spec, policy.routing)
    except ValidationError as error:
        faults.append(_explain("", error).replace("chain.", "spec.routing.", 1))
    return Finding("Valid", False, "Misfit", "; ".join(faults)) if faults else None


def _fresh(decision: Decision | None) -> Finding:
    if decision is None:
        return Finding("SignalsFresh", None, "NotAsked", "the policy is not in force")
    if decision.fresh:
        return Finding("SignalsFresh", True, "Fresh", "every running level and the routers report")
    return Finding("SignalsFresh", False, "Stale", f"no fresh measurements of: {', '.join(decision.stale)}")


def _scaling(case: Case, seen: Mapping[str, Seen], wants: Mapping[str, int], decision: Decision | None) -> Finding:
    """Who scales; of a family, also whether it is on the way."""
    if case.spec.replicas == 0:
        return Finding("Scaling", True, "Stopped", "replicas: 0, every level is scaled to zero")
    if case.policy is None or case.policy.scaling.mode == "Manual":
        return Finding("Scaling", True, "ByHand", "replicas are as set by kubectl scale, within each level's bounds")
    if decision is not None and not decision.fresh:
        return Finding("Scaling", True, "Frozen", "measurements are stale: replicas stay as they are")
    moving = [name for name, want in wants.items() if seen[name].wanted != want]
    return Finding("Scaling", True, "Moving" if moving else "Automatic", ", ".join(moving))


def _explain(prefix: str, error: ValidationError) -> str:
    """One ``field: what is wrong`` per fault."""
    faults = []
    for fault in error.errors(include_url=False):
        where = ".".join(filter(None, [prefix, *map(str, fault["loc"])]))
        what = str(fault["msg"]).removeprefix("Value error, ")
        faults.append(f"{where}: {what}" if where else what)
    return "; ".join(faults)
