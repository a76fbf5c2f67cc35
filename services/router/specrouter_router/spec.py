"""The part of a record that never changes, made from a request; and what to take from it to go on."""

from __future__ import annotations

import time
from collections.abc import Sequence

from specrouter.v1 import level_pb2 as pb
from specrouter.v1 import router_pb2, state_pb2
from specrouter_router.pin import Mode, Pin
from specrouter_router.request import Request, wire

MODES: dict[Mode, router_pb2.Mode.ValueType] = {
    "overlapped": router_pb2.MODE_OVERLAPPED,
    "lockstep": router_pb2.MODE_LOCKSTEP,
}
_NAMES: dict[int, Mode] = {number: name for name, number in MODES.items()}


def spec_of(request: Request, name: str, family: str, room: int, stop_ids: Sequence[int]) -> state_pb2.SequenceSpec:
    """``room`` is the number of tokens to generate at most."""
    pin = request.pin
    return state_pb2.SequenceSpec(
        sequence=name,
        model=family,
        prompt=request.prompt,
        params=pb.SequenceParams(sampling=wire(request.sampling), prompt_length=len(request.prompt), stop_ids=stop_ids),
        max_tokens=room,
        stop=request.stop,
        chain=pin.chain,
        created_ms=time.time_ns() // 1_000_000,
        windows=pin.windows,
        mode=router_pb2.MODE_UNSPECIFIED if pin.mode is None else MODES[pin.mode],
        lookahead=pin.lookahead or 0,
        least=pin.least,
        traffic_class=request.traffic,
        presentation=request.presentation,
        request_digest=request.digest,
    )


def pin_of(spec: state_pb2.SequenceSpec) -> Pin:
    """What the request fixed of the plan."""
    return Pin(tuple(spec.chain), tuple(spec.windows), spec.lookahead or None, _NAMES.get(spec.mode), tuple(spec.least))
