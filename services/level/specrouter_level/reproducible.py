"""Settings that must be in the environment before torch loads. Imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# With STRICT, Intel MKL gives a row the same bits whatever the alignment of its memory and
# wherever the row stands; without it about 1 % of positions differ in their last bits.
CBWR = "AVX512,STRICT"
CBWR_ELSE = "AUTO,STRICT"

# How often GNU OpenMP looks at a barrier before it sleeps. Its own 300,000 are milliseconds, which on a busy machine
# the thread that is waited for lacks: on 2 cores beside 8 busy processes, a float32 step of 6 tokens took 1.75 s, with
# 3,000 it took 0.51 s, an int4 step of one token 0.35 and 0.13 s. On idle cores both take as long.
SPINS = 3000


def cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole cores this process may use: the smaller of its affinity and its cgroup's quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        if quota not in {"max", "-1"}:
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup, or one of another form: the affinity stands
    return max(1, cores)


def has_avx512(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor says it can do AVX-512 (False where it cannot be asked)."""
    try:
        return "avx512dq" in cpuinfo.read_text()
    except OSError:
        return False


def prepare(threads: int = 0) -> int:
    """Set what BLAS and OpenMP read at load; returns the number of threads (``threads``, or the CPU limit when 0).

    Raises RuntimeError when torch is loaded already, as the settings would then be without effect.
    """
    if "torch" in sys.modules:
        raise RuntimeError("reproducible.prepare() must run before torch is imported")
    count = threads or cpu_limit()
    os.environ["MKL_CBWR"] = CBWR if has_avx512() else CBWR_ELSE
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    # A spinning wait starves the other levels of a small machine.
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        del os.environ["OMP_WAIT_POLICY"]
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    return count
