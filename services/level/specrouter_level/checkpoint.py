"""Blocks of keys and values to Redis and back, beside the steps.

*Writing.* When a block of BLOCK positions of a sequence is full, it is offered to the writer, a thread of low priority
with a bounded queue; a full queue makes the block wait for the sequence's next step, or be lost with the sequence.
The writer copies the block while steps run. They do not wait for it: a step that is about to write to a block's
positions first marks the copy void, and the writer looks at the mark after it has copied.

*Restoring.* When a sequence comes with a prefix of which the slot holds much less, the reader, another thread, looks
in one round trip for the longest run of blocks that are there, and fetches them if that is predicted cheaper than
computing them (``prices``). The sequence takes part in no step meanwhile, others do. Whatever is in doubt is left out
and counted: bytes that are not exactly what was asked for, a Redis that does not answer, a restore that takes longer
than the prefill would have. A sequence that ends gives up its restore at once. The worst that a restore can do is to
lose that time once.

Everything but the two threads' own work happens on the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, perf_counter

from specrouter_level import block_name, block_store
from specrouter_level.blob import BlobError, Framing
from specrouter_level.block_name import Namer
from specrouter_level.block_store import BlockStore
from specrouter_level.checkpoint_settings import Settings
from specrouter_level.engine import Engine, Memory
from specrouter_level.held import BLOCK, Held
from specrouter_level.prices import Prices

log = logging.getLogger(__name__)

MAX_COPIES = 64  # blocks that wait for the writer
MAX_RESTORES = 256
LEAST_TOKENS = BLOCK // 2  # to be saved, or it is not worth a look
LEAST_SECONDS = 0.004  # of prefill; a look costs a round trip
READ_S, WRITE_S = 0.1, 2.0  # for one answer of Redis
SLACK_S = 0.05  # a restore may take so much longer than the prefill would, once
PAUSE_S = 3.0  # after Redis was not there
LOG_S = 30.0
NICE = 10  # the writer's priority
STOP_S = 1.0


@dataclass(slots=True, eq=False)
class Copy:
    """A block on its way to Redis."""

    slot: int
    block: int
    tokens: list[int]  # of the text up to the block's end
    prompt_length: int
    void: threading.Event = field(default_factory=threading.Event)  # a step writes to its positions
    over: bool = False

    @property
    def end(self) -> int:
        return (self.block + 1) * BLOCK


@dataclass(slots=True, eq=False)
class Restore:
    """Blocks on their way to a slot."""

    held: Held
    slot: int
    tokens: list[int]  # the text that the slot will hold at most
    prompt_length: int
    reached: int  # positions that it holds
    saved: float  # seconds of prefill at most
    cost: float  # seconds, as predicted
    cancelled: bool = False
    over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while the slot is written to


class Checkpoints:
    """See the module. ``tell`` is called on the loop when a restore is over."""

    def __init__(self, settings: Settings, engine: Engine, memory: Memory) -> None:
        info = engine.info
        self.counts: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()  # restores cut short, by why
        self.prices = Prices(info.costs)
        self._policy = settings.policy
        self._memory = memory
        self._framing = Framing(memory.layout, settings.codec, info.model_digest, BLOCK, settings.key)
        self._namer = Namer(
            model_digest=info.model_digest,
            codec=settings.codec,
            layout=memory.layout,
            exactness=info.exactness,
            positions=BLOCK,
            key=settings.key,
        )
        most = max(1, settings.budget // self._framing.blob_bytes)
        level = f"{info.model_digest[:16]}-{settings.codec}"
        tenant = block_name.tenant(settings.key)
        self._stores = [BlockStore(settings.url, seconds, tenant, level, most) for seconds in (READ_S, WRITE_S)]
        self._copies: queue.Queue[Copy | None] = queue.Queue(MAX_COPIES)
        self._restores: queue.Queue[Restore | None] = queue.Queue(MAX_RESTORES)
        self._pending: dict[int, list[Copy]] = {}  # slot -> copies that a step could spoil
        self._waiting = 0.0  # predicted seconds of the restores under way
        self._paused = 0.0  # monotonic seconds until which Redis is left alone
        self._logged = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tell: Callable[[Held], None] = lambda _: None
        self._threads = [
            threading.Thread(target=self._read, name="kv reader", daemon=True),
            threading.Thread(target=self._write, name="kv writer", daemon=True),
        ]

    def start(self, tell: Callable[[Held], None]) -> None:
        """Bind to the running loop."""
        self._loop, self._tell = asyncio.get_running_loop(), tell
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let go of what waits, wait a moment for what is under way."""
        for line in (self._restores, self._copies):
            with suppress(queue.Empty):
                while True:
                    line.get_nowait()
            line.put_nowait(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(STOP_S)

    @property
    def queued(self) -> int:
        """Blocks and restores that wait."""
        return self._copies.qsize() + self._restores.qsize()

    @property
    def position_bytes(self) -> int:
        """Memory of one position."""
        return self._memory.layout.position_bytes

    # Writing.

    def full(self, held: Held) -> None:
        """Offer the blocks of a sequence that have become full."""
        last = held.valid // BLOCK
        if self._policy == "prompts":
            last = min(last, held.params.prompt_length // BLOCK)
        while held.offered < last:
            end = (held.offered + 1) * BLOCK
            copy = Copy(held.slot, held.offered, held.text.tokens[:end], held.params.prompt_length)
            try:
                self._copies.put_nowait(copy)
            except queue.Full:
                self.counts["delayed"] += 1
                return
            self._pending.setdefault(held.slot, []).append(copy)
            held.offered += 1

    def overwritten(self, slot: int, start: int) -> None:
        """A step is about to write to a slot from position ``start`` on."""
        pending = self._pending.pop(slot, None)
        if pending is None:
            return
        for copy in pending:
            if start < copy.end:
                copy.void.set()
        left = [copy for copy in pending if not (copy.void.is_set() or copy.over)]
        if left:
            self._pending[slot] = left

    def _write(self) -> None:
        """The writer's life."""
        with suppress(AttributeError, OSError):  # where threads have no priority of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        store = self._stores[1]
        while (copy := self._copies.get()) is not None:
            try:
                self.counts[self._copy(copy, store)] += 1
            except block_store.LOST as error:
                self._lost(error)
                self.counts["failed"] += 1
            except Exception:  # one block's fault must not end the thread
                log.exception("a checkpoint failed")
                self.counts["failed"] += 1
            copy.over = True
        store.close()

    def _copy(self, copy: Copy, store: BlockStore) -> str:
        """Write one block; returns what became of it."""
        if monotonic() < self._paused:
            return "failed"
        name = self._namer.names(copy.tokens, copy.prompt_length)[copy.block]
        if store.held([name]):
            store.use([name])
            return "known"
        if copy.void.is_set():
            return "void"
        begin = copy.block * BLOCK
        block = self._memory.read(copy.slot, begin, begin + BLOCK)
        if copy.void.is_set():
            return "void"
        data = self._framing.write(block, name, begin)
        self.counts["evicted"] += store.put(name, data)
        self.counts["written_bytes"] += len(data)
        return "written"

    # Restoring.

    def wanted(self, held: Held) -> Restore | None:
        """Look for what the slot lacks of the text, if that may be worth it. None: it is not.

        The sequence must stay out of steps until ``tell`` is called, whatever becomes of it.
        """
        end = (len(held.text) - 1) // BLOCK * BLOCK
        saved = self.prices.prefill(end - held.valid)
        if end - held.valid < LEAST_TOKENS or saved < LEAST_SECONDS or monotonic() < self._paused:
            return None
        cost = self.prices.restore((end // BLOCK - held.valid // BLOCK) * self._framing.blob_bytes)
        if self._loop is None or self._waiting + cost >= saved:
            self.prices.declined()
            self.counts["declined"] += 1
            return None
        tokens = held.text.tokens[:end]
        restore = Restore(held, held.slot, tokens, held.params.prompt_length, held.valid, saved, cost)
        try:
            self._restores.put_nowait(restore)
        except queue.Full:
            self.counts["declined"] += 1
            return None
        self.overwritten(held.slot, held.valid // BLOCK * BLOCK)
        self._waiting += cost
        self._loop.call_later(saved + SLACK_S, self._cut, restore, "late")  # than the prefill would have been
        return restore

    def abandon(self, restore: Restore) -> None:
        """Nobody wants it any more: the slot is let go of, at once or when the block that is being put there is."""
        self._cut(restore, "")

    def _cut(self, restore: Restore, why: str) -> None:
        """End it before its end. ``why`` is counted; "" is not."""
        if restore.over or self._loop is None:
            return
        if restore.lock.acquire(blocking=False):
            restore.cancelled = True
            restore.lock.release()
            if why:
                self.ignored[why] += 1
            self._ended(restore)
        else:  # a block is being put in its place, which takes a few milliseconds
            self._loop.call_later(0.005, self._cut, restore, why)

    def _ended(self, restore: Restore) -> None:
        if restore.over:
            return
        restore.over = True
        self._waiting = max(0.0, self._waiting - restore.cost)
        held = restore.held
        held.fed = restore.tokens[: restore.reached]
        held.offered = restore.reached // BLOCK
        self._tell(held)

    def _read(self) -> None:
        """The reader's life."""
        store = self._stores[0]
        while (restore := self._restores.get()) is not None:
            found: list[str] = []
            try:
                found = self._fetch(restore, store)
            except block_store.LOST as error:
                self.ignored["lost"] += 1
                self._lost(error)
            except Exception:  # one sequence's fault must not end the thread
                self.ignored["failed"] += 1
                log.exception("a restore failed")
            if self._loop is not None:
                with suppress(RuntimeError):  # the loop has closed
                    self._loop.call_soon_threadsafe(self._ended, restore)
            if found:
                with suppress(*block_store.LOST):
                    store.use(found)
        store.close()

    def _fetch(self, restore: Restore, store: BlockStore) -> list[str]:
        """Bring what is there, if that is cheaper; returns the names of the blocks that are in their place."""
        if restore.cancelled:
            return []
        begin = perf_counter()
        first = restore.reached // BLOCK
        names = self._namer.names(restore.tokens, restore.prompt_length)[first:]
        there = store.held(names)
        self.counts["lookups"] += 1
        tokens = (first + there) * BLOCK - restore.reached
        if there == 0:
            return []
        if self.prices.restore(there * self._framing.blob_bytes) >= self.prices.prefill(tokens):
            self.counts["declined"] += 1
            return []
        done = 0
        while done < there and self._place(restore, store, first + done, names[done]):
            done += 1
            left = there - done  # at the pace so far: a link that is slower than was thought costs one block's time
            if left * (perf_counter() - begin) / done >= self.prices.prefill(left * BLOCK):
                self.counts["stopped"] += left > 0
                break
        if done:
            self.prices.restored(done * self._framing.blob_bytes, perf_counter() - begin)
            self.counts["restores"] += 1
            self.counts["restored_tokens"] += done * BLOCK
            self.counts["restored_bytes"] += done * self._framing.blob_bytes
        return names[:done]

    def _place(self, restore: Restore, store: BlockStore, block: int, name: str) -> bool:
        """Fetch one block and put it in its place. False: it is not there, not right, or too late."""
        data = store.get(name)
        if data is None:
            self.ignored["gone"] += 1
            return False
        try:
            parts = self._framing.read(data, name, block * BLOCK)
        except BlobError as error:
            self.ignored[str(error)] += 1
            log.warning("block %s of a sequence is not what it should be (%s); it is computed instead", name, error)
            store.drop(name)
            return False
        with restore.lock:
            if restore.cancelled:
                return False
            self._memory.write(restore.slot, block * BLOCK, parts)
            restore.reached = (block + 1) * BLOCK
        return True

    def _lost(self, error: Exception) -> None:
        now = monotonic()
        self._paused = now + PAUSE_S
        if now > self._logged + LOG_S or not self._logged:
            self._logged = now
            log.warning("no checkpoints for now: %s", " ".join(str(error).split()) or type(error).__name__)
