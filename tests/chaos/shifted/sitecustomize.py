"""Python runs this first in routers under test: their wall clock is the machine's plus what a file says at any time.

The file named by SHIFTED_CLOCK holds one float, seconds. Only the wall clock moves, as when a clock is set; the
monotonic clock does not. What is written in C and asks the system itself (gRPC) is not fooled.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

with Path(os.environ["SHIFTED_CLOCK"]).open("rb") as _file:
    _shift = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)

_time, _time_ns = time.time, time.time_ns


def _seconds() -> float:
    return float(struct.unpack("d", _shift[:8])[0])


time.time = lambda: _time() + _seconds()
time.time_ns = lambda: _time_ns() + int(_seconds() * 1e9)
