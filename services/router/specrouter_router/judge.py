"""Judges the levels that no chain uses, so that the planner knows when they would pay again.

Now and then, after a commit, a level that was little used lately and is idle is asked to *score* the last committed
tokens: what it would have drawn at each. That tells how often it agrees with the target (and with the levels that
drew there too), and what its steps cost now. Sometimes its top probabilities are asked for as well, at positions
where the target has given its own, for the similarity of the two, and of all levels that were asked about the same
text.

Bounded: a level is judged for at most ``SHARE`` of its time, by a budget that starts full, grows with time and is
spent by what its replies say they took; one call at a time per level. The call belongs to the sequence whose text it
is, so that the level's KV of it grows from call to call, and serves the chain should the level join it. A call of the
chain supersedes a judging one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specrouter.v1 import level_pb2 as pb
from specrouter_core.adaptive import Follower
from specrouter_core.event import NOTHING, Commit
from specrouter_router.flight import Flight
from specrouter_router.metrics import Metrics
from specrouter_router.replicas import Replicas

if TYPE_CHECKING:
    from specrouter_router.planner import AdaptivePlanner
    from specrouter_router.sequence import Sequence

log = logging.getLogger(__name__)

SHARE = 0.04  # of a level's time
SAVED_S = 1.0  # most seconds of it that are saved up, and what there is at the start, when nothing is known
TOKENS = 16  # judged in one call
LOOK_S = 0.02  # how often somebody is looked for
MEMORY_S = 3.0  # over which it is said how much of the time chains use a level
USED = 0.5  # of that time: a level that is used more needs no judging
PROBE = 8  # top probabilities asked for
PROBE_EVERY = 4  # judging calls of a level, of which one asks for them

Probes = dict[str, list[pb.Probe]]  # by level, the target first; of one stretch of text


@dataclass(slots=True)
class Budget:
    """Seconds that a level may still spend on being judged."""

    at: float
    saved: float = 0.0
    spent: float = 0.0  # since the start
    calls: int = 0
    probed: int = 0  # calls when it was last asked for probabilities
    busy: bool = False
    used: float = 0.0  # share of the last seconds that chains used it

    def grow(self, now: float, used: bool) -> None:
        """Time has passed, in which a chain used it or not."""
        old = math.exp((self.at - now) / MEMORY_S)
        self.used = self.used * old + used * (1 - old)
        self.saved = min(self.saved + SHARE * (now - self.at), SAVED_S)
        self.at = now

    def pay(self, seconds: float) -> None:
        """What was estimated, and later the difference to what it was."""
        self.saved -= seconds
        self.spent += seconds


class Judge:
    """See the module."""

    def __init__(self, planner: AdaptivePlanner, links: Mapping[str, Replicas], metrics: Metrics) -> None:
        self.adaptive = planner.adaptive
        self._planner = planner
        self._links = links
        self._metrics = metrics
        self.now = asyncio.get_running_loop().time
        self.budgets = {name: Budget(self.now(), SAVED_S) for name in list(links)[:-1]}
        self._began = self.now()
        self._looked = -1e9

    def share(self, name: str) -> float:
        """Of a level's time since the start, what it was judged for."""
        return self.budgets[name].spent / max(self.now() - self._began, 1.0)

    def look(self, sequence: Sequence, commit: Commit, now: float) -> None:
        """A round was committed: perhaps ask somebody about it."""
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        chain = sequence.chain
        for name, budget in self.budgets.items():
            budget.grow(now, name in chain)
        idle = [name for name, budget in self.budgets.items() if name not in chain and self._idle(name, budget)]
        idle.sort(key=lambda name: -self.budgets[name].saved)  # most unspent time first, so that all have their turn
        for name in idle:
            if self._judge(sequence, name, commit):
                break

    def _idle(self, name: str, budget: Budget) -> bool:
        if budget.busy or budget.used > USED or budget.saved <= 0 or name in self.adaptive.absent:
            return False
        return not self._links[name].inflight

    def _judge(self, sequence: Sequence, name: str, commit: Commit) -> bool:
        """Ask one level, if that can be done now. Returns whether it was."""
        budget, text = self.budgets[name], sequence.text.tokens
        base, length, probes = max(len(text) - TOKENS, len(sequence.record.spec.prompt)), TOKENS, Probes()
        if budget.calls - budget.probed >= PROBE_EVERY:
            base, probes = sequence.probes
            if not probes or name in probes:  # come again when the target has said what it thinks further on
                sequence.probe = PROBE
                return False
            length = len(probes[self._planner.target])
        tokens = text[base:][:length]
        info = self._links[name].info
        if not tokens or info is None or info.max_length < base + len(tokens) + 1:
            return False
        seat = sequence.seat(name)
        unread = base - min(seat.held(seat.link), base)
        cost = self.adaptive.profiles[name].curve.seconds(unread + len(tokens))
        if cost > budget.saved:
            return False
        budget.pay(cost)
        budget.calls += 1
        budget.busy = True
        if probes:
            budget.probed = budget.calls
            probes[name] = []
        self._metrics.scores.inc()
        draws = {commit.start + i: drawn for i, drawn in enumerate(commit.draws)}
        score = Score(self, sequence, name, base, tokens, draws, probes, cost)
        self._links[name].send(Flight(score, 0, False, seat))
        return True

    def heard(self, score: Score, reply: pb.ExtendReply, total: float) -> None:
        """A level has judged."""
        self._planner.answered(score.level, reply.timing, total, self.now())
        target = self._planner.target
        run = 0
        fresh, follower = self._alone(score)
        said = [*reply.tokens, NOTHING]  # a level without a guess says no more
        for i, (drawn, settled) in enumerate(zip(said, score.tokens, strict=False)):
            draws = score.draws.get(score.base + i, {})
            its = follower if score.base + i >= fresh else None
            for other, token in ((target, settled), *draws.items()):
                self.adaptive.drew(run, {score.level: drawn, other: token}, its)
            run = run + 1 if drawn == settled else 0  # a chain would begin anew here
        for other, theirs in score.probes.items():
            for one, two in zip(reply.probes, theirs, strict=False):
                if one.ids and two.ids:
                    self.adaptive.probed(score.level, other, _pairs(one), _pairs(two))
        if reply.probes:
            score.probes[score.level] = list(reply.probes)

    def _alone(self, score: Score) -> tuple[int, Follower | None]:
        """The sequence judged, if its target draws alone: else its own rounds show how it differs from others.

        With the position from which on the level was not judged on it before.
        """
        follower = self.adaptive.running.get(score.sequence)
        if follower is None or len(follower.plan.levels) > 1:
            return 0, None
        end = score.base + len(score.tokens)
        fresh = follower.judged.get(score.level, 0)
        follower.judged[score.level] = end
        return fresh, follower


class Score:
    """One judging call; see flight.Owner."""

    def __init__(
        self,
        judge: Judge,
        sequence: Sequence,
        level: str,
        base: int,
        tokens: list[int],
        draws: Mapping[int, Mapping[str, int]],
        probes: Probes,
        cost: float,
    ) -> None:
        self.level = level
        self.base = base
        self.tokens = tokens  # committed, from ``base`` on
        self.draws = draws  # what other levels drew, by position
        self.probes = probes  # what others think, and this level will, from ``base`` on; empty: it is not asked
        self._judge = judge
        self._sequence = sequence
        self._cost = cost  # as estimated

    @property
    def sequence(self) -> str:
        """The name of the sequence whose text it is."""
        return self._sequence.id

    def fill(self, flight: Flight, message: pb.ExtendCall) -> None:
        """See flight.Owner."""
        message.sequence = self.sequence
        message.epoch = self._sequence.record.epoch
        flight.holding.name_prefix(message, self.base, ())
        message.proposals.extend(self.tokens)
        message.score = True
        message.priority = 0  # nobody waits for it
        message.probe = PROBE if self.probes else 0

    def replied(self, flight: Flight, reply: pb.ExtendReply) -> None:
        """See flight.Owner."""
        if reply.outcome == pb.OUTCOME_UNSPECIFIED:
            return
        self._end(reply.timing.compute_us / 1e6)
        if reply.outcome == pb.OUTCOME_DONE:
            self._judge.heard(self, reply, self._judge.now() - flight.sent)

    def failed(self, flight: Flight, why: str, gone: bool) -> None:
        """See flight.Owner."""
        self._end(self._cost)

    def broke(self, error: Exception) -> None:
        """See flight.Owner."""
        log.error("judging level %s failed", self.level, exc_info=error)
        self._end(self._cost)

    def _end(self, seconds: float) -> None:
        budget = self._judge.budgets[self.level]
        budget.busy = False
        budget.pay(seconds - self._cost)


def _pairs(probe: pb.Probe) -> list[tuple[int, float]]:
    return list(zip(probe.ids, probe.probabilities, strict=False))
