"""Which calls run, and in which step: calls in, spans for the engine, replies out.

It owns the slots, the texts and the calls, and does no I/O: ``receive`` takes a message of calls,
``form`` makes the engine's next step, ``finish`` takes its answer. It is used from one thread; calls
may arrive while a step runs.

A step takes a part of every call that has one, in the order of ``turns``, up to the engine's ``max_rows``: calls with
few tokens to feed (those that check or draw), and those with many (prompts). While both wait, a quarter of each step
is kept for those that come second. So no call waits for the end of another's prompt.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from specrouter.v1 import level_pb2 as pb
from specrouter_core.prefix import START
from specrouter_level import call as calls
from specrouter_level import spans, turns
from specrouter_level.call import Call
from specrouter_level.engine import Drawn, Info, Span
from specrouter_level.held import Held
from specrouter_level.slots import Slots
from specrouter_level.stream import Stream

if TYPE_CHECKING:
    from specrouter_level.checkpoint import Checkpoints

log = logging.getLogger(__name__)

MAX_CALLS = 256  # in one message
MAX_WAITS = 1024  # kept until somebody counts them
MAX_FAILURES = 3  # failed steps in a row after which the level says that it is not healthy
RETRY_STEPS = 8  # an overloaded level asks for a pause of so many steps


@dataclass(slots=True)
class Counts:
    """Totals since the start."""

    calls: dict[pb.Outcome.ValueType, int]  # by how they ended
    steps: int = 0
    fed: int = 0
    drawn: int = 0
    accepted: int = 0  # proposals equal to the level's own draw
    proposed: int = 0
    failed: int = 0  # steps in which the engine failed


class Scheduler:
    """Calls of many streams on one engine."""

    def __init__(self, info: Info, checkpoints: Checkpoints | None = None) -> None:
        self.info = info
        self.checkpoints = checkpoints
        self.slots = Slots(info.slots)
        self.counts = Counts(calls={})
        self.draining = False  # only sequences of open streams are served
        self.closed = False  # no call is
        self.failures = 0  # failed steps in a row
        self.waits: deque[float] = deque(maxlen=MAX_WAITS)  # seconds until their first step, of calls that began lately
        self._live: dict[Call, None] = {}  # in the order of their coming
        self._step: list[tuple[Call, Span]] = []  # the running one
        self._seconds = 0.005  # smoothed time of a step

    @property
    def busy(self) -> int:
        """Calls not yet answered."""
        return len(self._live)

    @property
    def rows(self) -> int:
        """Tokens fed in the step that runs now."""
        return sum(len(span.text) - span.start for _, span in self._step)

    @property
    def healthy(self) -> bool:
        """Whether the engine's last steps worked."""
        return self.failures < MAX_FAILURES

    # Calls in.

    def receive(self, stream: Stream, request: pb.ExtendRequest) -> None:
        """Take what one message of a stream asks for."""
        now = perf_counter()
        for number in request.withdrawn:
            call = stream.calls.get(number)
            if call is not None:
                self._end(call, pb.OUTCOME_SUPERSEDED, "withdrawn")
        for sequence in request.released:
            held = self.slots.get(sequence)
            if held is not None and held.stream in (stream, None):
                self._release(held)
        for place, message in enumerate(request.calls):
            if place >= MAX_CALLS:
                self._refuse(stream, message, pb.OUTCOME_INVALID, f"calls: at most {MAX_CALLS} in one message")
            else:
                self._begin(stream, message, now)

    def close(self, stream: Stream) -> None:
        """The stream broke: drop its calls. The sequences stay for a while, another router may come for them."""
        for call in list(stream.calls.values()):
            self._drop(call, pb.OUTCOME_SUPERSEDED)
        stream.calls.clear()
        for held in self.slots.orphan(stream):
            self._unrestore(held)

    def expire(self, seconds: float) -> None:
        """Release the sequences for which no call has come for so long: they have moved away, or their router died."""
        for held in self.slots.unused(perf_counter() - seconds):
            self._release(held)
            self.slots.expirations += 1

    def _begin(self, stream: Stream, message: pb.ExtendCall, now: float) -> None:
        try:
            params = calls.checked(message, self.info)
            if message.call in stream.calls:
                raise ValueError(f"call: number {message.call} is in use")
        except ValueError as error:
            return self._refuse(stream, message, pb.OUTCOME_INVALID, str(error))
        held = self.slots.get(message.sequence)
        since = self.counts.steps
        if held is not None:
            if message.epoch < held.epoch:
                return self._refuse(stream, message, pb.OUTCOME_STALE_EPOCH, f"epoch {held.epoch} has been seen")
            if held.call is not None:
                newer = message.epoch > held.epoch
                if not held.call.started:  # superseded while it waited: the newer call has its place
                    since = held.call.since
                self._end(held.call, pb.OUTCOME_STALE_EPOCH if newer else pb.OUTCOME_SUPERSEDED, "a newer call came")
            held.owned(message.epoch)
        if self.closed or (self.draining and (held is None or held.stream is None)):
            return self._refuse(stream, message, pb.OUTCOME_OVERLOADED, "shutting down", retry_ms=1000)
        if params is not None:
            held = held or self.slots.take(message.sequence, message.epoch, params)
            if held is None:
                pause = min(max(int(self._seconds * 1000 * RETRY_STEPS), 1), 1000)
                return self._refuse(stream, message, pb.OUTCOME_OVERLOADED, "every slot is busy", retry_ms=pause)
            if held.params != params:
                held.known.clear()
                if held.params.prompt_length != params.prompt_length:  # a bitwise engine computes prompts otherwise
                    held.keep(min(held.params.prompt_length, params.prompt_length))
            held.params = params
        elif held is None or not held.text.holds(message.base, message.base_hash):
            return self._unknown(stream, message, held)
        self._start(stream, message, held, now, since)
        return None

    def _start(self, stream: Stream, message: pb.ExtendCall, held: Held, now: float, since: int) -> None:
        held.adopt(message.base, list(message.suffix))
        held.stream, held.used = stream, now
        call = Call(
            number=message.call,
            stream=stream,
            held=held,
            rest=list(message.proposals),
            left=message.more + 1,
            confidence=message.confidence,
            probe=message.probe,
            score=message.score,
            received=now,
            deadline=now + message.deadline_ms / 1000,
            priority=message.priority if message.HasField("priority") else calls.PRIORITY,
            since=since,
        )
        held.call = call
        stream.calls[call.number] = call
        self._live[call] = None
        if not call.score:
            self.counts.proposed += len(call.rest)
        if not call.score and not call.probe:
            self._recall(call)
        if self.checkpoints is not None and held.call is call and held.fed is None:
            held.restoring = self.checkpoints.wanted(held)
            held.fed = () if held.restoring else None

    def restored(self, held: Held) -> None:
        """What was wanted of the checkpoints has come, or will not; ``fed`` is what the slot holds now."""
        held.restoring = None
        if held.released:
            self.slots.reclaim(held)
        else:
            held.settle()

    def _unknown(self, stream: Stream, message: pb.ExtendCall, held: Held | None) -> None:
        reply = pb.ExtendReply(
            call=message.call,
            outcome=pb.OUTCOME_PREFIX_UNKNOWN,
            held=len(held.text) if held else 0,
            held_hash=held.text.hashes[-1] if held else START,
        )
        self._count(pb.OUTCOME_PREFIX_UNKNOWN)
        stream.refuse(reply)

    def _refuse(
        self, stream: Stream, message: pb.ExtendCall, outcome: pb.Outcome.ValueType, why: str, retry_ms: int = 0
    ) -> None:
        self._count(outcome)
        leaving = self.draining and outcome == pb.OUTCOME_OVERLOADED
        stream.refuse(
            pb.ExtendReply(call=message.call, outcome=outcome, message=why, retry_ms=retry_ms, draining=leaving)
        )

    def _release(self, held: Held) -> None:
        if held.call is not None:
            self._end(held.call, pb.OUTCOME_SUPERSEDED, "released")
        self.slots.release(held)
        self._unrestore(held)

    def _unrestore(self, held: Held) -> None:
        if self.checkpoints is not None and held.restoring is not None:
            self.checkpoints.abandon(held.restoring)

    # Replies out.

    def _end(self, call: Call, outcome: pb.Outcome.ValueType, message: str = "") -> None:
        self._drop(call, outcome)
        call.stream.end(call.final(outcome, message))

    def _drop(self, call: Call, outcome: pb.Outcome.ValueType) -> None:
        self._live.pop(call, None)
        if call.held.call is call:
            call.held.call, call.held.used = None, perf_counter()
        self._count(outcome)

    def _count(self, outcome: pb.Outcome.ValueType) -> None:
        self.counts.calls[outcome] = self.counts.calls.get(outcome, 0) + 1

    # Steps.

    def form(self) -> list[Span]:
        """The engine's next step; empty when there is nothing to do. ``finish`` must follow before the next."""
        now = perf_counter()
        for call in [call for call in self._live if call.deadline <= now]:
            self._end(call, pb.OUTCOME_EXPIRED)
        live = (call for call in self._live if not call.held.restoring)
        for call, take in turns.parts(turns.queues(live, self.counts.steps), self.info.max_rows):
            self._step.append((call, spans.span(call, take)))
            if spans.rows(call) <= turns.SHORT:  # a prompt keeps its place until it is read
                call.since = self.counts.steps + 1
        rows_used = self.rows
        for call, span in self._step:
            if not call.started:
                call.started = now
                self.waits.append(now - call.received)
            call.steps += 1
            call.fed += len(span.text) - span.start
            call.batch = max(call.batch, len(self._step))
            call.rows = max(call.rows, rows_used)
            call.all_rows += rows_used
            call.held.fed = span.text
            if self.checkpoints is not None:
                self.checkpoints.overwritten(span.slot, span.start)
            call.head = call.held.text.hashes[-1]
        self.counts.fed += rows_used
        return [span for _, span in self._step]

    def finish(self, drawn: Sequence[Drawn], seconds: float) -> None:
        """The engine's answer to the step that ``form`` made."""
        rows = self.rows
        step, self._step = self._step, []
        self.failures = 0
        self.counts.steps += 1
        self._seconds += (seconds - self._seconds) / 16
        if self.checkpoints is not None:
            self.checkpoints.prices.stepped(rows, seconds)
        for (call, span), answer in zip(step, drawn, strict=True):
            held = call.held
            call.seconds += seconds
            held.seconds += seconds
            if held.released:
                self.slots.reclaim(held)
                continue
            held.remember(call.head, call.rest, answer)
            if held.call is not call:
                held.settle()
                if held.call is not None and not held.call.score and not held.call.probe:
                    self._recall(held.call)
            else:
                held.fed = None
                self._advance(call, span, answer)
            if self.checkpoints is not None:
                self.checkpoints.full(held)

    def fail(self, why: str) -> None:
        """The engine failed in the step that ``form`` made: its calls fail, their KV counts as lost."""
        step, self._step = self._step, []
        self.failures += 1
        self.counts.failed += 1
        for call, _ in step:
            held = call.held
            held.fed = None
            held.keep(0)
            if held.released:
                self.slots.reclaim(held)
            elif held.call is call:
                self._end(call, pb.OUTCOME_INTERNAL, why)

    def _advance(self, call: Call, span: Span, answer: Drawn) -> None:
        """After a step: what of the slot is valid now, and what the draws mean."""
        length = len(call.held.text)
        fed = len(span.text) - length  # proposals fed; below 0 in the middle of a prompt
        same = self._grow(call, answer, span.draws)
        call.held.valid = length + min(same, fed) if fed >= 0 else len(span.text)

    def _recall(self, call: Call) -> None:
        """Answer as far as the draws are known from earlier steps."""
        held = call.held
        while call.held.call is call and (found := held.known.get(held.text.hashes[-1])) is not None:
            self._grow(call, Drawn([found[0]], [found[1]]), 1)

    def _grow(self, call: Call, answer: Drawn, draws: int) -> int:
        """Compare the draws with the proposals, lengthen the text, end the call or leave it for the next step.

        Returns how many proposals were accepted.
        """
        text = call.held.text
        taken, done = spans.taken(call, draws, answer, self.info.max_length - len(text))
        same = spans.accepted(call, taken)
        text.extend(taken)
        call.rest = call.rest[same:] if same == len(taken) else []
        self.counts.drawn += len(taken)
        if not call.score:
            self.counts.accepted += same
        if done:
            self._end(call, pb.OUTCOME_DONE)
        elif taken:
            call.stream.grew(call)
        return same
