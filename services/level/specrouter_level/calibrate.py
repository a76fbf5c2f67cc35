"""What a step costs by its number of rows, measured at the start, and which counts are worth padding to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from specrouter_level.engine import StepCost

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)
REPEATS = 4  # timed runs a size, after one that is not
GAIN = 0.93  # padding must bring the time below this part, or it is noise
FURTHEST = 8  # rows; products of more rows than this have no slow path to avoid


def measure(
    run: Callable[[int], None], most: int, progress: Callable[[float], None] = lambda _: None
) -> dict[int, list[float]]:
    """Seconds of ``run(rows)`` for every size up to ``most``: REPEATS times each, in turn.

    In turn, so that a busy neighbour slows all sizes and not one.
    """
    times: dict[int, list[float]] = {size: [] for size in SIZES if size <= most}
    for turn in range(REPEATS + 1):
        for size, runs in times.items():
            begin = time.perf_counter()
            run(size)
            if turn > 0:
                runs.append(time.perf_counter() - begin)
        progress((turn + 1) / (REPEATS + 1))
    return times


def padding(times: dict[int, list[float]]) -> dict[int, int]:
    """For each row count up to FURTHEST the count to pad to: itself where padding gains nothing.

    The best of the runs counts: a busy neighbour only ever adds time.
    """
    least = {size: min(runs) for size, runs in times.items() if size <= FURTHEST}
    table: dict[int, int] = {}
    for rows, seconds in least.items():
        best = min((size for size in least if size >= rows), key=lambda size: least[size])
        table[rows] = best if least[best] < GAIN * seconds else rows
    return table


def costs(times: dict[int, list[float]], table: dict[int, int]) -> tuple[StepCost, ...]:
    """The curve an engine that pads by ``table`` shows, by rows."""
    return tuple(StepCost(size, statistics.median(times[table.get(size, size)])) for size in sorted(times))
