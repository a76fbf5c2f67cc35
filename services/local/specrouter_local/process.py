"""One child process: started so that it can't outlive the launcher, its output in a log file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

TETHER = Path(__file__).with_name("tether.py")
TAIL_BYTES = 64 << 10


class Child:
    """A running or ended process. Start it from the main thread: for Linux, that thread is what it is tied to."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path, tied: bool = True) -> None:
        """Starts ``argv`` in a session of its own, so that a terminal's Ctrl-C reaches the launcher only.

        ``argv`` begins with the program's path. Output is appended to ``log``. ``tied``: it ends with this process.
        """
        self.log = log
        self._offset = log.stat().st_size if log.exists() else 0
        tether = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid())] if tied else []
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  # our own programs
                [*tether, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> str | None:
        """How it ended, for people; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def tail(self, lines: int) -> list[str]:
        """The end of what this process wrote."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._offset, size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]

    def ask_to_end(self) -> None:
        """SIGTERM."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to it and to whatever it started; returns when it is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)


def stop(children: Sequence[Child], grace: float, hurry: Callable[[], bool]) -> None:
    """Ends all of them: asked first, killed after ``grace`` seconds or when ``hurry`` says True."""
    for child in children:
        child.ask_to_end()
    limit = time.monotonic() + grace
    while time.monotonic() < limit and not hurry() and any(child.ended() is None for child in children):
        time.sleep(0.02)
    for child in children:
        child.kill()
