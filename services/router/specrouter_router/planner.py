"""Which levels a sequence uses: always the same, or what is predicted to be best."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from specrouter.v1 import level_pb2 as pb
from specrouter_core.adaptive import ANYBODY, Adaptive, Limits, Member
from specrouter_core.chain import Plan
from specrouter_core.event import Commit
from specrouter_core.profile import Answered
from specrouter_core.promise import Promise
from specrouter_family.family import ChainSpec, Family
from specrouter_router.course import AdaptiveCourse, Course, FixedCourse, FollowedCourse, NarrowCourse
from specrouter_router.metrics import Metrics
from specrouter_router.pin import Pin
from specrouter_router.replicas import Replicas
from specrouter_router.traffic import Classes

LOOK_S = 0.05  # how often the links are looked at
SHUN_S = 2.0  # so long a level that failed is left out of new plans
FORGET = 0.98  # weight of what was measured of a chain, after each further round

Chain = tuple[tuple[str, ...], bool]  # levels, whether they overlap


def chain_of(plan: Plan) -> Chain:
    """What two plans share that differ in their windows only."""
    return plan.levels, plan.overlapped and len(plan.levels) > 1


class FixedPlanner:
    """The chain section of the family file, less what was not asked for, is down or is too short."""

    def __init__(self, family: Family, links: Mapping[str, Replicas]) -> None:
        self._names = tuple(level.name for level in family.levels)
        self._chain = family.chain
        self._links = links

    def course(self, name: str, pin: Pin, prompt: int, room: int, traffic: str) -> Course:
        """The course of a sequence of ``prompt`` tokens and at most ``room`` more.

        Raises InvalidError when ``pin`` is wrong.
        """
        pin.check(self._names, self._chain.chains)
        return FixedCourse(self.wanted(pin, prompt + room), self._links, _promise(self._chain, traffic))

    def steer(self, weights: Mapping[str, float], chain: ChainSpec) -> None:
        """New sequences follow this chain section; weights are for planners that choose."""
        self._chain = chain

    def _allowed(self) -> tuple[str, ...]:
        return tuple(self._chain.chains[0]) if self._chain.chains and self._chain.policy == "fixed" else self._names

    def wanted(self, pin: Pin, length: int) -> Plan:
        """The plan if every level were up: with a fixed policy, of the first chain that is allowed."""
        overlapped = self._chain.mode != "lockstep" if pin.mode is None else pin.mode == "overlapped"
        levels = pin.chain or self._allowed()
        windows = tuple(self._chain.windows[level] for level in levels)
        plan = pin.plan(overlapped) or Plan(levels, windows, self._chain.lookahead, overlapped)
        for level in levels[:-1]:
            if not fits_in(self._links[level], length):
                plan = plan.without(level)
        return plan


def fits_in(link: Replicas, length: int) -> bool:
    """Whether a level takes texts of ``length`` tokens, as far as it is known."""
    return link.info is not None and link.info.max_length >= length


@dataclass(slots=True)
class Pace:
    """What a chain took, in the last rounds."""

    seconds: float = 0.0
    tokens: float = 0.0
    rounds: int = 0  # all there were

    def add(self, seconds: float, tokens: int) -> None:
        """One round."""
        self.seconds = self.seconds * FORGET + seconds
        self.tokens = self.tokens * FORGET + tokens
        self.rounds += 1


class AdaptivePlanner:
    """The chain, mode and windows of the least predicted time per token, within the family's limits.

    To be made when all links know what their levels are. ``now`` is the loop's clock, in seconds.
    """

    def __init__(self, family: Family, links: Mapping[str, Replicas], metrics: Metrics) -> None:
        self._names = tuple(level.name for level in family.levels)
        self._chain = family.chain
        self._links = links
        self._metrics = metrics
        self.now = asyncio.get_running_loop().time
        self.classes = Classes()
        self.paces: dict[Chain, Pace] = {}
        self.switches = 0  # of running sequences' chains
        self.adaptive = Adaptive(
            [Member(level.name, _costs(links[level.name].info), weight=level.weight) for level in family.levels],
        )
        self.adaptive.tables.limits = _limits(family.chain)
        self._fixed = FixedPlanner(family, links)
        self._shunned: dict[str, float] = {}  # level -> until when
        self._looked = -1e9

    @property
    def target(self) -> str:
        """The level whose draws are committed."""
        return self._names[-1]

    def course(self, name: str, pin: Pin, prompt: int, room: int, traffic: str) -> Course:
        """The course of a sequence of ``prompt`` tokens and at most ``room`` more.

        Raises InvalidError when ``pin`` is wrong.
        """
        pin.check(self._names, self._chain.chains)
        self.look(self.now())
        wanted = self._fixed.wanted(pin, prompt + room)
        if pin.windows:
            return FollowedCourse(name, wanted, self._links, self, traffic)
        levels = wanted.levels
        if not pin.chain and pin.mode is None and levels == self._names:
            return AdaptiveCourse(name, levels, self, traffic, prompt, room)
        mode = None if pin.mode is None else pin.mode == "overlapped"
        pinned = bool(pin.chain)

        def fits(plan: Plan) -> bool:
            if mode is not None and len(plan.levels) > 1 and plan.overlapped is not mode:
                return False
            if pinned:
                return plan.levels == tuple(name for name in levels if name not in self.adaptive.absent)
            return set(plan.levels) <= set(levels)

        def otherwise() -> Plan:
            plan = wanted
            for level in levels[:-1]:
                if level in self.adaptive.absent:
                    plan = plan.without(level)
            return plan

        return NarrowCourse(name, levels, self, traffic, prompt, room, fits, otherwise)

    def promise(self, traffic: str) -> Promise:
        """What the class was promised."""
        return _promise(self._chain, traffic)

    def answered(self, level: str, timing: pb.Timing, total: float, now: float) -> None:
        """A call was answered in full, ``total`` seconds after it was sent."""
        call = Answered(
            steps=timing.steps,
            rows=timing.rows,
            fed=timing.all_rows,
            batch=timing.batch,
            compute=timing.compute_us / 1e6,
            queue=timing.queue_us / 1e6,
            total=total,
        )
        self.adaptive.answered(level, call, now)

    def committed(self, name: str, plan: Plan, commit: Commit, seconds: float, now: float) -> Plan | None:
        """A round of a sequence ended; what it should use from now on, None for the same."""
        chain = chain_of(plan)
        pace = self.paces.get(chain)
        if pace is None:
            pace = self.paces[chain] = Pace()
        follower = self.adaptive.running.get(name)
        if follower is not None and follower.generated:  # not the round that reads the prompt
            pace.add(seconds, len(commit.tokens))
        if now - self._looked > LOOK_S:
            self.look(now)
        return self.adaptive.committed(name, commit, now)

    def steer(self, weights: Mapping[str, float], chain: ChainSpec) -> None:
        """Plan with these weights, and within these limits, from now on. The target is always used."""
        for member in self.adaptive.members:
            weight = weights.get(member.name, member.weight)
            if weight > 0 or member.name != self.target:
                member.weight = weight
        self._chain = chain
        self._fixed.steer(weights, chain)
        self.adaptive.tables.limits = _limits(chain)
        self.adaptive.changed()

    def shun(self, level: str, now: float) -> None:
        """The level failed a sequence: leave it out of plans for a while."""
        self._shunned[level] = now + SHUN_S
        self.look(now)

    def look(self, now: float) -> None:
        """See which levels can be used."""
        self._looked = now
        target = self._names[-1]
        absent = {
            name
            for name in self._names
            if name != target and (not self._links[name].ready or self._shunned.get(name, 0.0) > now)
        }
        counts = [max(self._links[name].count, 1) for name in self._names]
        if absent != set(self.adaptive.absent) or counts != [member.replicas for member in self.adaptive.members]:
            for member, count in zip(self.adaptive.members, counts, strict=True):
                member.replicas = count
            self.adaptive.without(absent)


def _limits(chain: ChainSpec) -> Limits:
    """What plans may be."""
    return Limits(
        modes=chain.modes,
        windows=chain.windows,
        lookahead=chain.lookahead,
        chains=frozenset(map(tuple, chain.chains)),
        waste=chain.waste,
    )


def _promise(chain: ChainSpec, traffic: str) -> Promise:
    """What a class of traffic may expect."""
    said = chain.classes.get(traffic)
    if said is None:
        return ANYBODY
    return Promise(
        said.priority,
        None if said.ttft_ms is None else said.ttft_ms / 1000,
        None if said.tpot_ms is None else said.tpot_ms / 1000,
    )


def _costs(info: pb.DescribeResponse | None) -> dict[int, float]:
    """Rows -> seconds, as the level measured at its start. Levels that take no time say nothing."""
    return {cost.rows: cost.microseconds / 1e6 for cost in info.costs if cost.microseconds} if info else {}
