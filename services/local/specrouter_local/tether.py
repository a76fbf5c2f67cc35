"""Runs a program that ends when its launcher ends, however that ends (kill -9 too).

    python -I -S tether.py LAUNCHER_PID PROGRAM ARGUMENT...

A program of its own, instead of code between fork and exec, because the launcher has threads
(gRPC's) and Python code after a fork isn't safe then. It imports nothing of ours: it costs 15 ms.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives exec


def main() -> None:
    """Asks Linux for the signal, then becomes the program. Elsewhere only the latter."""
    launcher, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != launcher:  # it ended before the call above
            sys.exit("the launcher is gone")
    try:
        os.execv(program[0], program)  # noqa: S606  # that is its purpose
    except OSError as error:
        sys.exit(f"{program[0]}: can't be run: {error}")


if __name__ == "__main__":
    main()
