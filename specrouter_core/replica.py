"""One replica of a level in simulated time: it holds texts and forms steps as services/level does.

- All its calls take part in the next step; its time is the curve at the rows (tokens) it feeds, plus the process's
  own overhead between two steps.
- A call feeds what of its prefix is not in the KV yet, and its proposals. Prompts fill what the short calls leave of a
  step, one after the other; a quarter of each step is kept for them.
- A newer call of a sequence supersedes the older one. The step that runs goes on, and its draws are remembered: a call
  that comes to a place whose draw is known is answered without a step.

No events here: the simulator says when, and is told what to send.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specrouter_core.noise import mix
from specrouter_core.profile import Curve

VOCABULARY = 50_000
SHORT = 129  # rows from which on a call counts as a prompt
MAX_KNOWN = 256  # draws remembered of a sequence

Draw = Callable[[int, int, int], int]  # sequence, position, token before -> the level's token


@dataclass(slots=True)
class SimLevel:
    """A level and its replicas."""

    name: str
    curve: Curve
    agreement: float  # with the target's draws, 0 to 1; 1 for the target
    replicas: int = 1
    max_rows: int = 512
    slowdown: float = 1.0  # may be changed while it runs
    overhead: float = 0.0  # seconds between two steps that are no step
    overhead_each: float = 0.0  # the same, per sequence in the step


@dataclass(slots=True, eq=False)
class Work:
    """A call at a replica."""

    sequence: int
    call: int
    base: int  # length of the committed text it goes on from
    ahead: tuple[int, ...]
    proposals: Sequence[int]
    left: int  # own draws still wanted
    sent: float
    arrived: float
    out: list[int] = field(default_factory=list)
    checking: bool = True
    began: float | None = None
    compute: float = 0.0
    steps: int = 0
    rows: int = 0  # the most in one step
    fed: int = 0  # of all of them
    batch: int = 0


@dataclass(slots=True, eq=False)
class Held:
    """What a replica has of one sequence: ``tokens`` after the prompt, and KV for ``valid`` positions."""

    prompt: int
    settled: int  # positions below are committed, and the same in every later prefix
    tokens: list[int] = field(default_factory=list)
    valid: int = 0
    work: Work | None = None
    known: dict[int, int] = field(default_factory=dict)  # hash of a place -> draw

    @property
    def length(self) -> int:
        """Positions of the text."""
        return self.prompt + len(self.tokens)

    def adopt(self, committed: Sequence[int], base: int, ahead: Sequence[int]) -> None:
        """Make ``committed[:base] + ahead`` the text, keeping the KV of what is the same."""
        start = self.settled
        new = [*committed[start:base], *ahead]
        old = self.tokens[start - self.prompt :]
        shared = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        self.tokens[start - self.prompt + shared :] = new[shared:]
        self.valid = min(self.valid, start + shared)
        self.settled = max(base, start)

    def last(self) -> int:
        """The text's last token."""
        return self.tokens[-1] if self.tokens else 1

    def remember(self, place: int, token: int) -> None:
        """Keep a draw for later calls that come to the same place."""
        self.known[place] = token
        if len(self.known) > MAX_KNOWN:
            del self.known[next(iter(self.known))]

    def rest(self) -> Sequence[int]:
        """Proposals of its call that were not compared yet."""
        work = self.work
        return work.proposals[len(work.out) :] if work is not None and work.checking else ()


@dataclass(slots=True, eq=False)
class _Part:
    """A call's share of a step: positions ``start`` to ``end`` are fed."""

    work: Work
    start: int
    end: int
    length: int  # of the text, without proposals
    text: list[int]  # from ``start`` on, those after the prompt only; as it was when the step began
    before: int
    rest: Sequence[int]


def place(position: int, before: int) -> int:
    """The key of a draw: the synthetic text depends on the position and the token before it."""
    return mix(position * VOCABULARY + before)


class Replica:
    """See the module. ``draw`` is the level's language."""

    def __init__(self, level: SimLevel, draw: Draw) -> None:
        self.level = level
        self.held: dict[int, Held] = {}
        self.busy_seconds = 0.0
        self.draw = draw
        self._live: dict[int, Held] = {}  # sequences with a call, least recently stepped first
        self._step: list[_Part] = []

    @property
    def running(self) -> bool:
        """Whether a step is under way."""
        return bool(self._step)

    def open(self, sequence: int, prompt: int) -> None:
        """Take a sequence."""
        self.held[sequence] = Held(prompt, prompt)

    def release(self, sequence: int) -> None:
        """Forget a sequence."""
        self.held.pop(sequence, None)
        self._live.pop(sequence, None)

    def receive(self, work: Work, committed: Sequence[int]) -> bool:
        """A call comes. Returns whether it has draws already."""
        held = self.held[work.sequence]
        held.adopt(committed, work.base, work.ahead)
        held.work = work
        self._live[work.sequence] = held
        return self._recall(held)

    def withdraw(self, sequence: int, call: int) -> None:
        """Drop a call unless a newer one has come."""
        held = self.held.get(sequence)
        if held is not None and held.work is not None and held.work.call == call:
            held.work = None
            self._live.pop(sequence, None)

    def form(self, now: float) -> float | None:
        """Begin the next step: how long it takes, without the overhead after it. None: nothing to do."""
        if self._step or not self._live:
            return None
        short: list[tuple[Held, int]] = []
        long: list[tuple[Held, int]] = []
        for held in self._live.values():
            rows = held.length - min(held.valid, held.length - 1) + len(held.rest())
            (long if rows > SHORT else short).append((held, rows))
        room = self.level.max_rows
        kept = room // 4 if long else 0
        if len(long) > 1:
            long.sort(key=lambda entry: entry[0].work.arrived if entry[0].work else 0.0)
        for queue, keep in ((short, kept), (long, 0)):
            for held, rows in queue:
                take = min(rows, room - keep)
                if take <= 0:
                    break
                self._take(held, take)
                room -= take
        rows = self.level.max_rows - room
        seconds = self.level.curve.seconds(rows) * self.level.slowdown
        self.busy_seconds += seconds
        self._account(now, rows, seconds)
        return seconds

    def pause(self) -> float:
        """Seconds between the end of the step under way and the next."""
        return self.level.overhead + self.level.overhead_each * len(self._step)

    def finish(self) -> list[Work]:
        """The step ends. Returns the calls that have news, ended ones included."""
        step, self._step = self._step, []
        news: list[Work] = []
        for part in step:
            held = self.held.get(part.work.sequence)
            if held is None:
                continue
            same = self._remember(held, part)
            if held.work is part.work:
                held.valid = part.end if part.end < part.length else part.length + same
            else:
                held.valid = _shared(held, part)
            work = held.work
            if work is not None and self._recall(held):
                news.append(work)
        return news

    def _take(self, held: Held, take: int) -> None:
        work = held.work
        if work is None:
            return
        length = held.length
        start = min(held.valid, length - 1)
        text = held.tokens[max(start - held.prompt, 0) :]
        rest = held.rest()[: max(start + take - length, 0)]
        self._step.append(_Part(work, start, start + take, length, text, held.last(), rest))

    def _account(self, now: float, rows: int, seconds: float) -> None:
        for part in self._step:
            work = part.work
            work.began = now if work.began is None else work.began
            work.compute += seconds
            work.steps += 1
            work.fed += rows
            work.rows, work.batch = max(work.rows, rows), max(work.batch, len(self._step))
        if len(self._step) < len(self._live):
            for part in self._step:  # those left out come first next time
                self._live[part.work.sequence] = self._live.pop(part.work.sequence)

    def _remember(self, held: Held, part: _Part) -> int:
        """The draws of a step; returns how many of the proposals fed are right."""
        if part.end < part.length:
            return 0
        before, position = part.before, part.length
        for same, proposal in enumerate(part.rest):
            token = self.draw(part.work.sequence, position, before)
            held.remember(place(position, before), token)
            if token != proposal:
                return same
            before, position = token, position + 1
        held.remember(place(position, before), self.draw(part.work.sequence, position, before))
        return len(part.rest)

    def _recall(self, held: Held) -> bool:
        """Answer as far as draws are known; the call ends when nothing is left to draw. Returns whether it grew."""
        work = held.work
        grew = False
        while work is not None and work.left > 0:
            token = held.known.get(place(held.length, held.last()))
            if token is None:
                break
            at = len(work.out)
            work.out.append(token)
            held.tokens.append(token)
            grew = True
            if work.checking and at < len(work.proposals) and work.proposals[at] == token:
                continue
            work.checking = False
            work.left -= 1
        if work is not None and work.left <= 0:
            held.work = None
            self._live.pop(work.sequence, None)
        return grew


def _shared(held: Held, part: _Part) -> int:
    """Positions of KV that are right after a step whose call is gone."""
    if held.valid < part.start:
        return held.valid
    first = max(part.start, held.prompt)
    fed = [*part.text, *part.rest][: max(part.end - first, 0)]
    now = held.tokens[first - held.prompt :]
    both = min(len(fed), len(now))
    same = next((i for i in range(both) if fed[i] != now[i]), both)
    return first + same if part.end >= first else part.end
