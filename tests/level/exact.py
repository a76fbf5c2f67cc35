"""Runs a program with the settings of exact steps, which must be in the environment before torch loads.

exact.py THREADS PROGRAM ARGUMENTS...
"""

from __future__ import annotations

import runpy
import sys

from specrouter_level import reproducible

if __name__ == "__main__":
    reproducible.prepare(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
