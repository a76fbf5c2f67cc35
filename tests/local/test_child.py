"""A child process: its end is seen, its log read, and it never outlives its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from processes import running, until
from specrouter_local import process
from specrouter_local.process import Child


def start(code: str, log: Path) -> Child:
    return Child([sys.executable, "-c", code], os.environ, log)


def test_it_says_how_it_ended_and_what_it_wrote(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier process\n")
    child = start("import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)", log)
    assert until(lambda: child.ended() is not None)
    assert child.ended() == "exit code 3"
    assert sorted(child.tail(10)) == ["one", "two"]
    assert len(child.tail(1)) == 1


def test_a_signal_is_named(tmp_path: Path) -> None:
    child = start("import os; os.kill(os.getpid(), 11)", tmp_path / "log")
    assert until(lambda: child.ended() is not None)
    assert child.ended() == "killed by SIGSEGV"


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    child = Child([str(tmp_path / "missing")], os.environ, tmp_path / "log")
    assert until(lambda: child.ended() is not None)
    assert "missing: can't be run" in child.tail(1)[0]


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
WITH_CHILD = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"


def test_stop_asks_then_kills_and_takes_grandchildren_along(tmp_path: Path) -> None:
    polite = start("import time; print('up', flush=True); time.sleep(60)", tmp_path / "polite")
    deaf = start(DEAF, tmp_path / "deaf")
    parent = start(WITH_CHILD, tmp_path / "parent")
    assert until(lambda: all(child.tail(1) for child in (polite, deaf, parent)))
    grandchild = int(parent.tail(1)[0])
    begin = time.monotonic()
    process.stop([polite, deaf, parent], 0.5, lambda: False)
    assert 0.4 < time.monotonic() - begin < 5
    assert polite.ended() == "killed by SIGTERM"
    assert deaf.ended() == "killed by SIGKILL"
    assert until(lambda: not running(grandchild))


def test_in_a_hurry_stop_does_not_wait(tmp_path: Path) -> None:
    deaf = start(DEAF, tmp_path / "deaf")
    assert until(lambda: bool(deaf.tail(1)))
    begin = time.monotonic()
    process.stop([deaf], 30, lambda: True)
    assert time.monotonic() - begin < 5


LAUNCHER = """
import os, sys, time
from pathlib import Path
from specrouter_local.process import Child
child = Child([sys.executable, "-c", "import time; time.sleep(60)"], os.environ, Path(sys.argv[1]))
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_launcher_that_is_killed_takes_its_children_along(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        assert running(pid)
        launcher.send_signal(signal.SIGKILL)
        launcher.wait(timeout=5)
        assert until(lambda: not running(pid))
