"""Runs the scheduler's steps: in the engine's thread, or on the loop for engines whose steps take no time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

from specrouter_level.engine import Drawn, Engine, Span
from specrouter_level.scheduler import Scheduler
from specrouter_level.worker import Worker

log = logging.getLogger(__name__)

BURST_SECONDS = 0.001  # steps run on the loop for so long before others get a turn


class Driver:
    """Keeps one step running while there are calls. ``kick`` it after calls came; all else happens by itself.

    ``observe`` is told of every step: its seconds, tokens fed and sequences.
    """

    def __init__(
        self, engine: Engine, scheduler: Scheduler, observe: Callable[[float, int, int], None], worker: Worker
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._observe = observe
        self._running = False
        self._began = 0.0  # when the last step did
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker = worker

    def start(self) -> None:
        """Bind to the running loop."""
        self._loop = asyncio.get_running_loop()

    def stop(self, timeout: float) -> None:
        """End the thread; waits for the running step, at most ``timeout`` seconds."""
        self._worker.stop(timeout)

    @property
    def step_ms(self) -> int:
        """Milliseconds that the running step has taken so far, 1 or more; 0 = none runs."""
        return 1 + int((perf_counter() - self._began) * 1000) if self._running else 0

    def kick(self) -> None:
        """Start a step unless one is running."""
        if self._running:
            return
        if self._engine.inline:
            self._burst()
        else:
            self._next()

    def _next(self) -> None:
        spans = self._scheduler.form()
        self._running = bool(spans)
        if spans:
            self._began = perf_counter()
            self._worker.do(lambda: self._work(spans))

    def _work(self, spans: list[Span]) -> None:
        answer, seconds = self._run(spans)
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop closed while the step ran
                self._loop.call_soon_threadsafe(self._ended, spans, answer, seconds)

    def _run(self, spans: list[Span]) -> tuple[list[Drawn] | str, float]:
        start = perf_counter()
        answer: list[Drawn] | str
        try:
            answer = self._engine.step(spans)
        except Exception as error:  # whatever an engine does, the level must answer its calls
            log.exception("the engine failed in a step of %d sequences", len(spans))
            answer = f"the engine failed: {type(error).__name__}"
        return answer, perf_counter() - start

    def _ended(self, spans: list[Span], answer: list[Drawn] | str, seconds: float) -> None:
        self._settle(spans, answer, seconds)
        self._next()

    def _settle(self, spans: list[Span], answer: list[Drawn] | str, seconds: float) -> None:
        if isinstance(answer, str):
            self._scheduler.fail(answer)
        else:
            self._scheduler.finish(answer, seconds)
            self._observe(seconds, sum(len(span.text) - span.start for span in spans), len(spans))

    def _burst(self) -> None:
        self._running = False
        self._began = perf_counter()
        limit = self._began + BURST_SECONDS
        while spans := self._scheduler.form():
            self._settle(spans, *self._run(spans))
            if perf_counter() > limit and self._loop is not None:
                self._running = True
                self._loop.call_soon(self._burst)
                return
