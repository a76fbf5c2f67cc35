"""A queue of keys to work on: each at most once, one worker a key, failures later and later."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Callable

FIRST_RETRY, LAST_RETRY = 0.1, 30.0  # seconds


class WorkQueue:
    """Keys, deduplicated. A key that is added while it is worked on comes again afterwards. Thread-safe.

    Its size is bounded by the number of different keys.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._due: dict[str, float] = {}  # key -> when; the truth, of which the heap may hold old versions
        self._heap: list[tuple[float, str]] = []
        self._taken: set[str] = set()
        self._again: dict[str, float] = {}  # added while taken
        self._failures: dict[str, int] = {}
        self._closed = False

    def add(self, key: str, after: float = 0.0) -> None:
        """Work on ``key`` in so many seconds, or sooner if it was to be sooner."""
        when = self._clock() + after
        with self._changed:
            if key in self._taken:
                self._again[key] = min(when, self._again.get(key, when))
            elif key not in self._due or when < self._due[key]:
                self._due[key] = when
                heapq.heappush(self._heap, (when, key))
                self._changed.notify()

    def take(self, timeout: float) -> str | None:
        """The next key that is due; None when none is within ``timeout`` seconds or the queue is closed.

        Whoever takes a key must call ``done``.
        """
        end = self._clock() + timeout
        with self._changed:
            while not self._closed:
                now = self._clock()
                while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
                    heapq.heappop(self._heap)
                if self._heap and self._heap[0][0] <= now:
                    _, key = heapq.heappop(self._heap)
                    del self._due[key]
                    self._taken.add(key)
                    return key
                if now >= end:
                    return None
                self._changed.wait(min(end, self._heap[0][0] if self._heap else end) - now)
            return None

    def done(self, key: str, *, failed: bool = False, after: float | None = None) -> None:
        """The work on ``key`` ended. A failed key comes again after a time that doubles with each failure in a row, and
        not before ``after`` seconds, if the API server asked for that."""
        with self._changed:
            self._taken.discard(key)
            wanted = self._again.pop(key, None)
            if failed:
                count = self._failures[key] = min(self._failures.get(key, 0) + 1, 30)
                wait = min(FIRST_RETRY * 2 ** (count - 1), LAST_RETRY) * random.uniform(0.75, 1.25)
                wanted = self._clock() + max(wait, after or 0.0)
            else:
                self._failures.pop(key, None)
            if wanted is not None:
                self._due[key] = wanted
                heapq.heappush(self._heap, (wanted, key))
                self._changed.notify()

    def close(self) -> None:
        """Wake everybody who waits, with nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        """Keys that wait and are due."""
        with self._changed:
            now = self._clock()
            return sum(when <= now for when in self._due.values())
