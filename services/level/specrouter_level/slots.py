"""The engine's slots and the sequences in them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from specrouter_level.engine import Params
from specrouter_level.held import Held

if TYPE_CHECKING:
    from specrouter_level.stream import Stream


class Slots:
    """At most ``count`` sequences; the one idle for longest makes room, a running one never does."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._held: OrderedDict[str, Held] = OrderedDict()  # least recently called first
        self.evictions = 0
        self.expirations = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def positions(self) -> int:
        """Positions that count, of all sequences."""
        return sum(held.valid for held in self._held.values())

    @property
    def attached(self) -> int:
        """Sequences whose router's stream is open."""
        return sum(held.stream is not None for held in self._held.values())

    def orphan(self, stream: Stream) -> list[Held]:
        """The stream broke: its sequences are the first to make room. Returns them."""
        orphans = [held for held in self._held.values() if held.stream is stream]
        for held in reversed(orphans):
            held.stream = None
            self._held.move_to_end(held.sequence, last=False)
        return orphans

    def get(self, sequence: str) -> Held | None:
        """What is held of the sequence; it counts as used now."""
        held = self._held.get(sequence)
        if held is not None:
            self._held.move_to_end(sequence)
        return held

    def unused(self, since: float) -> list[Held]:
        """Idle sequences for which no call has come since then, by time.perf_counter()."""
        return [held for held in self._held.values() if held.idle and held.used < since]

    def take(self, sequence: str, epoch: int, params: Params) -> Held | None:
        """A slot for a sequence that is not held; None when every slot is busy."""
        if not self._free:
            idle = next((held for held in self._held.values() if held.idle), None)
            if idle is None:
                return None
            self.release(idle)
            self.evictions += 1
        held = Held(sequence=sequence, slot=self._free.pop(), epoch=epoch, params=params)
        self._held[sequence] = held
        return held

    def release(self, held: Held) -> None:
        """Forget a sequence; its slot is free at once, or when the step it is in ends (``reclaim``)."""
        if self._held.get(held.sequence) is held:
            del self._held[held.sequence]
        if held.fed is None:
            self._free.append(held.slot)
        else:
            held.released = True

    def reclaim(self, held: Held) -> None:
        """The step of a released sequence ended."""
        held.fed = None
        self._free.append(held.slot)
