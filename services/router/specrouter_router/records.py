"""Recovery records as any router may read, take and end them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from specrouter.v1 import router_pb2, state_pb2
from specrouter_core.record import TOKEN_BYTES, unpack
from specrouter_router.record_scripts import END, TAKE, TTL_S, keys
from specrouter_router.redis_wire import LOST, Command, Wire, line

CLAIM_MS = 1000  # so long a name is kept for a router that is about to start its sequence
FINISHES = {int(value): value for value in router_pb2.Finish.values()}


class StoreError(Exception):
    """Redis can't be used."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a record says besides its spec."""

    epoch: int
    owner: str  # "" = free
    finish: router_pb2.Finish.ValueType
    news: list[int]  # tokens beyond those known already


class Records:
    """See the module. All methods raise StoreError."""

    def __init__(self, wire: Wire, address: str) -> None:
        self._wire = wire
        self._address = address

    async def read(self, sequence: str) -> state_pb2.SequenceRecord | None:
        """A record, None where there is none, or only a part. While its owner writes, ``round`` may be behind."""
        state, tokens, spec = keys(sequence)
        commands: list[Command] = [
            (
                "HMGET",
                state,
                "epoch",
                "round",
                "finish",
                "owner",
                "length",
            ),  # first: when it has ended, the tokens are complete
            ("GET", tokens),
            ("GET", spec),
        ]
        (epoch, round_, finish, owner, length), packed, blob = await self.ask(commands)
        if blob is None or epoch is None or len(packed or b"") < int(length or 0):
            return None
        try:
            return state_pb2.SequenceRecord(
                spec=state_pb2.SequenceSpec.FromString(blob),
                epoch=int(epoch),
                round=int(round_),
                tokens=unpack(packed or b""),
                finish=FINISHES[int(finish)],
                owner=(owner or b"").decode(),
            )
        except (DecodeError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"the record of {sequence} is broken: {line(error)}") from error

    async def claim(self, sequence: str) -> bool:
        """Be the one that starts a sequence of this name. False: somebody is about to, or has.

        A claim that nothing comes of, since the request is refused, lapses.
        """
        return bool((await self.ask([("SET", keys(sequence)[2], b"", "NX", "PX", CLAIM_MS)]))[0])

    async def progress(self, known: Sequence[tuple[str, int]]) -> list[Progress | None]:
        """Of sequences with the number of tokens known already: what there is now, None where there is nothing."""
        commands: list[Command] = []
        for sequence, count in known:
            state, tokens, _ = keys(sequence)
            commands.append(("HMGET", state, "epoch", "owner", "finish", "length"))
            commands.append(("GETRANGE", tokens, count * TOKEN_BYTES, -1))
        results = iter(await self.ask(commands))
        found: list[Progress | None] = []
        for (_, count), (epoch, owner, finish, length), packed in zip(known, results, results, strict=True):
            if epoch is None or count * TOKEN_BYTES + len(packed) < int(length or 0):  # its tokens were evicted
                found.append(None)
                continue
            whole = packed[: len(packed) // TOKEN_BYTES * TOKEN_BYTES]
            found.append(Progress(int(epoch), (owner or b"").decode(), FINISHES[int(finish or 0)], unpack(whole)))
        return found

    async def take(self, sequence: str, epoch: int, owner: str, new_owner: str) -> state_pb2.SequenceRecord | None:
        """Make ``new_owner`` the owner, with the next epoch, if it still is at this epoch and owner.

        Returns the record as it is then, which nobody else can write any more; None when it is somebody else's.
        """
        taken = await self.ask([("EVAL", TAKE, 3, *keys(sequence), epoch, owner, new_owner, TTL_S)])
        return await self.read(sequence) if taken == [1] else None

    async def end(self, sequence: str, finish: router_pb2.Finish.ValueType) -> bool:
        """End it, whoever owns it. Returns whether there was anything to end."""
        return await self.ask([("EVAL", END, 1, keys(sequence)[0], int(finish))]) == [1]

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The results, none of them an error."""
        try:
            results = await self._wire.exchange(commands)
        except LOST as error:
            raise StoreError(f"cannot use Redis at {self._address}: {line(error)}") from error
        for result in results:
            if isinstance(result, Exception):
                raise StoreError(f"cannot use Redis at {self._address}: {line(result)}") from result
        return results
