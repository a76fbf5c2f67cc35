"""One call to extend a sequence: its bounds, and how far its answer has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specrouter.v1 import level_pb2 as pb
from specrouter_core.sampling import Sampling
from specrouter_level.engine import Info, Params

if TYPE_CHECKING:
    from specrouter_level.held import Held
    from specrouter_level.stream import Stream

MAX_PROPOSALS = 64
MAX_MORE = 64
MAX_PROBE = 32
MAX_STOP_IDS = 16
MAX_SEQUENCE_BYTES = 64
MAX_DEADLINE_MS = 600_000
MAX_PRIORITY = 100
PRIORITY = 50  # of a call that does not say


@dataclass(slots=True, eq=False)
class Call:
    """A call that the level works on. Times are in seconds of ``time.perf_counter``."""

    number: int
    stream: Stream
    held: Held
    rest: list[int]  # proposals not yet compared with a draw
    left: int  # own draws still wanted; accepted proposals do not count
    confidence: float  # go on only while the most likely token is at least this probable
    probe: int
    score: bool
    received: float
    deadline: float
    priority: int
    since: int  # number of the step from which on it waits: see ``turns``
    started: float = 0.0  # 0 = in no step yet
    seconds: float = 0.0  # of the steps it took part in
    steps: int = 0
    fed: int = 0
    batch: int = 0
    rows: int = 0
    all_rows: int = 0
    head: int = 0  # hash of the text that the running step draws after
    tokens: list[int] = field(default_factory=list)  # all draws so far
    likelihoods: list[float] = field(default_factory=list)  # per draw, of the most likely token
    probes: list[list[tuple[int, float]]] = field(default_factory=list)

    def part(self) -> pb.ExtendReply:
        """A reply that is not the last: the draws so far."""
        return pb.ExtendReply(call=self.number, tokens=self.tokens, sequence_us=int(self.held.seconds * 1e6))

    def final(self, outcome: pb.Outcome.ValueType, message: str = "") -> pb.ExtendReply:
        """The last reply."""
        started = self.started or self.received
        return pb.ExtendReply(
            call=self.number,
            tokens=self.tokens,
            outcome=outcome,
            timing=pb.Timing(
                queue_us=int((started - self.received) * 1e6),
                compute_us=int(self.seconds * 1e6),
                steps=self.steps,
                tokens=self.fed,
                batch=self.batch,
                rows=self.rows,
                all_rows=self.all_rows,
            ),
            confidence=self.likelihoods,
            probes=[pb.Probe(ids=[i for i, _ in probe], probabilities=[p for _, p in probe]) for probe in self.probes],
            message=message,
            sequence_us=int(self.held.seconds * 1e6),
        )


def checked(call: pb.ExtendCall, info: Info) -> Params | None:
    """The parameters of a call that brings its whole prefix (base 0), None for others.

    Raises ValueError, beginning with the field's name, when the call breaks a bound.
    """
    proposals = len(call.proposals)
    length = call.base + len(call.suffix) + proposals + 1
    if not 0 < len(call.sequence.encode()) <= MAX_SEQUENCE_BYTES:
        raise ValueError(f"sequence: must be 1 to {MAX_SEQUENCE_BYTES} bytes")
    if proposals > MAX_PROPOSALS:
        raise ValueError(f"proposals: at most {MAX_PROPOSALS}, got {proposals}")
    if call.more > MAX_MORE:
        raise ValueError(f"more: at most {MAX_MORE}, got {call.more}")
    if not 0 <= call.confidence <= 1:
        raise ValueError(f"confidence: must be 0 to 1, got {call.confidence}")
    if call.probe > MAX_PROBE:
        raise ValueError(f"probe: at most {MAX_PROBE}, got {call.probe}")
    if not 0 < call.deadline_ms <= MAX_DEADLINE_MS:
        raise ValueError(f"deadline_ms: must be 1 to {MAX_DEADLINE_MS}, got {call.deadline_ms}")
    if call.priority > MAX_PRIORITY:
        raise ValueError(f"priority: must be 0 to {MAX_PRIORITY}, got {call.priority}")
    if call.score and (call.more > 0 or proposals == 0):
        raise ValueError("score: needs proposals, and more must be 0")
    if call.base + len(call.suffix) == 0:
        raise ValueError("suffix: the prefix is empty")
    if length > info.max_length:
        raise ValueError(f"suffix: prefix, proposals and one draw are {length} tokens; at most {info.max_length}")
    _in_vocabulary("suffix", call.suffix, info.vocab_size)
    _in_vocabulary("proposals", call.proposals, info.vocab_size)
    if call.base > 0:
        return None
    if not call.HasField("params"):
        raise ValueError("params: must be set when base is 0")
    return _params(call, info)


def _in_vocabulary(field_name: str, ids: Sequence[int], vocab_size: int) -> None:
    if vocab_size and len(ids) and max(ids) >= vocab_size:
        raise ValueError(f"{field_name}: ids must be below {vocab_size}, got {max(ids)}")


def _params(call: pb.ExtendCall, info: Info) -> Params:
    message = call.params
    longest = min(info.max_length - 1, len(call.suffix))
    if not 1 <= message.prompt_length <= longest:
        raise ValueError(f"params.prompt_length: must be 1 to {longest} (the prefix), got {message.prompt_length}")
    if len(message.stop_ids) > MAX_STOP_IDS:
        raise ValueError(f"params.stop_ids: at most {MAX_STOP_IDS}, got {len(message.stop_ids)}")
    wire = message.sampling
    try:
        sampling = Sampling(
            seed=wire.seed,
            temperature=wire.temperature,
            top_k=wire.top_k,
            top_p=wire.top_p if wire.HasField("top_p") else 1.0,
            min_p=wire.min_p,
            repetition_penalty=wire.repetition_penalty if wire.HasField("repetition_penalty") else 1.0,
            presence_penalty=wire.presence_penalty,
            frequency_penalty=wire.frequency_penalty,
            logit_bias=dict(wire.logit_bias),
        )
    except ValueError as error:
        raise ValueError(f"params.sampling.{error}") from error
    return Params(sampling=sampling, prompt_length=message.prompt_length, stop_ids=frozenset(message.stop_ids))
