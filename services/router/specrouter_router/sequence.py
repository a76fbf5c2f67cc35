"""One running sequence: its state machine, and everybody who acts for it.

The machine says what to do; here it is done: calls go to the links, commits to the story and the record, and
when the machine has finished, the levels are told to forget the sequence. After each commit the course may give
the machine another plan.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Protocol

from specrouter.v1 import level_pb2 as pb
from specrouter.v1 import router_pb2
from specrouter_core.chain import Chain, Plan
from specrouter_core.event import Action, Call, Cancel, Commit, Event, Failed, Finish, Lost, Replan, Reply, Withdraw
from specrouter_core.machine import Machine
from specrouter_core.prefix import Text
from specrouter_router.course import Course
from specrouter_router.flight import Flight
from specrouter_router.measure import Measure
from specrouter_router.metrics import Metrics
from specrouter_router.refusal import RefusedError, taken_over
from specrouter_router.replicas import Replicas
from specrouter_router.seat import Seat
from specrouter_router.store import Record
from specrouter_router.story import Account, ChainAccount, LevelAccount, Reason, Story
from specrouter_router.sureness import Sureness

log = logging.getLogger(__name__)

MAX_MORE = 64  # of one call, on the wire
OVERLOAD_S = 60.0  # so long an overloaded target is asked again
RETRY_MS = (1, 1000)  # bounds of the pause that an overloaded level asks for

OUTCOMES = {number: name.removeprefix("OUTCOME_").lower() for name, number in pb.Outcome.items()}
FINISHES: dict[Reason | None, router_pb2.Finish.ValueType] = {
    "stop": router_pb2.FINISH_STOP,
    "length": router_pb2.FINISH_LENGTH,
    "cancelled": router_pb2.FINISH_CANCELLED,
    None: router_pb2.FINISH_UNSPECIFIED,  # it broke off, and could be taken up again
}


class Onlooker(Protocol):
    """Who looks on as sequences grow."""

    def look(self, sequence: Sequence, commit: Commit, now: float) -> None:
        """A round was committed."""


class Sequence:
    """See the module. ``touch`` is called when something is to be published, at most once until ``publish``."""

    def __init__(
        self,
        record: Record,
        course: Course,
        links: Mapping[str, Replicas],
        story: Story,
        metrics: Metrics,
        touch: Callable[[Sequence], None],
        onlooker: Onlooker | None = None,
    ) -> None:
        spec = record.spec
        self.id = spec.sequence
        self.story = story
        self.record = record
        self._links = links
        self._metrics = metrics
        self._touch = touch
        self._onlooker = onlooker
        self._course = course
        self._target = course.first.target
        self._machine = Machine(
            course.first,
            spec.prompt,
            limit=len(spec.prompt) + spec.max_tokens,
            stop_ids=frozenset(spec.params.stop_ids),
            generated=record.tokens,
        )
        self.text = Text([*spec.prompt, *record.tokens])  # prompt and committed
        self.probe = 0  # top probabilities wanted of the target's next call
        self.probes: tuple[int, dict[str, list[pb.Probe]]] = (0, {})  # by level, from a position on: see judge.py
        self._sureness = Sureness()
        self._seats: dict[str, Seat] = {}
        self._calls: dict[int, tuple[Flight, Call]] = {}
        self._accounts = {name: LevelAccount(name) for name in course.levels}
        self._chains: dict[Chain, ChainAccount] = {}
        self._switches = 0
        self._fresh: list[tuple[Commit, Plan, float]] = []  # with the plan it was made by, and when
        self._touched = False
        self._overloaded_since: float | None = None
        self._refusal: RefusedError | None = None
        self._matched = story.matched
        self._now = asyncio.get_running_loop().time
        self._last = self._now()  # when the last round ended
        self._measure = Measure(metrics, spec.traffic_class, len(spec.prompt), self._last, resumed=bool(record.tokens))

    @property
    def ended(self) -> bool:
        """Whether the machine has finished."""
        return self._machine.finished is not None

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that it may use, lowest first."""
        return self._course.levels

    @property
    def chain(self) -> tuple[str, ...]:
        """The levels it uses now."""
        return self._machine.plan.levels

    def start(self) -> None:
        """The first calls, and the record."""
        self.story.abandoned = self.park
        self._touched = True
        self._touch(self)
        self._carry_out(self._machine.start())

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self._take(Cancel())

    def park(self) -> None:
        """Nobody follows any more: stop, but leave the record to whoever comes for it."""
        self.break_off(RefusedError("nobody followed it any more", status=503, code="abandoned"))

    def hand_over(self, refusal: RefusedError) -> None:
        """Stop here; another router should go on. The levels keep what they hold."""
        if not self.ended:
            self.record.moving = True
            self.break_off(refusal)

    def retire(self) -> None:
        """It has ended, and nobody will ask for it again."""
        self._course.ended()

    def break_off(self, refusal: RefusedError) -> None:
        """End with an error."""
        if not self.ended:
            self._refusal = refusal
            self.cancel()

    def came_back(self, level: str) -> None:
        """The level is there again."""
        self._course.came_back(level)

    def seat(self, level: str) -> Seat:
        """Where it sits at the level."""
        seat = self._seats.get(level)
        if seat is None:
            seat = self._seats[level] = Seat(self.id, self.text, self.record.spec.params)
        return seat

    # What links say.

    def fill(self, flight: Flight, message: pb.ExtendCall) -> None:
        """See flight.Owner."""
        call = self._calls[flight.call][1]
        message.sequence = self.id
        message.epoch = self.record.epoch
        flight.holding.name_prefix(message, call.base, call.ahead)
        message.proposals.extend(call.proposals)
        message.more = min(call.more, MAX_MORE)
        message.confidence = call.confidence
        message.priority = self._course.promise.priority
        if self.probe and call.level == self._target:
            message.probe, self.probe = self.probe, 0

    def replied(self, flight: Flight, reply: pb.ExtendReply) -> None:
        """See flight.Owner."""
        outcome = reply.outcome
        if outcome == pb.OUTCOME_UNSPECIFIED:
            self._take(Reply(flight.call, list(reply.tokens), False))
            return
        call = self._calls[flight.call][1]
        level = call.level
        self._metrics.call_ended(level, OUTCOMES[outcome])
        account, timing = self._accounts[level], reply.timing
        account.queue_ms += timing.queue_us / 1000
        if outcome == pb.OUTCOME_DONE:
            del self._calls[flight.call]
            now = self._now()
            if not flight.odd:
                self._course.answered(level, timing, now - flight.sent, now)
            if level == self.chain[0] != self._target:
                self._sureness.said(level, call.base + len(call.ahead), reply.confidence)
            if level == self._target:
                self._overloaded_since = None
                if reply.probes:
                    self.probes = call.base, {level: list(reply.probes)}
            unsure = bool(reply.confidence) and reply.confidence[-1] < call.confidence
            self._take(Reply(flight.call, list(reply.tokens), True, unsure))
        else:
            self._not_done(flight, level, reply)

    def _not_done(self, flight: Flight, level: str, reply: pb.ExtendReply) -> None:
        why = reply.message or pb.Outcome.Name(reply.outcome)
        if reply.outcome == pb.OUTCOME_PREFIX_UNKNOWN:
            self.failed(flight, "it holds nothing of what it said it holds", False)
        elif reply.outcome == pb.OUTCOME_OVERLOADED:
            self._overloaded(flight, level, reply, why)
        elif reply.outcome == pb.OUTCOME_STALE_EPOCH:
            self.break_off(taken_over(f"level {level}: {why}: another router owns the sequence"))
        else:
            if reply.tokens:
                self._take(Reply(flight.call, list(reply.tokens), False))
            self.failed(flight, why, False)

    def _overloaded(self, flight: Flight, level: str, reply: pb.ExtendReply, why: str) -> None:
        loop = asyncio.get_running_loop()
        pause = min(max(reply.retry_ms, RETRY_MS[0]), RETRY_MS[1]) / 1000 * self._course.promise.patience
        if level != self._target:
            loop.call_later(pause, self.failed, flight, why, False)
            return
        now = perf_counter()
        self._overloaded_since = self._overloaded_since or now
        if now - self._overloaded_since > OVERLOAD_S:
            self.failed(flight, f"{why} (for {OVERLOAD_S:g} s)", True)
        else:
            loop.call_later(pause, self._again, flight, level)

    def _again(self, flight: Flight, level: str) -> None:
        if flight.call in self._calls:
            self._links[level].send(flight)

    def failed(self, flight: Flight, why: str, gone: bool) -> None:
        """See flight.Owner."""
        if flight.call in self._calls:
            _, call = self._calls.pop(flight.call)
            self._metrics.call_ended(call.level, "gone" if gone else "failed")
            self._take(Failed(flight.call, fatal=gone, why=why))

    def broke(self, error: Exception) -> None:
        """See flight.Owner."""
        log.error("sequence %s broke off", self.id, exc_info=error)
        self.break_off(RefusedError("the router failed on a reply", status=500))

    # What the machine wants.

    def _take(self, event: Event) -> None:
        self._carry_out(self._machine.receive(event))

    def _carry_out(self, actions: list[Action]) -> None:
        committed = False
        for action in actions:
            match action:
                case Call():
                    level = action.level
                    flight = Flight(self, action.call, level == self._target, self.seat(level))
                    self._calls[action.call] = (flight, action)
                    self._links[level].send(flight)
                case Withdraw():
                    gone = self._calls.pop(action.call, None)
                    if gone is not None:
                        self._links[action.level].withdraw(gone[0])
                case Commit():
                    self.text.extend(action.tokens)
                    self._fresh.append((action, self._machine.plan, self._now()))
                    committed = True
                case Lost():
                    log.warning("sequence %s goes on without level %s: %s", self.id, action.level, action.why)
                    self._course.lost(action.level, self._machine.plan, self._now())
                case Finish():
                    if action.reason == "error":
                        self._refusal = RefusedError(f"level {action.why}", status=502, code="level_failed")
        if (committed or self.ended) and not self._touched:
            self._touched = True
            self._touch(self)

    def _learn(self, commit: Commit, plan: Plan, now: float) -> None:
        """Account for a round, and take another plan if there is one. The next calls are on their way already."""
        seconds, self._last = now - self._last, now
        self._measure.round(seconds, len(commit.tokens), now)
        account = self._chains.get(plan.chain)
        if account is None:
            levels, overlapped = plan.chain
            account = self._chains[plan.chain] = ChainAccount(list(levels), "overlapped" if overlapped else "lockstep")
        account.rounds += 1
        account.tokens += len(commit.tokens)
        account.ms += seconds * 1000
        for level, confidence, agreed in self._sureness.settle(commit):
            self._course.sure(level, confidence, agreed)
        new = self._course.committed(plan, commit, seconds, now)
        if self.ended:
            return
        if self._onlooker is not None:
            self._onlooker.look(self, commit, now)
        if new is not None and new != self._machine.plan:
            if new.levels != plan.levels:
                self._switches += 1
                self._measure.checked(plan, self._machine.tallies)
                self._metrics.switches.inc()
            self._take(Replan(new))

    # What clients and the record get.

    def publish(self) -> bool:
        """Add what was committed to story and record. Returns whether the sequence has ended."""
        self._touched = False
        fresh, self._fresh = self._fresh, []
        for commit, _, _ in fresh:
            if self._matched:
                break
            self._metrics.rounds.inc()
            for token, origin in zip(commit.tokens, commit.origins, strict=True):
                if self.story.append(token, origin):
                    self._matched = True
                    break
            for origin, count in Counter(commit.origins).items():
                self._metrics.committed(origin, count)
        if self._matched and not self.ended:
            self._touched = True  # the end is being published already
            self.cancel()
            self._fresh.clear()
        for round_ in fresh:
            self._learn(*round_)
        record = self.record
        record.round += 1
        if self.ended:
            record.ended = True
            record.finish = FINISHES[self._reason()]
            self._measure.checked(self._machine.plan, self._machine.tallies)
            if record.finish:
                self._measure.ended()
            if not record.moving:
                for name, seat in self._seats.items():
                    self._links[name].release(seat)
        return self.ended

    def _reason(self) -> Reason | None:
        if self._matched:
            return "stop"
        finish = self._machine.finished
        if self._refusal is not None or finish is None or finish.reason == "error":
            return None
        return finish.reason

    # What the store says.

    def written(self, tokens: int, ended: bool) -> None:
        """See store.Listener."""
        self.story.deliver(tokens)
        if ended and self.story.end is None:
            reason = self._reason()
            self.story.close(reason, self.account(), None if reason else self._refusal)

    def refused(self, why: str, finish: router_pb2.Finish.ValueType) -> None:
        """See store.Listener."""
        refusal = taken_over(why)
        if not self.ended and finish == router_pb2.FINISH_CANCELLED:
            self.cancel()
        elif not self.ended:
            log.warning("sequence %s: %s", self.id, why)
            self.break_off(refusal)
        elif self.story.end is None:
            if self._reason() == "cancelled":
                self.story.cut("cancelled", self.account())
            else:
                self.story.close(None, self.account(), refusal)

    def account(self) -> Account:
        """What happened so far."""
        machine = self._machine
        committed = Counter(self.story.origins)
        for name, account in self._accounts.items():
            tally = machine.tallies.get(name)
            if tally is not None:
                account.calls, account.drawn = tally.calls, tally.drawn
                account.offered, account.accepted = tally.offered, tally.accepted
            account.committed = committed[name]
            if name in self._seats:
                account.compute_ms = self._seats[name].computed_us / 1000
        chains = list(self._chains.values())
        return Account(machine.rounds, list(self._accounts.values()), list(machine.lost), chains, self._switches)
