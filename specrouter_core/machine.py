"""The speculation of one sequence: a state machine without I/O, clock or threads.

Theory. Every level is one function: given a text, it draws the next token with noise that
depends only on seed and position (noise.py). Level i holds a text T(i), all of it its own draws
after what the level above has settled; the target's text is the committed one.

    Invariant:   T(i) extends T(i+1), for every level i below the target.

A call asks level i to go on from T(i), offering T(0) beyond T(i) as proposals: T(i-1) is a prefix of it, and
what lower levels have added since rides along, for checking a token more costs little. Its reply is a
piece of the one text the level would draw anyway, so a reply can never be wrong, only useless:
it is used when it extends T(i+1) and is longer than T(i), and dropped else. Hence late,
repeated and partial replies need no special case. When T(i) grows, each lower level either extends
it already and goes on, or is rolled back to it. Only the target's replies commit, each starts at
the committed text, and all committed tokens are its own draws: the output is that of the target
alone.

Who is called when:
- The target is called at once, without proposals: it has the prompt to read anyway, and the client gets a first token.
- lock-step: one call at a time. A level is called when it can be offered a full window, or when
  the level below has no more to offer; else the level below is called first.
- overlapped: one call in flight per level. Levels below the target never idle: each draws on by
  itself, up to ``lookahead`` tokens beyond the committed text, and is called anew as soon as it can be
  offered ``least`` proposals. The target is called when it can be offered as many, or when
  nothing below it can offer one.

Progress: whenever nothing is in flight and the sequence has not ended, some call is due (the lowest level
that is not mute, or else the one above it); a call is superseded only after its level's text has grown by it; and
every answered call of the target commits a token.
A level that fails ``FAILURES`` times in a row, or for good, leaves the chain; the target's
failure ends the sequence.

A chain of one level is the target alone; its window is the tokens drawn in one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specrouter_core.chain import Plan
from specrouter_core.event import (
    Action,
    Call,
    Cancel,
    Commit,
    Event,
    Failed,
    Finish,
    Lost,
    Reason,
    Replan,
    Reply,
    Withdraw,
)
from specrouter_core.lane import Flight, Lane, Tally

FAILURES = 3
DRY_RUN = 4
REMEMBERED = 16  # abandoned calls whose late reply may still be used


class Machine:
    """The chain of one sequence. Feed events to ``receive``; carry out the actions in their order.

    ``prompt`` and ``generated`` (of a sequence that is taken over) are token ids; ``limit`` is the total length
    at which the text ends; a drawn id of ``stop_ids`` ends it too.
    """

    def __init__(
        self,
        plan: Plan,
        prompt: Sequence[int],
        *,
        limit: int,
        stop_ids: frozenset[int] = frozenset(),
        generated: Sequence[int] = (),
    ) -> None:
        if not prompt:
            raise ValueError("prompt: must not be empty")
        if limit <= len(prompt):
            raise ValueError(f"limit: must exceed the prompt's {len(prompt)} tokens, got {limit}")
        self.plan = plan
        self.prompt_length = len(prompt)
        self.committed: list[int] = [*prompt, *generated]
        self.limit = limit
        self.stop_ids = stop_ids
        self.finished: Finish | None = None
        self.rounds = 0
        self.tallies: dict[str, Tally] = {name: Tally() for name in plan.levels}
        self.lost: list[str] = []
        self._lanes = [Lane(name, window) for name, window in zip(plan.levels, plan.windows, strict=True)]
        self._flights: dict[int, Flight] = {}  # in flight, and a few abandoned; by call
        self._calls = 0
        self._actions: list[Action] = []

    def start(self) -> list[Action]:
        """The first calls."""
        self._end_if_complete()
        return self._settle()

    def receive(self, event: Event) -> list[Action]:
        """Take one event; returns the actions that follow. After the end there are none."""
        if self.finished is None:
            match event:
                case Reply():
                    self._reply(event)
                case Failed():
                    self._failed(event)
                case Replan():
                    self._replan(event.plan)
                case Cancel():
                    self._finish("cancelled")
        return self._settle()

    # What a reply means.

    def _reply(self, event: Reply) -> None:
        flight = self._flights.get(event.call)
        i = self._index(flight.level) if flight else None
        if flight is None or i is None:
            return
        lane = self._lanes[i]
        tokens = self._cut(event.tokens[: flight.asked])
        news = len(tokens) > len(flight.tokens)
        if news:
            flight.tokens = tokens
        closes = event.done and lane.flight == event.call
        if closes:
            lane.flight = None
            del self._flights[event.call]
            self.tallies[flight.level].count(flight)
        if news:
            self._absorb(i, flight)
        if closes and self.finished is None:
            self._closed(i, flight, event.unsure)

    def _closed(self, i: int, flight: Flight, unsure: bool) -> None:
        """A call in flight was answered in full."""
        lane = self._lanes[i]
        lowest_of_several = i == 0 and len(self._lanes) > 1
        if not flight.tokens and not lowest_of_several:
            self._count_failure(i, fatal=False, why="an answer without a token")
            return
        lane.failures = 0
        if i == 0 and not flight.proposals and len(flight.tokens) < flight.asked:
            ended = bool(flight.tokens) and flight.tokens[-1] in self.stop_ids
            flight.silent = not (unsure or ended)
            lane.dry = flight.beyond(self.committed) == lane.ahead
        else:
            lane.dry = False

    def _cut(self, tokens: Sequence[int]) -> Sequence[int]:
        """Nothing follows a stop id."""
        for n, token in enumerate(tokens):
            if token in self.stop_ids:
                return tokens[: n + 1]
        return tokens

    def _absorb(self, i: int, flight: Flight) -> None:
        """Make the answer level i's text if it extends the level above's and is news."""
        text = flight.beyond(self.committed)
        lane = self._lanes[i]
        if text is None or len(text) <= len(lane.ahead):
            return
        if i + 1 < len(self._lanes):
            above = self._lanes[i + 1].ahead
            if text[: len(above)] != above:
                return
        origins = self._origins(i, text)
        if i + 1 == len(self._lanes):
            self._commit(text, origins)
        else:
            lane.become(text, origins)
        self._roll_back(i)

    def _origins(self, i: int, text: Sequence[int]) -> list[str]:
        """Per token of level i's new text, who proposed it first: the lowest level whose text had it."""
        below = self._lanes[0]
        same = 0
        while same < min(len(text), len(below.ahead)) and text[same] == below.ahead[same]:
            same += 1
        return below.origins[:same] + [self._lanes[i].level] * (len(text) - same)

    def _commit(self, tokens: list[int], origins: list[str]) -> None:
        room = self.limit - len(self.committed)
        tokens, origins = tokens[:room], origins[:room]
        start = len(self.committed)
        self.committed += tokens
        self._actions.append(Commit(start, tuple(tokens), tuple(origins), self._draws(start)))
        self.rounds += 1
        for origin in origins:
            self.tallies[origin].committed += 1
        for lane in self._lanes[:-1]:
            if lane.ahead[: len(tokens)] == tokens:
                del lane.ahead[: len(tokens)], lane.origins[: len(tokens)]
            else:
                lane.become((), ())
        self._end_if_complete()

    def _draws(self, start: int) -> tuple[Mapping[str, int], ...]:
        """What the levels below the target drew on committed text, per token from ``start`` on."""
        draws: list[dict[str, int]] = [{} for _ in range(start, len(self.committed))]
        for lane in self._lanes[:-1]:
            for at, token in lane.drew(self.committed, start):
                draws[at - start][lane.level] = token
        return tuple(draws)

    def _roll_back(self, i: int) -> None:
        """Level i's text has changed: each lower level extends it or becomes it."""
        for j in range(i - 1, -1, -1):
            above, lane = self._lanes[j + 1], self._lanes[j]
            if lane.ahead[: len(above.ahead)] != above.ahead:
                lane.become(above.ahead, above.origins)
            if lane.flight is not None and not self._flights[lane.flight].alive(self.committed, above.ahead):
                self._withdraw(lane)

    # Failures, changes and the end.

    def _failed(self, event: Failed) -> None:
        flight = self._flights.get(event.call)
        i = self._index(flight.level) if flight else None
        if i is None or self._lanes[i].flight != event.call:
            return
        self._lanes[i].flight = None
        self._count_failure(i, event.fatal, event.why)

    def _count_failure(self, i: int, fatal: bool, why: str) -> None:
        lane = self._lanes[i]
        lane.failures += 1
        if not fatal and lane.failures < FAILURES:
            return
        if i + 1 == len(self._lanes):
            self._finish("error", f"{lane.level}: {why}")
            return
        self._actions.append(Lost(lane.level, why))
        self.lost.append(lane.level)
        self._replan(self.plan.without(lane.level))

    def _replan(self, plan: Plan) -> None:
        if plan.target != self.plan.target:
            raise ValueError(f"levels: the target must stay {self.plan.target}, got {plan.target}")
        old = {lane.level: lane for lane in self._lanes}
        lanes: list[Lane] = []
        for name, window in zip(reversed(plan.levels), reversed(plan.windows), strict=True):
            lane = old.pop(name, None)
            if lane is None:
                lane = Lane(name, window)
                lane.become(lanes[-1].ahead, lanes[-1].origins)
            lane.window = window
            lanes.append(lane)
        for lane in old.values():
            self._withdraw(lane)
        if len(lanes) > 1 and self._on_its_own(lanes[0]):
            self._withdraw(lanes[0])  # the target drew alone: now it gets proposals
        self._lanes = lanes[::-1]
        self.plan = plan
        for name in plan.levels:
            self.tallies.setdefault(name, Tally())

    def _end_if_complete(self) -> None:
        if len(self.committed) > self.prompt_length and self.committed[-1] in self.stop_ids:
            self._finish("stop")
        elif len(self.committed) >= self.limit:
            self._finish("length")

    def _finish(self, reason: Reason, why: str = "") -> None:
        for lane in self._lanes:
            self._withdraw(lane)
        self.finished = Finish(reason, why)
        self._actions.append(self.finished)

    def _withdraw(self, lane: Lane) -> None:
        if lane.flight is not None:
            self._actions.append(Withdraw(lane.level, lane.flight))
            self.tallies[lane.level].count(self._flights.pop(lane.flight))
            lane.flight = None

    # Who is called next.

    def _settle(self) -> list[Action]:
        if self.finished is None:
            if self.plan.overlapped:
                self._call_overlapped()
            else:
                self._call_lockstep()
        actions, self._actions = self._actions, []
        return actions

    def _call_overlapped(self) -> None:
        top = len(self._lanes) - 1
        below_busy = False  # somebody lower is about to offer something
        for i, lane in enumerate(self._lanes):
            served = i > 0 and self._offered(i) >= self.plan.least[i]
            if served and self._on_its_own(lane):
                self._withdraw(lane)  # checking proposals is the better use of its next step
            if lane.flight is None and not self._mute(i):
                if i < top:
                    self._call(i, lane.window if i == 0 else self.plan.lookahead)
                elif served or not below_busy or not self.rounds:
                    self._call(i, lane.window if i == 0 else 1)
            below_busy = below_busy or lane.flight is not None

    def _on_its_own(self, lane: Lane) -> bool:
        """Whether its call in flight has dealt with the proposals and goes on with draws of its own."""
        if lane.flight is None:
            return False
        flight = self._flights[lane.flight]
        return 0 < len(flight.tokens) < flight.asked

    def _call_lockstep(self) -> None:
        if any(lane.flight is not None for lane in self._lanes):
            return
        i = len(self._lanes) - 1
        if not self.rounds and i > 0:
            self._call(i, 1)
            return
        while i > 0:
            lane = self._lanes[i]
            wanted = min(lane.window, self._room(i) - 1)
            if self._checked(i) >= wanted or self._mute(i - 1):
                self._call(i, self._alone(i))
                return
            i -= 1
        lane = self._lanes[0]
        if len(self._lanes) > 1:
            above = self._lanes[1]
            self._call(0, min(lane.window, above.window - self._checked(1)))
        else:
            self._call(0, lane.window)

    def _alone(self, i: int) -> int:
        """In lock-step, draws that a level below the target makes by itself: some where the lowest has no guess.

        It will likely have none at the next token either, and to ask after each costs two hops.
        """
        if i + 1 == len(self._lanes) or not self._lanes[0].dry:
            return 1
        return max(1, min(DRY_RUN, self._lanes[i + 1].window - self._checked(i + 1)))

    def _call(self, i: int, own: int) -> None:
        """Call level i for up to ``own`` draws beyond the proposals it accepts."""
        lane, room = self._lanes[i], self._room(i)
        start = len(lane.ahead)
        proposals = tuple(self._lanes[0].ahead[start : start + min(lane.window, room - 1)]) if i > 0 else ()
        if i + 1 < len(self._lanes):
            room = min(room, self._lookahead(i))
        more = max(min(own, room - len(proposals)), 1) - 1
        self._calls += 1
        lane.flight = self._calls
        flight = Flight(lane.level, len(self.committed), tuple(lane.ahead), proposals, more)
        self._flights[self._calls] = flight
        if i + 1 < len(self._lanes):
            lane.recent = [*lane.recent[-REMEMBERED:], flight]
        self._forget()
        self.tallies[lane.level].calls += 1
        sure = self.plan.confidence if i == 0 and len(self._lanes) > 1 else 0.0
        self._actions.append(Call(lane.level, self._calls, flight.base, flight.ahead, proposals, more, sure))

    def _forget(self) -> None:
        live = {lane.flight for lane in self._lanes}
        stale = [call for call in self._flights if call not in live]
        for call in stale[:-REMEMBERED]:
            del self._flights[call]

    def _offered(self, i: int) -> int:
        """Proposals that level i could be offered now: the furthest text there is, which all texts are prefixes of."""
        return len(self._lanes[0].ahead) - len(self._lanes[i].ahead)

    def _checked(self, i: int) -> int:
        """Those of them that the level just below has drawn itself."""
        return len(self._lanes[i - 1].ahead) - len(self._lanes[i].ahead)

    def _room(self, i: int) -> int:
        """Tokens level i may still draw. One is left to the target: it would draw that anyway."""
        top = i + 1 == len(self._lanes)
        return self.limit - len(self.committed) - len(self._lanes[i].ahead) - (0 if top else 1)

    def _lookahead(self, i: int) -> int:
        return self.plan.lookahead - len(self._lanes[i].ahead)

    def _mute(self, i: int) -> bool:
        """Whether level i must not, or has nothing to, add to its text. Never the target."""
        lane = self._lanes[i]
        if i + 1 == len(self._lanes):
            return False
        ended = bool(lane.ahead) and lane.ahead[-1] in self.stop_ids
        return ended or lane.dry or self._room(i) < 1 or self._lookahead(i) < 1

    def _index(self, level: str) -> int | None:
        return next((i for i, lane in enumerate(self._lanes) if lane.level == level), None)
