"""The mesh in simulated time: the same machine and planner as in the router, levels as cost curves.

Discrete events, one heap. Levels form steps as the real ones do (replica.py). A hop takes a fixed time each way. A
router takes all replies that have come, ``router_seconds`` for each, and then sends the calls that follow together.
Text is synthetic: the token at a position is a hash of (sequence, position, token before), and a level draws the same
token as the target with its ``agreement``, raised or lowered per sequence by ``Arrival.ease``; what is easy for a
level is easy for every better one.

Meant for what cannot be run: thousands of sequences, hundreds of replicas, levels one does not own. Not modelled: slots
(a replica holds any number of sequences), Redis, clients, and processes that share a core.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specrouter_core.chain import Plan
from specrouter_core.event import Action, Call, Cancel, Commit, Event, Finish, Replan, Reply, Withdraw
from specrouter_core.machine import Machine
from specrouter_core.noise import mix
from specrouter_core.profile import Answered
from specrouter_core.replica import VOCABULARY, Draw, Replica, SimLevel, Work
from specrouter_core.workload import Arrival, Outcome

UNIT = 2.0**-64


@dataclass(slots=True)
class Told:
    """What a policy is told when a call was answered, as the router knows it of a reply."""

    sequence: int
    level: str
    call: Answered
    now: float


class Policy:
    """Chooses plans. This one always answers the same; override for others."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def attach(self, simulator: Simulator) -> None:
        """It is about to be asked by this simulator."""

    def first(self, sequence: int, now: float) -> Plan:
        """The plan of a new sequence."""
        return self.plan

    def next(self, sequence: int, machine: Machine, commit: Commit, now: float) -> Plan | None:
        """After a commit: another plan, or None to stay."""
        return None

    def told(self, told: Told) -> None:
        """A call was answered."""

    def ended(self, sequence: int, outcome: Outcome) -> None:
        """A sequence has ended."""


@dataclass(slots=True, eq=False)
class _Router:
    """Replies that wait for its next turn, by call."""

    inbox: dict[int, tuple[Replica, Work, Reply]] = field(default_factory=dict)
    busy: bool = False


class Simulator:
    """Runs arrivals through levels under a policy.

    ``hop`` is the one-way time in seconds. Sequences go to ``routers`` in turn. ``stopwatch`` (for example
    ``time.perf_counter``; the core has no clock of its own) measures what the routers' part really takes to compute,
    in ``router_cost``.
    """

    def __init__(
        self,
        levels: Sequence[SimLevel],
        policy: Policy,
        *,
        hop: float = 0.0003,
        seed: int = 1,
        routers: int = 1,
        router_seconds: float = 0.0,
        stopwatch: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.levels = {level.name: level for level in levels}
        self.policy = policy
        self.hop = hop
        self.seed = seed
        self.now = 0.0
        self.rounds = 0
        self.router_events = 0
        self.router_cost = 0.0  # seconds of the stopwatch in machines and policy
        self.outcomes: list[Outcome] = []
        self.changes: list[tuple[float, Callable[[Simulator], None]]] = []  # (time, what to change)
        self._replicas = {x.name: [Replica(x, self._language(x)) for _ in range(x.replicas)] for x in levels}
        self._machines: dict[int, Machine] = {}
        self._placed: dict[tuple[int, str], Replica] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._events = 0
        self._random = random.Random(seed)
        self._router_seconds = router_seconds
        self._routers = [_Router() for _ in range(routers)]
        self._stopwatch = stopwatch
        policy.attach(self)

    def add_replica(self, name: str) -> None:
        """One more replica of a level, from now on."""
        level, replicas = self.levels[name], self._replicas[name]
        replicas.append(Replica(level, self._language(level)))

    def busy_seconds(self) -> dict[str, float]:
        """Time each level's replicas spent in steps, together."""
        return {name: sum(r.busy_seconds for r in replicas) for name, replicas in self._replicas.items()}

    def utilisation(self) -> dict[str, float]:
        """Share of its replicas' time until now that each level spent in steps."""
        return {
            name: busy / max(self.now * len(self._replicas[name]), 1e-9) for name, busy in self.busy_seconds().items()
        }

    def run(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """Until all have ended; outcomes in the order of ``arrivals``."""
        self.outcomes = []
        for arrival in arrivals:
            self.add(arrival)
        for at, change in self.changes:
            self._at(at, lambda c=change: c(self))  # type: ignore[misc]
        while self._heap:
            self.now, _, event = heapq.heappop(self._heap)
            event()
        return self.outcomes

    def add(self, arrival: Arrival) -> int:
        """One more request, not earlier than now; returns its number. For policies that go on where one has ended."""
        sequence = len(self.outcomes)
        self.outcomes.append(Outcome(arrival))
        self._at(max(arrival.at, self.now), lambda: self._arrive(sequence))
        return sequence

    def drawn(self, name: str, sequence: int, position: int, before: int) -> int:
        """What a level draws, or would draw, at a position of a sequence after the token ``before``."""
        return self._replicas[name][0].draw(sequence, position, before)

    def cancel(self, sequence: int) -> None:
        """End a running sequence."""
        if sequence in self._machines:
            self._tell(sequence, Cancel())

    def _at(self, time: float, event: Callable[[], None]) -> None:
        self._events += 1
        heapq.heappush(self._heap, (time, self._events, event))

    # The router's side.

    def _arrive(self, sequence: int) -> None:
        arrival = self.outcomes[sequence].arrival
        begin = self._stopwatch()
        plan = self.policy.first(sequence, self.now)
        machine = Machine(plan, [1] * arrival.prompt, limit=arrival.prompt + arrival.tokens)
        self._machines[sequence] = machine
        actions = machine.start()
        self.router_cost += self._stopwatch() - begin
        self._carry_out(sequence, actions)

    def _deliver(self, replica: Replica, work: Work, reply: Reply) -> None:
        """A reply comes to its router. What the router has not looked at yet of the same call, it replaces."""
        router = self._routers[work.sequence % len(self._routers)]
        router.inbox[id(work)] = (replica, work, reply)
        if not router.busy:
            router.busy = True
            self._at(self.now, lambda: self._begin_tick(router))

    def _begin_tick(self, router: _Router) -> None:
        """The router takes all that has come, and then sends all that follows."""
        taken, router.inbox = list(router.inbox.values()), {}
        router.busy = bool(taken)
        if taken:
            self._at(self.now + self._router_seconds * len(taken), lambda: self._end_tick(router, taken))

    def _end_tick(self, router: _Router, taken: list[tuple[Replica, Work, Reply]]) -> None:
        for replica, work, reply in taken:
            self._replied(replica, work, reply)
        self._begin_tick(router)

    def _replied(self, replica: Replica, work: Work, reply: Reply) -> None:
        if work.sequence not in self._machines:
            return
        self.router_events += 1
        if reply.done:
            begin = self._stopwatch()
            call = Answered(
                steps=work.steps,
                rows=work.rows,
                fed=work.fed,
                batch=work.batch,
                compute=work.compute,
                queue=(work.began or work.arrived) - work.arrived,
                total=self.now - work.sent,
            )
            self.policy.told(Told(work.sequence, replica.level.name, call, self.now))
            self.router_cost += self._stopwatch() - begin
        self._tell(work.sequence, reply)

    def _tell(self, sequence: int, event: Event) -> None:
        begin = self._stopwatch()
        actions = self._machines[sequence].receive(event)
        self.router_cost += self._stopwatch() - begin
        self._carry_out(sequence, actions)

    def _carry_out(self, sequence: int, actions: list[Action]) -> None:
        outcome = self.outcomes[sequence]
        machine = self._machines[sequence]
        commit: Commit | None = None
        for action in actions:
            match action:
                case Call():
                    self._send(sequence, machine, action)
                case Withdraw():
                    replica, call = self._placed[sequence, action.level], action.call
                    self._at(self.now + self.hop, lambda r=replica, c=call: r.withdraw(sequence, c))  # type: ignore[misc]
                case Commit():
                    outcome.first = outcome.first or self.now
                    outcome.tokens += len(action.tokens)
                    chain = machine.plan.levels
                    outcome.chains[chain] = outcome.chains.get(chain, 0) + len(action.tokens)
                    self.rounds += 1
                    commit = action
                case Finish():
                    self._end(sequence)
        if commit is not None and machine.finished is None:
            begin = self._stopwatch()
            plan = self.policy.next(sequence, machine, commit, self.now)
            self.router_cost += self._stopwatch() - begin
            if plan is not None and plan != machine.plan:
                outcome.switches += plan.levels != machine.plan.levels
                self._tell(sequence, Replan(plan))

    def _end(self, sequence: int) -> None:
        outcome = self.outcomes[sequence]
        outcome.end = self.now
        outcome.rounds = self._machines[sequence].rounds
        self.policy.ended(sequence, outcome)
        del self._machines[sequence]
        for name in self.levels:
            replica = self._placed.pop((sequence, name), None)
            if replica is not None:
                replica.release(sequence)

    def _place(self, sequence: int, name: str) -> Replica:
        """The sequence's replica of a level: the less loaded of two drawn at random."""
        placed = self._placed.get((sequence, name))
        if placed is None:
            replicas = self._replicas[name]
            a, b = self._random.choice(replicas), self._random.choice(replicas)
            placed = a if len(a.held) <= len(b.held) else b
            placed.open(sequence, self.outcomes[sequence].arrival.prompt)
            self._placed[sequence, name] = placed
        return placed

    def _send(self, sequence: int, machine: Machine, call: Call) -> None:
        replica = self._place(sequence, call.level)
        there = self.now + self.hop
        work = Work(sequence, call.call, call.base, call.ahead, call.proposals, call.more + 1, self.now, there)
        self._at(there, lambda: self._receive(replica, work, machine.committed))

    # The level's side.

    def _language(self, level: SimLevel) -> Draw:
        order = list(self.levels).index(level.name)

        def draw(sequence: int, position: int, before: int) -> int:
            text = self.outcomes[sequence].arrival.text
            text = sequence if text is None else text
            place = mix(mix(self.seed * 1_000_003 + text) ^ (position * 131_071 + before))
            token = place % VOCABULARY
            right = level.agreement if level.agreement >= 1 else level.agreement + self.outcomes[sequence].arrival.ease
            if mix(place + 1) * UNIT >= right:
                token = (token + 1 + order) % VOCABULARY
            return token

        return draw

    def _receive(self, replica: Replica, work: Work, committed: Sequence[int]) -> None:
        if work.sequence in self._machines:
            if replica.receive(work, committed):
                self._answer(replica, work)
            self._at(self.now, lambda: self._step(replica))  # after all that came at the same time

    def _step(self, replica: Replica) -> None:
        seconds = replica.form(self.now)
        if seconds is not None:
            self._at(self.now + seconds + replica.pause(), lambda: self._finish(replica))

    def _finish(self, replica: Replica) -> None:
        for work in replica.finish():
            self._answer(replica, work)
        self._step(replica)

    def _answer(self, replica: Replica, work: Work) -> None:
        reply = Reply(work.call, tuple(work.out), work.left <= 0)
        self._at(self.now + self.hop, lambda: self._deliver(replica, work, reply))
