"""The plan of one sequence over time: where it begins, and when it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from specrouter_core.adaptive import STAY
from specrouter_core.chain import Plan
from specrouter_core.event import Commit

if TYPE_CHECKING:
    from specrouter.v1 import level_pb2 as pb
    from specrouter_core.promise import Promise
    from specrouter_router.planner import AdaptivePlanner
    from specrouter_router.replicas import Replicas


class Course(Protocol):
    """What a sequence asks and tells. Times are seconds of the loop's clock."""

    first: Plan
    levels: tuple[str, ...]  # that it may use, lowest first

    def answered(self, level: str, timing: pb.Timing, total: float, now: float) -> None:
        """A call was answered in full, ``total`` seconds after it was sent."""

    def committed(self, plan: Plan, commit: Commit, seconds: float, now: float) -> Plan | None:
        """A round ended under ``plan``, ``seconds`` after the one before: another plan from now on, or None."""

    def lost(self, level: str, plan: Plan, now: float) -> None:
        """A level failed and left the chain; ``plan`` is what is left."""

    def came_back(self, level: str) -> None:
        """A level can be reached again."""

    def sure(self, level: str, confidence: float, agreed: bool) -> None:
        """How sure a level was of a draw, and whether it was right."""

    @property
    def promise(self) -> Promise:
        """What its class of traffic was promised."""

    def ended(self) -> None:
        """The sequence has ended."""


class FixedCourse:
    """One plan, less the levels that are down."""

    def __init__(self, wanted: Plan, links: Mapping[str, Replicas], promise: Promise) -> None:
        self.levels = wanted.levels
        self._promise = promise
        self._wanted = wanted
        self._links = links
        self._news = False
        self.first = self._now()

    def answered(self, level: str, timing: pb.Timing, total: float, now: float) -> None:
        """Nothing is learnt."""

    def committed(self, plan: Plan, commit: Commit, seconds: float, now: float) -> Plan | None:
        """See Course."""
        if not self._news:
            return None
        self._news = False
        return self._now()

    def lost(self, level: str, plan: Plan, now: float) -> None:
        """It stays away until its link is new."""

    def came_back(self, level: str) -> None:
        """See Course."""
        self._news = self._news or level in self.levels

    def sure(self, level: str, confidence: float, agreed: bool) -> None:
        """Nothing is learnt."""

    @property
    def promise(self) -> Promise:
        """See Course."""
        return self._promise

    def ended(self) -> None:
        """Nothing to do."""

    def _now(self) -> Plan:
        plan = self._wanted
        for name in self.levels[:-1]:
            if not self._links[name].ready:
                plan = plan.without(name)
        return plan


class FollowedCourse(FixedCourse):
    """A plan that the client fixed: it doesn't change, but what it shows is learnt."""

    def __init__(
        self, name: str, wanted: Plan, links: Mapping[str, Replicas], planner: AdaptivePlanner, traffic: str
    ) -> None:
        super().__init__(wanted, links, planner.promise(traffic))
        self._name = name
        self._planner = planner
        self._plan: Plan | None = None  # of the round before
        planner.adaptive.begin(name, planner.now(), plan=self.first, promise=self._promise)

    def answered(self, level: str, timing: pb.Timing, total: float, now: float) -> None:
        """See Course."""
        self._planner.answered(level, timing, total, now)

    def committed(self, plan: Plan, commit: Commit, seconds: float, now: float) -> Plan | None:
        """See Course."""
        self._planner.committed(self._name, plan, commit, seconds, now)
        if plan is not self._plan:  # the first round reads the prompt: it says nothing of what a token takes
            self._plan = plan
            self._planner.adaptive.uses(self._name, plan, now)
        return super().committed(plan, commit, seconds, now)

    def sure(self, level: str, confidence: float, agreed: bool) -> None:
        """See Course."""
        self._planner.adaptive.trust.observe(level, confidence, agreed)

    def ended(self) -> None:
        """See Course."""
        self._planner.adaptive.end(self._name)


class AdaptiveCourse:
    """The best plan of all, from what was measured. For a text of ``prompt`` tokens and at most ``room`` more."""

    def __init__(
        self, name: str, levels: tuple[str, ...], planner: AdaptivePlanner, traffic: str, prompt: int, room: int
    ) -> None:
        self.levels = levels
        self._name = name
        self._planner = planner
        self._traffic = traffic
        self._prompt = prompt
        self._room = room
        self._rounds = 0
        self._promise = planner.promise(traffic)
        self.first = self._begin(planner.now(), planner.classes.ease(traffic))

    def _begin(self, now: float, ease: float) -> Plan:
        return self._planner.adaptive.begin(
            self._name, now, ease=ease, promise=self._promise, prompt=self._prompt, limit=self._room
        )

    def answered(self, level: str, timing: pb.Timing, total: float, now: float) -> None:
        """See Course."""
        self._planner.answered(level, timing, total, now)

    def committed(self, plan: Plan, commit: Commit, seconds: float, now: float) -> Plan | None:
        """See Course."""
        self._rounds += 1
        chosen = self._planner.committed(self._name, plan, commit, seconds, now)
        if chosen is not None:
            self._planner.switches += chosen.levels != plan.levels
        return chosen

    def lost(self, level: str, plan: Plan, now: float) -> None:
        """See Course."""
        self._planner.shun(level, now)
        self._planner.adaptive.uses(self._name, plan, now)

    def came_back(self, level: str) -> None:
        """The planner has seen it."""

    def sure(self, level: str, confidence: float, agreed: bool) -> None:
        """See Course."""
        self._planner.adaptive.trust.observe(level, confidence, agreed)

    @property
    def promise(self) -> Promise:
        """See Course."""
        return self._promise

    def ended(self) -> None:
        """See Course."""
        adaptive = self._planner.adaptive
        follower = adaptive.running.get(self._name)
        if follower is not None and self._traffic:
            self._planner.classes.saw(self._traffic, follower.ease.shift, self._rounds)
        adaptive.end(self._name)


class NarrowCourse(AdaptiveCourse):
    """The best of the plans that ``fits``: the client fixed chain or mode, or its text is too long for a level.

    Where the planner has none, ``otherwise``.
    """

    def __init__(
        self,
        name: str,
        levels: tuple[str, ...],
        planner: AdaptivePlanner,
        traffic: str,
        prompt: int,
        room: int,
        fits: Callable[[Plan], bool],
        otherwise: Callable[[], Plan],
    ) -> None:
        self._fits = fits
        self._otherwise = otherwise
        super().__init__(name, levels, planner, traffic, prompt, room)

    def _begin(self, now: float, ease: float) -> Plan:
        adaptive, otherwise = self._planner.adaptive, self._otherwise()
        adaptive.begin(self._name, now, ease=ease, plan=otherwise, promise=self._promise)
        plan = adaptive.best(self._name, now, self._fits) or otherwise
        adaptive.uses(self._name, plan, now)
        return plan

    def committed(self, plan: Plan, commit: Commit, seconds: float, now: float) -> Plan | None:
        """See Course."""
        super().committed(plan, commit, seconds, now)
        if self._rounds % STAY:
            return None
        adaptive = self._planner.adaptive
        chosen = adaptive.best(self._name, now, self._fits) or self._otherwise()
        if chosen == plan:
            return None
        self._planner.switches += chosen.levels != plan.levels
        adaptive.uses(self._name, chosen, now)
        return chosen
