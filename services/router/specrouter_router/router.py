"""The object that owns links, store and sequences."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum

from specrouter.v1 import router_pb2, state_pb2
from specrouter_family.family import ChainSpec, Family, FamilyError
from specrouter_router.course import Course
from specrouter_router.dial import PLAIN, Dial
from specrouter_router.endpoints import Endpoints
from specrouter_router.find import Finder, Found
from specrouter_router.judge import Judge
from specrouter_router.lease import Lease
from specrouter_router.metrics import Metrics
from specrouter_router.orphans import OrphansPolicy, Sweeper
from specrouter_router.pin import Pin
from specrouter_router.planner import AdaptivePlanner, FixedPlanner
from specrouter_router.prompts import Prompts
from specrouter_router.records import StoreError
from specrouter_router.refusal import InvalidError, RefusedError, busy, moved, not_ready
from specrouter_router.replica_status import ReplicaCollector
from specrouter_router.replicas import Replicas
from specrouter_router.request import Limits, Request
from specrouter_router.sequence import Sequence as Running
from specrouter_router.spec import pin_of, spec_of
from specrouter_router.steering import Steering
from specrouter_router.store import Record, Store
from specrouter_router.story import Story
from specrouter_router.tokenizer import Tokenizer
from specrouter_router.watch import Watches

log = logging.getLogger(__name__)

MAX_RUNNING = 256
MAX_STOP_IDS = 16
START_S = 120.0  # so long levels may take to come up
CHECK_S = 0.4  # a sequence that writes nothing for so long asks whether it is still this router's
HAND_OVER_S = 1.0  # for the last writes of a router that stops
CLAIM_S = 2.0  # so long a request waits for another router that starts its sequence: longer than a claim lasts
CLAIM_AGAIN_S = 0.01
SHORT_S = 5.0  # a loss of Redis that is no longer is ridden out


class WithoutRedis(StrEnum):
    """What becomes of new requests while Redis is lost for longer than a moment."""

    REFUSE = "refuse"
    SERVE = "serve"  # though no other router could go on with them


class StartError(Exception):
    """The router can't serve this family."""


class Router:
    """See the module. Made within the running loop."""

    def __init__(  # noqa: PLR0913  # each is a part of its own
        self,
        family: Family,
        tokenizer: Tokenizer,
        store: Store,
        metrics: Metrics,
        *,
        address: str = "",
        orphans: OrphansPolicy = OrphansPolicy.EXPIRE,
        without_redis: WithoutRedis = WithoutRedis.SERVE,
        dial: Dial = PLAIN,
        max_running: int = MAX_RUNNING,
    ) -> None:
        self.family = family
        self.tokenizer = tokenizer
        self.prompts = Prompts(tokenizer, max_running)
        self.store = store
        self.metrics = metrics
        self.draining = False
        self.running: dict[str, Running] = {}
        self.links = {
            level.name: Replicas(
                level.name,
                Endpoints(level.endpoints, dial),
                metrics,
                self._came_back,
                vital=level is family.target,
            )
            for level in family.levels
        }
        metrics.registry.register(ReplicaCollector(self.links))
        self._target = self.links[family.target.name]
        self._started = False
        self.planner: FixedPlanner | AdaptivePlanner = FixedPlanner(family, self.links)
        self.judge: Judge | None = None
        self._max_running = max_running
        self._without_redis = without_redis
        self.lease = Lease(store.records, family.name, address, self._look_after)
        self.watches = Watches(store.records, self.lease, self._adopt, self._why_not_run)
        self._finder = Finder(store.records, self.watches, self._story)
        self._sweeper = Sweeper(store.records, self.lease, orphans, self._finish_orphan, self._room)
        self.steering = Steering(store.records, family.name, self._steer)
        metrics.policy_version.set_function(lambda: self.steering.version)
        self._touched: list[Running] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()

    # Start and end.

    async def start(self) -> None:
        """Connect to all levels and check that they fit together. Raises StartError."""
        self.lease.start()
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
            self.planner = AdaptivePlanner(self.family, self.links)
            self.judge = Judge(self.planner, self.links, self.metrics)
            self.metrics.planned.adaptive = self.planner.adaptive
        self._started = True
        self._sweeper.start()
        self.steering.start()
        log.info("ready: family %s, levels %s", self.family.name, ", ".join(self.links))

    async def stop(self, seconds: float) -> None:
        """Take no more requests, let running ones end within ``seconds``, leave the rest to others, disconnect."""
        self.draining = True
        await self._sweeper.stop()
        await self.steering.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        left = list(self.running.values())
        for sequence in left:
            sequence.hand_over(moved())
        await self.watches.close(moved())
        with suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_S):
                await asyncio.gather(*(sequence.story.finished() for sequence in left))
        await self.lease.stop(bool(left))
        await asyncio.sleep(0.1)  # what was withdrawn and released leaves, the last words reach the clients
        for link in self.links.values():
            await link.close()
        self.prompts.close()

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
        if self._without_redis is WithoutRedis.REFUSE and self.store.lost_s > SHORT_S:
            return f"Redis is lost for {self.store.lost_s:.0f} s"
        return ""

    @property
    def protected(self) -> bool:
        """Whether another router could go on with what runs here."""
        return not self.store.lost_s

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

    def _steer(self, weights: Mapping[str, float], chain: ChainSpec | None) -> str:
        """What the operator wants is in force from now on. Returns what of it is not, "" for nothing."""
        left_out = []
        if chain is not None:
            try:
                self.family = self.family.with_chain(chain.model_copy(update={"policy": self.family.chain.policy}))
            except FamilyError as error:
                left_out.append(str(error))
            if chain.policy != self.family.chain.policy:
                left_out.append(f"chain.policy: {chain.policy} needs a new start of the router")
        unknown = sorted(weights.keys() - self.links.keys())
        if unknown:
            left_out.append(f"weights: no level is named {', '.join(unknown)}")
        self.planner.steer(weights, self.family.chain)
        return "; ".join(left_out)

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

    def submit(self, request: Request, prompt_field: str = "prompt") -> Running:
        """Start a sequence. Raises RefusedError."""
        self.admit()
        self.metrics.requests.inc()
        room = request.room(self.limits, prompt_field)
        name = request.name or secrets.token_hex(16)
        course = self.planner.course(name, request.pin, len(request.prompt), room, request.traffic)
        stop_ids = self._target.info.stop_ids[:MAX_STOP_IDS] if self._target.info and not request.ignore_eos else ()
        spec = spec_of(request, name, self.family.name, room, stop_ids)
        record = Record(spec, [], _Nobody(), self.lease.id, self.lease.index)
        return self._run(record, self._story(spec), course)

    async def open(self, request: Request, prompt_field: str = "prompt") -> Found:
        """Start a sequence, or find that of the name which the request brings. Raises RefusedError."""
        if not request.name:
            return _found(self.submit(request, prompt_field))
        until = self._loop.time() + CLAIM_S
        while self._loop.time() < until:  # then whoever claimed it is gone; if not, the epochs let one of the two write
            if (found := await self._repeated(request)) is not None:
                return found
            if await self._claimed(request.name):
                break
            await asyncio.sleep(CLAIM_AGAIN_S)
        return _found(self.submit(request, prompt_field))

    async def _claimed(self, name: str) -> bool:
        """Whether the sequence of this name is this router's to start, lest two routers do so at once."""
        try:
            return await self.store.records.claim(name)
        except StoreError:  # nobody else can be asked
            return True

    async def _repeated(self, request: Request) -> Found | None:
        try:
            found = await self.find(request.name)
        except RefusedError as refusal:
            if refusal.status == 404 or (refusal.code == "store_lost" and not self.why_not_ready):
                return None
            raise
        if found.spec.request_digest != request.digest:
            raise InvalidError("sequence", f"{request.name!r} is the name of another request", status=409)
        return found

    async def find(self, name: str) -> Found:
        """A sequence to follow. One that no router runs will be taken up. Raises RefusedError."""
        if self.draining:
            raise moved()
        found = await self._finder.find(name, self._running, self.family.name)
        if found is None:
            raise RefusedError(f"sequence: there is none named {name!r}", status=404, field="sequence")
        return found

    async def cancel(self, name: str) -> bool:
        """End a sequence, whichever router runs it. Returns whether it had not ended yet. Raises RefusedError."""
        sequence = self.running.get(name)
        if sequence is not None:
            sequence.cancel()
            return True
        try:
            return await self.store.records.end(name, router_pb2.FINISH_CANCELLED)
        except StoreError as error:
            raise RefusedError(str(error), status=503, code="store_lost") from error

    def _running(self, name: str) -> Found | None:
        sequence = self.running.get(name)
        return None if sequence is None or sequence.ended else _found(sequence)

    async def _finish_orphan(self, name: str) -> None:
        await self._finder.find(name, self._running, self.family.name, unattended=True)

    def _room(self) -> int:
        """For orphans: half of the places are kept for new requests."""
        return 0 if self.why_not_ready else self._max_running // 2 - len(self.running)

    def _why_not_run(self) -> str:
        if len(self.running) >= self._max_running:
            return f"{self._max_running} sequences are running already"
        return self.why_not_ready

    def _adopt(self, record: state_pb2.SequenceRecord, story: Story) -> None:
        """Go on with a sequence that was taken."""
        spec = record.spec
        self.metrics.taken_over.inc()
        there = len(spec.prompt) + len(story.tokens)
        room = spec.max_tokens - len(story.tokens)
        try:
            course = self.planner.course(spec.sequence, pin_of(spec), there, room, spec.traffic_class)
        except InvalidError:  # the family has other levels than when it was asked for
            course = self.planner.course(spec.sequence, Pin(), there, room, spec.traffic_class)
        kept = Record(spec, story.tokens, _Nobody(), self.lease.id, self.lease.index, record.epoch, record.round)
        kept.kept_round, kept.kept_tokens, kept.kept_spec = record.round, len(record.tokens), True
        self._run(kept, story, course)

    def _run(self, record: Record, story: Story, course: Course) -> Running:
        record.tokens = story.tokens
        sequence = Running(record, course, self.links, story, self.metrics, self._touch, self.judge)
        record.listener = sequence
        self.running[sequence.id] = sequence
        self._idle.clear()
        self.metrics.running.set(len(self.running))
        sequence.start()
        return sequence

    def _look_after(self, lapsed: bool) -> None:
        """Ask of the sequences that wrote nothing lately, or of all, whether they are still this router's."""
        now = time.monotonic()
        for sequence in self.running.values():
            record = sequence.record
            record.listed = record.listed and not lapsed
            if lapsed or now - record.tried > CHECK_S:
                self.store.write(record)

    def _story(self, spec: state_pb2.SequenceSpec) -> Story:
        detokenizer = self.tokenizer.detokenizer(spec.prompt)
        return Story([], detokenizer, spec.stop, frozenset(spec.params.stop_ids))

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
        sequence.story.abandoned = None
        sequence.retire()
        if not self.running:
            self._idle.set()
        self.metrics.running.set(len(self.running))
        self.metrics.finished.labels(router_pb2.Finish.Name(sequence.record.finish)[7:].lower()).inc()
        if sequence.record.finish:
            self._finder.keep(_found(sequence))


def _found(sequence: Running) -> Found:
    return Found(sequence.record.spec, sequence.story, sequence.levels)


class _Nobody:
    """Listens to a record until its sequence exists."""

    def written(self, tokens: int, ended: bool) -> None:
        """Nothing to do."""

    def refused(self, why: str, finish: router_pb2.Finish.ValueType) -> None:
        """Nothing to do."""
