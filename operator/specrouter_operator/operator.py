"""The operator as threads: one for each mirror and the lease, some that reconcile."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from specrouter_operator.api import Api, ApiError, NotLeaderError
from specrouter_operator.events import Events
from specrouter_operator.lease import DURATION, RETRY, Lease
from specrouter_operator.metrics import DEPTH, RECONCILES
from specrouter_operator.policy_types import RoutingPolicySpec
from specrouter_operator.queue import WorkQueue
from specrouter_operator.reconcile import NoPublisher, Publisher, Reconciler
from specrouter_operator.settings import Settings
from specrouter_operator.signals import NEVER, LevelSignal, RouterSignal, Signals
from specrouter_operator.traces import TRACER
from specrouter_operator.world import RetryError, World

log = logging.getLogger(__name__)

WORKERS = 4
WRITING = frozenset({"lease", *(f"worker-{i}" for i in range(WORKERS))})  # names of threads
LEASE_NAME = "specrouter-operator"
POLL_S = 0.5  # how often a worker without work looks whether it should end


@dataclass(frozen=True)
class Pace:
    """How often things happen, in seconds."""

    relist: float = 300.0  # of every resource
    watch: int = 60  # until a watch is begun anew
    lease: float = DURATION
    retry: float = RETRY  # of the lease


class Silence:
    """Signals of a mesh that doesn't report: everything is stale."""

    def level(self, family: str, level: str, now: float, window: float) -> LevelSignal:
        """Nothing was ever seen."""
        return LevelSignal(age=NEVER)

    def routers(self, family: str, now: float, window: float) -> RouterSignal:
        """Nothing was ever seen."""
        return RouterSignal(age=NEVER)


class Operator:
    """Runs until it is stopped. ``lease_api`` is a second connection, whose writes need no lease."""

    def __init__(
        self,
        api: Api,
        lease_api: Api,
        identity: str,
        settings: Settings,
        *,
        pace: Pace | None = None,
        signals_of: Callable[[RoutingPolicySpec], Signals] = lambda policy: Silence(),
        publisher: Publisher | None = None,
        today: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        pace = pace or Pace()
        self._stop = threading.Event()
        self._queue = WorkQueue()
        self.lease = Lease(lease_api, LEASE_NAME, identity, duration=pace.lease, retry=pace.retry, today=today)
        api.may_write = self.lease.held
        self._world = World(api, self._changed, relist=pace.relist, watch=pace.watch)
        self._reconciler = Reconciler(
            self._world,
            Events(api, identity),
            settings,
            signals_of=signals_of,
            publisher=publisher or NoPublisher(),
            today=today,
        )
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start all threads."""
        bodies: list[tuple[str, Callable[[], None]]] = [("lease", partial(self.lease.run, self._stop))]
        for resource, mirror in self._world.mirrors.items():
            bodies.append((resource.plural, partial(mirror.run, self._stop)))
        bodies += [(f"worker-{i}", self._work) for i in range(WORKERS)]
        for name, body in bodies:
            thread = threading.Thread(target=body, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout: float = 10.0) -> None:
        """End all threads, and give the lease back. What is being written is finished."""
        self._stop.set()
        self._queue.close()
        end = time.monotonic() + timeout
        for thread in self._threads:
            if thread.name in WRITING:  # those that only read end with their watch
                thread.join(max(0.0, end - time.monotonic()))

    def alive(self) -> bool:
        """Whether no thread has ended by itself."""
        return self._stop.is_set() or all(thread.is_alive() for thread in self._threads)

    def ready(self) -> bool:
        """Whether the mirrors are filled. A replica that doesn't lead is ready to."""
        return self._world.synced()

    def _changed(self, family: str) -> None:
        if family:
            self._queue.add(family)

    def _work(self) -> None:
        """Reconcile what the queue gives, while this replica leads."""
        while not self._stop.is_set():
            if not self.lease.held() or not self._world.synced():
                self._stop.wait(0.1)
                continue
            DEPTH.set(len(self._queue))
            family = self._queue.take(POLL_S)
            if family is not None:
                self._reconcile(family)

    def _reconcile(self, family: str) -> None:
        begun, failed, outcome = time.perf_counter(), True, "retry"
        after: float | None = None
        try:
            with TRACER.start_as_current_span("reconcile", attributes={"specrouter.family": family}):
                after = self._reconciler.reconcile(family)
            failed, outcome = False, "ok"
        except ApiError as error:
            after = error.retry_after
            log.warning("%s: %s", family, error)
        except RetryError as error:
            log.info("%s: %s", family, error)
        except NotLeaderError as error:  # no fault of the family: it goes on as soon as this replica leads again
            log.info("%s: %s", family, error)
            after, failed = 0.0, False
        except Exception:
            outcome = "error"
            log.exception("%s: reconcile failed", family)  # a fault of ours; the others go on
        RECONCILES.labels(outcome).observe(time.perf_counter() - begun)
        self._queue.done(family, failed=failed, after=after)
        if not failed and after is not None:
            self._queue.add(family, after)
