"""The one thread in which an engine lives, from loading its model to its last step.

OpenMP keeps a pool of threads for every thread that computes. With a second pool it counts more threads than cores
and stops spinning at its barriers: measured on 2 cores, an int4 step took 23 ms instead of 15. So loading,
calibration and steps share this thread, and no other computes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """A thread that does one thing after the other. It never keeps the process from exiting."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> None:
        """Have it done; ``work`` must not raise. Its callers have one step under way at most, so nothing piles up."""
        self._work.put(work)

    def ask(self, work: Callable[[], T]) -> T:
        """Have it done and wait for the result. Raises what ``work`` raises."""
        answer: Future[T] = Future()

        def asked() -> None:
            try:
                answer.set_result(work())
            except BaseException as error:  # handed to the one who asked, whatever it is
                answer.set_exception(error)

        self._work.put(asked)
        return answer.result()

    def stop(self, timeout: float) -> None:
        """End the thread after what is under way, waiting at most ``timeout`` seconds."""
        self._work.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
