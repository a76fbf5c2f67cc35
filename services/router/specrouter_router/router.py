"""The object that owns links, store and sequences."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from specrouter.v1 import level_pb2 as pb
from specrouter.v1 import router_pb2, state_pb2
from specrouter_family.family import Family
from specrouter_router.endpoints import Endpoints
from specrouter_router.judge import Judge
from specrouter_router.metrics import Metrics
from specrouter_router.planner import AdaptivePlanner, FixedPlanner
from specrouter_router.refusal import RefusedError, busy, not_ready
from specrouter_router.replicas import Replicas
from specrouter_router.request import Limits, Request, wire
from specrouter_router.sequence import Sequence as Running
from specrouter_router.store import Record, Store, StoreError
from specrouter_router.story import Account, Reason, Story
from specrouter_router.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_RUNNING = 256
MAX_ENDED = 256  # stories kept for Attach after their end
MAX_STOP_IDS = 16
TOKENIZE_S = 30.0
START_S = 120.0  # so long levels may take to come up

REASONS: dict[router_pb2.Finish.ValueType, Reason] = {
    router_pb2.FINISH_STOP: "stop",
    router_pb2.FINISH_LENGTH: "length",
    router_pb2.FINISH_CANCELLED: "cancelled",
}


class StartError(Exception):
    """The router can't serve this family."""


class Router:
    """See the module. Made within the running loop."""

    def __init__(
        self, family: Family, tokenizer: Tokenizer, store: Store, metrics: Metrics, *, max_running: int = MAX_RUNNING
    ) -> None:
        self.family = family
        self.tokenizer = tokenizer
        self.store = store
        self.metrics = metrics
        self.draining = False
        self.running: dict[str, Running] = {}
        self.links = {
            level.name: Replicas(
                level.name,
                Endpoints(level.endpoints),
                metrics,
                self._came_back,
                vital=level is family.target,
            )
            for level in family.levels
        }
        self._target = self.links[family.target.name]
        self._started = False
        self.planner: FixedPlanner | AdaptivePlanner = FixedPlanner(family, self.links)
        self.judge: Judge | None = None
        self._max_running = max_running
        self._ended: OrderedDict[str, Story] = OrderedDict()
        self._touched: list[Running] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._preparing = 0  # prompts being tokenized
        self._text_work = ThreadPoolExecutor(1, "tokenizer")

    # Start and end.

    async def start(self) -> None:
        """Connect to all levels and check that they fit together. Raises StartError."""
        for link in self.links.values():
            link.start()
        until = self._loop.time() + START_S
        next_line = self._loop.time() + 5
        while missing := [link for link in self.links.values() if not link.ready]:
            self._check_family()
            if self._loop.time() > until:
                what = "; ".join(f"{link.name} at {link.address}: {link.why_down}" for link in missing)
                raise StartError(f"levels are not there after {START_S:g} s: {what}")
            if self._loop.time() > next_line:
                next_line += 5
                log.info("waiting for %s", ", ".join(f"{link.name} at {link.address}" for link in missing))
            await asyncio.sleep(0.05)
        self._check_family()
        if self.family.chain.policy == "adaptive":
            self.planner = AdaptivePlanner(self.family, self.links, self.metrics)
            self.judge = Judge(self.planner, self.links, self.metrics)
            self.metrics.planned.adaptive = self.planner.adaptive
        self._started = True
        log.info("ready: family %s, levels %s", self.family.name, ", ".join(self.links))

    async def stop(self, seconds: float) -> None:
        """Take no more requests, let running ones end within ``seconds``, cancel the rest, disconnect."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        for sequence in list(self.running.values()):
            sequence.break_off(RefusedError("the router is shutting down", status=503, code="shutting_down"))
        await asyncio.sleep(0.1)  # what was withdrawn and released leaves, the last words reach the clients
        for link in self.links.values():
            await link.close()
        self._text_work.shutdown(wait=False, cancel_futures=True)

    @property
    def why_not_ready(self) -> str:
        """Why no request can be taken now; "" = they can."""
        if self.draining:
            return "shutting down"
        if not self._started:
            down = [link.name for link in self.links.values() if not link.ready]
            return f"starting: not connected to {', '.join(down)}" if down else "starting"
        if not self._target.ready:
            return f"the target {self._target.name} is down: {self._target.why_down}"
        return ""

    def _check_family(self) -> None:
        """All vocabularies known so far must be the same. Raises StartError."""
        known = [("the tokenizer", self.tokenizer.vocab_digest)]
        for link in self.links.values():
            if link.info is not None:
                known.append((f"level {link.name} at {link.address}", link.info.vocab_digest))
        known = [(who, digest) for who, digest in known if digest]
        for who, digest in known[1:]:
            if digest != known[0][1]:
                raise StartError(
                    f"{known[0][0]} and {who} have different vocabularies: {known[0][1][:16]} and {digest[:16]}"
                )

    def _came_back(self, level: str) -> None:
        for sequence in self.running.values():
            sequence.came_back(level)

    # Requests.

    @property
    def limits(self) -> Limits:
        """The target's."""
        info = self._target.info
        return Limits(info.max_length, info.vocab_size) if info is not None else Limits(2, 0)

    def admit(self) -> None:
        """Raises RefusedError when no further request can be taken."""
        why = self.why_not_ready
        if why:
            raise not_ready(why)
        if len(self.running) >= self._max_running:
            self.metrics.requests.inc()
            raise busy(self._max_running)

    async def ids(self, work: Callable[[], list[int]]) -> list[int]:
        """Run the tokenizer beside the loop. Raises RefusedError when that takes too long, or too many wait."""
        if self._preparing >= self._max_running:
            raise busy(self._max_running)
        self._preparing += 1
        try:
            async with asyncio.timeout(TOKENIZE_S):
                return await self._loop.run_in_executor(self._text_work, work)
        except TimeoutError as error:
            raise RefusedError(f"the prompt was not tokenized within {TOKENIZE_S:g} s", status=503) from error
        finally:
            self._preparing -= 1

    def submit(self, request: Request, prompt_field: str = "prompt") -> Running:
        """Start a sequence. Raises RefusedError."""
        self.admit()
        self.metrics.requests.inc()
        room = request.room(self.limits, prompt_field)
        name = secrets.token_hex(16)
        course = self.planner.course(name, request.pin, len(request.prompt) + room, request.traffic)
        stop_ids = self._target.info.stop_ids[:MAX_STOP_IDS] if self._target.info and not request.ignore_eos else ()
        spec = state_pb2.SequenceSpec(
            sequence=name,
            model=self.family.name,
            prompt=request.prompt,
            params=pb.SequenceParams(
                sampling=wire(request.sampling), prompt_length=len(request.prompt), stop_ids=stop_ids
            ),
            max_tokens=room,
            stop=request.stop,
            chain=request.pin.chain,
            created_ms=time.time_ns() // 1_000_000,
        )
        record = Record(spec, [], _Nobody())
        story = self._story(spec, record.tokens)
        sequence = Running(record, course, self.links, story, self.metrics, self._touch, self.judge)
        record.listener = sequence
        self.running[sequence.id] = sequence
        self._idle.clear()
        self.metrics.running.set(len(self.running))
        sequence.start()
        return sequence

    def cancel(self, name: str) -> bool:
        """End a sequence. Returns whether it was running."""
        sequence = self.running.get(name)
        if sequence is None:
            return False
        sequence.cancel()
        return True

    async def find(self, name: str) -> Story:
        """The story of a sequence that runs or ran here, or has ended elsewhere. Raises RefusedError."""
        if name in self.running:
            return self.running[name].story
        if name in self._ended:
            return self._ended[name]
        try:
            record = await self.store.read(name)
        except StoreError as error:
            raise RefusedError(str(error), status=503, code="store_lost") from error
        if record is None:
            raise RefusedError(f"sequence: there is none named {name!r}", status=404, field="sequence")
        if record.finish not in REASONS:
            raise RefusedError(f"sequence: {name!r} is run by another router, or was until that died", status=503)
        story = self._story(record.spec, [])
        for token in record.tokens:
            story.append(token, self.family.target.name)
        story.close(REASONS[record.finish], Account())
        return story

    def _story(self, spec: state_pb2.SequenceSpec, tokens: list[int]) -> Story:
        detokenizer = self.tokenizer.detokenizer(spec.prompt)
        return Story(tokens, detokenizer, spec.stop, frozenset(spec.params.stop_ids))

    # Once in a tick, after the links have been given what to send.

    def _touch(self, sequence: Running) -> None:
        if not self._touched:
            self._loop.call_soon(self._publish)
        self._touched.append(sequence)

    def _publish(self) -> None:
        touched, self._touched = self._touched, []
        for sequence in touched:
            try:
                ended = sequence.publish()
            except Exception as error:  # one sequence's fault must not keep the others' texts back
                sequence.broke(error)
                sequence.story.close(None, sequence.account(), RefusedError("the router failed", status=500))
                ended = True
            if ended:
                self._end(sequence)
            self.store.write(sequence.record)

    def _end(self, sequence: Running) -> None:
        self.running.pop(sequence.id, None)
        sequence.retire()
        if not self.running:
            self._idle.set()
        self.metrics.running.set(len(self.running))
        self.metrics.finished.labels(router_pb2.Finish.Name(sequence.record.finish)[7:].lower()).inc()
        self._ended[sequence.id] = sequence.story
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)


class _Nobody:
    """Listens to a record until its sequence exists."""

    def written(self, tokens: int, ended: bool) -> None:
        """Nothing to do."""

    def refused(self, why: str) -> None:
        """Nothing to do."""
