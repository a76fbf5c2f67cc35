"""The mesh in simulated time: the same machine and planner as in the router, levels as cost curves.

Discrete events, one heap. A level replica forms steps as the real one does: all its calls take part in
the next step, a step's time is the curve at the rows it feeds, a newer call of a sequence supersedes the older
one, and a draw that is known already costs nothing. A hop takes a fixed time each way. Text is synthetic: the token
at a position is a hash of (sequence, position, token before), and a level draws the same token as the target with
its ``agreement``, raised or lowered per sequence by ``Arrival.ease``.

Meant for what cannot be run: thousands of sequences, hundreds of replicas, levels one does not own.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specrouter_core.chain import Plan
from specrouter_core.machine import Action, Call, Cancel, Commit, Finish, Machine, Replan, Reply, Withdraw
from specrouter_core.noise import mix
from specrouter_core.profile import Curve

VOCABULARY = 50_000
UNIT = 2.0**-64


@dataclass(slots=True)
class SimLevel:
    """A level and its replicas."""

    name: str
    curve: Curve
    agreement: float  # with the target's draws, 0 to 1; 1 for the target
    replicas: int = 1
    max_rows: int = 512
    slowdown: float = 1.0  # may be changed while it runs


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    at: float  # seconds
    tokens: int  # to generate
    prompt: int = 16  # tokens
    ease: float = 0.0  # added to each level's agreement


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in simulated seconds."""

    arrival: Arrival
    first: float = 0.0
    end: float = 0.0
    tokens: int = 0
    rounds: int = 0
    switches: int = 0
    chains: dict[tuple[str, ...], int] = field(default_factory=dict)  # tokens committed by chain

    @property
    def per_token(self) -> float:
        """Seconds per generated token, from arrival to end."""
        return (self.end - self.arrival.at) / max(self.tokens, 1)


@dataclass(slots=True)
class Told:
    """What a policy is told when a call was answered, as the router knows it of a reply."""

    level: str
    replica: int
    rows: int
    batch: int
    steps: int
    compute: float
    queue: float
    total: float
    now: float


class Policy:
    """Chooses plans. This one always answers the same; override for others."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

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
class _Work:
    """A call at a replica."""

    sequence: int
    call: int
    text: list[int]  # the prefix's last token and after; position of text[0] is ``start``
    start: int
    proposals: Sequence[int]
    left: int  # own draws still wanted
    sent: float
    arrived: float
    out: list[int] = field(default_factory=list)
    checking: bool = True
    began: float | None = None
    compute: float = 0.0
    steps: int = 0
    rows: int = 0
    batch: int = 0
    rest: int = 0  # prompt tokens still to feed


@dataclass(slots=True, eq=False)
class _Replica:
    level: SimLevel
    index: int
    works: dict[int, _Work] = field(default_factory=dict)  # by sequence
    known: dict[int, dict[int, int]] = field(default_factory=dict)  # sequence -> hash of place -> draw
    prompts: set[int] = field(default_factory=set)  # sequences whose prompt it has
    busy: bool = False
    busy_seconds: float = 0.0


class Simulator:
    """Runs arrivals through levels under a policy. ``hop`` is the one-way time in seconds."""

    def __init__(self, levels: Sequence[SimLevel], policy: Policy, *, hop: float = 0.0003, seed: int = 1) -> None:
        self.levels = {level.name: level for level in levels}
        self.policy = policy
        self.hop = hop
        self.seed = seed
        self.now = 0.0
        self.rounds = 0
        self.outcomes: list[Outcome] = []
        self.changes: list[tuple[float, Callable[[Simulator], None]]] = []  # (time, what to change)
        self._replicas = {x.name: [_Replica(x, i) for i in range(x.replicas)] for x in levels}
        self._order = {level.name: i for i, level in enumerate(levels)}
        self._machines: dict[int, Machine] = {}
        self._placed: dict[tuple[int, str], _Replica] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._events = 0
        self._random = random.Random(seed)

    def add_replica(self, name: str) -> None:
        """One more replica of a level, from now on."""
        replicas = self._replicas[name]
        replicas.append(_Replica(self.levels[name], len(replicas)))

    def busy_seconds(self) -> dict[str, float]:
        """Time each level's replicas spent in steps, together."""
        return {name: sum(r.busy_seconds for r in replicas) for name, replicas in self._replicas.items()}

    def run(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """Until all have ended; outcomes in the order of ``arrivals``."""
        self.outcomes = [Outcome(arrival) for arrival in arrivals]
        for sequence, arrival in enumerate(arrivals):
            self._at(arrival.at, lambda s=sequence: self._arrive(s))  # type: ignore[misc]
        for at, change in self.changes:
            self._at(at, lambda c=change: c(self))  # type: ignore[misc]
        while self._heap:
            self.now, _, event = heapq.heappop(self._heap)
            event()
        return self.outcomes

    # The router's side.

    def _at(self, time: float, event: Callable[[], None]) -> None:
        self._events += 1
        heapq.heappush(self._heap, (time, self._events, event))

    def _arrive(self, sequence: int) -> None:
        arrival = self.outcomes[sequence].arrival
        plan = self.policy.first(sequence, self.now)
        machine = Machine(plan, [1] * arrival.prompt, limit=arrival.prompt + arrival.tokens)
        self._machines[sequence] = machine
        self._carry_out(sequence, machine.start())

    def _carry_out(self, sequence: int, actions: list[Action]) -> None:
        outcome = self.outcomes[sequence]
        machine = self._machines[sequence]
        for action in actions:
            match action:
                case Call():
                    self._send(sequence, machine, action)
                case Withdraw():
                    replica = self._placed[sequence, action.level]
                    call = action.call
                    self._at(self.now + self.hop, lambda r=replica, c=call: self._withdraw(r, sequence, c))  # type: ignore[misc]
                case Commit():
                    outcome.first = outcome.first or self.now
                    outcome.tokens += len(action.tokens)
                    chain = machine.plan.levels
                    outcome.chains[chain] = outcome.chains.get(chain, 0) + len(action.tokens)
                    self.rounds += 1
                case Finish():
                    self._end(sequence)
        commits = [action for action in actions if isinstance(action, Commit)]
        if commits and machine.finished is None:
            plan = self.policy.next(sequence, machine, commits[-1], self.now)
            if plan is not None and plan != machine.plan:
                outcome.switches += plan.levels != machine.plan.levels
                self._carry_out(sequence, machine.receive(Replan(plan)))

    def _end(self, sequence: int) -> None:
        outcome = self.outcomes[sequence]
        outcome.end = self.now
        outcome.rounds = self._machines[sequence].rounds
        self.policy.ended(sequence, outcome)
        del self._machines[sequence]
        for name in self.levels:
            replica = self._placed.pop((sequence, name), None)
            if replica is not None:
                replica.works.pop(sequence, None)
                replica.known.pop(sequence, None)
                replica.prompts.discard(sequence)

    def _place(self, sequence: int, name: str) -> _Replica:
        """The sequence's replica of a level: the less loaded of two drawn at random."""
        placed = self._placed.get((sequence, name))
        if placed is None:
            replicas = self._replicas[name]
            a, b = self._random.choice(replicas), self._random.choice(replicas)
            placed = a if len(a.known) <= len(b.known) else b
            placed.known[sequence] = {}
            self._placed[sequence, name] = placed
        return placed

    def _send(self, sequence: int, machine: Machine, call: Call) -> None:
        replica = self._place(sequence, call.level)
        text = [machine.committed[call.base - 1], *call.ahead]
        prompt = 0 if sequence in replica.prompts else machine.prompt_length
        work = _Work(
            sequence,
            call.call,
            text,
            call.base - 1,
            call.proposals,
            call.more + 1,
            self.now,
            self.now + self.hop,
            rest=prompt,
        )
        self._at(work.arrived, lambda: self._receive(replica, work))

    # The level's side.

    def _receive(self, replica: _Replica, work: _Work) -> None:
        if work.sequence in self._machines:
            replica.works[work.sequence] = work
            self._advance(replica, work)
            self._step(replica)

    def _withdraw(self, replica: _Replica, sequence: int, call: int) -> None:
        work = replica.works.get(sequence)
        if work is not None and work.call == call:
            del replica.works[sequence]

    def _draw(self, level: SimLevel, sequence: int, position: int, before: int) -> int:
        place = mix(mix(self.seed * 1_000_003 + sequence) ^ (position * 131_071 + before))
        token = place % VOCABULARY
        agreement = level.agreement if level.agreement >= 1 else level.agreement + self.outcomes[sequence].arrival.ease
        if mix(place + 1) * UNIT >= agreement:  # what is easy for a level is easy for every better one
            token = (token + 1 + self._order[level.name]) % VOCABULARY
        return token

    def _advance(self, replica: _Replica, work: _Work) -> None:
        """Take the draws that are known; reply when there is news."""
        known = replica.known.get(work.sequence)
        if known is None:
            return
        news = False
        while work.left > 0:
            before = work.out[-1] if work.out else work.text[-1]
            position = work.start + len(work.text) + len(work.out)
            token = known.get(mix(position * VOCABULARY + before))
            if token is None:
                break
            at = len(work.out)
            work.out.append(token)
            news = True
            if work.checking and at < len(work.proposals) and work.proposals[at] == token:
                continue
            work.checking = False
            work.left -= 1
        if news:
            done = work.left <= 0
            if done:
                replica.works.pop(work.sequence, None)
            reply = Reply(work.call, tuple(work.out), done)
            self._at(self.now + self.hop, lambda: self._reply(replica, work, reply))

    def _step(self, replica: _Replica) -> None:
        if replica.busy or not replica.works:
            return
        replica.busy = True
        rows = 0
        batch: list[_Work] = []
        for work in replica.works.values():
            need = 1 + (len(work.proposals) - len(work.out) if work.checking else 0) + work.rest
            if rows and rows + need > replica.level.max_rows:
                continue
            rows += need
            batch.append(work)
        seconds = replica.level.curve.seconds(rows) * replica.level.slowdown
        replica.busy_seconds += seconds
        for work in batch:
            work.began = self.now if work.began is None else work.began
            work.compute += seconds
            work.steps += 1
            work.rows, work.batch = max(work.rows, rows), max(work.batch, len(batch))
        self._at(self.now + seconds, lambda: self._finish(replica, batch))

    def _finish(self, replica: _Replica, batch: list[_Work]) -> None:
        replica.busy = False
        for work in batch:
            known = replica.known.get(work.sequence)
            if known is None:
                continue
            replica.prompts.add(work.sequence)
            work.rest = 0
            before = work.out[-1] if work.out else work.text[-1]
            position = work.start + len(work.text) + len(work.out)
            for proposal in [*(work.proposals[len(work.out) :] if work.checking else ()), None]:
                token = self._draw(replica.level, work.sequence, position, before)
                known[mix(position * VOCABULARY + before)] = token
                if token != proposal:
                    break
                before, position = token, position + 1
            current = replica.works.get(work.sequence)
            if current is not None:
                self._advance(replica, current)
        self._step(replica)

    def _reply(self, replica: _Replica, work: _Work, reply: Reply) -> None:
        machine = self._machines.get(work.sequence)
        if machine is None:
            return
        if reply.done:
            self.policy.told(
                Told(
                    level=replica.level.name,
                    replica=replica.index,
                    rows=work.rows,
                    batch=work.batch,
                    steps=work.steps,
                    compute=work.compute,
                    queue=(work.began or work.arrived) - work.arrived,
                    total=self.now - work.sent,
                    now=self.now,
                )
            )
        self._carry_out(work.sequence, machine.receive(reply))

    def cancel(self, sequence: int) -> None:
        """End a running sequence."""
        machine = self._machines.get(sequence)
        if machine is not None:
            self._carry_out(sequence, machine.receive(Cancel()))
