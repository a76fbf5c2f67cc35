"""Who owns a record, as a sequence does."""

from __future__ import annotations

from typing import Any

from processes import become
from specrouter.v1 import router_pb2, state_pb2
from specrouter_router.store import Record, RedisStore


class Owner:
    """Hears what the store says."""

    def __init__(self, name: str, owner: str = "me", epoch: int = 1) -> None:
        self.said: list[Any] = []
        self.record = Record(state_pb2.SequenceSpec(sequence=name, prompt=[5]), [], self, owner, epoch=epoch)

    def written(self, tokens: int, ended: bool) -> None:
        self.said.append((tokens, ended))

    def refused(self, why: str, finish: router_pb2.Finish.ValueType) -> None:
        self.said += [why, finish] if finish else [why]

    def commit(self, store: RedisStore, *tokens: int, ended: bool = False) -> None:
        self.record.tokens += tokens
        self.record.round += 1
        self.record.ended = ended
        if ended:
            self.record.finish = router_pb2.FINISH_STOP
        store.write(self.record)

    async def hears(self, what: Any) -> None:
        await become(lambda: what in self.said, seen=lambda: f"{what} was not said, but {self.said}")
