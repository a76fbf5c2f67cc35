"""Where a sequence is: running here, ended here, followed here, or only on record."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from specrouter.v1 import state_pb2
from specrouter_router.records import Records, StoreError
from specrouter_router.refusal import InvalidError, RefusedError
from specrouter_router.story import Account, Story
from specrouter_router.watch import ELSEWHERE, REASONS, Watches

MAX_ENDED = 256  # stories kept after their end


@dataclass(frozen=True, slots=True)
class Found:
    """A sequence that a client can follow."""

    spec: state_pb2.SequenceSpec
    story: Story
    levels: tuple[str, ...] = ()  # that it may use, lowest first; () = it does not run here

    def check_offset(self, offset: int) -> None:
        """Raises InvalidError when a client can't have got so many tokens."""
        most = self.spec.max_tokens if self.story.end is None else len(self.story.tokens)
        if offset > most:
            raise InvalidError("offset", f"only {most} tokens can have been generated, got {offset}")


class Finder:
    """See the module."""

    def __init__(self, records: Records, watches: Watches, tell: Callable[[state_pb2.SequenceSpec], Story]) -> None:
        self._records = records
        self._watches = watches
        self._tell = tell
        self._ended: OrderedDict[str, Found] = OrderedDict()

    def keep(self, found: Found) -> None:
        """It has ended here."""
        self._ended[found.spec.sequence] = found
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    async def find(
        self, name: str, running: Callable[[str], Found | None], model: str, *, unattended: bool = False
    ) -> Found | None:
        """None where there is no such sequence of the family. Raises RefusedError when Redis can't be asked."""
        found = running(name) or self._here(name)
        if found is not None:
            return found
        try:
            record = await self._records.read(name)
        except StoreError as error:
            raise RefusedError(str(error), status=503, code="store_lost") from error
        found = running(name) or self._here(name)  # somebody else came for it at the same time
        if found is not None or record is None or record.spec.model != model:
            return found
        story = self._tell(record.spec)
        for token in record.tokens:
            story.append(token, ELSEWHERE)
        story.deliver(len(story.tokens))
        if record.finish in REASONS:
            story.close(REASONS[record.finish], Account())
        else:
            self._watches.watch(record.spec, story, unattended=unattended)
        return Found(record.spec, story)

    def _here(self, name: str) -> Found | None:
        if name in self._ended:
            return self._ended[name]
        watch = self._watches.get(name)
        return Found(watch.spec, watch.story) if watch is not None else None
