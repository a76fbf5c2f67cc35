"""The phases of a world that changes, and the static plans that adaptive routing is held against in each.

On real processes (adaptive.py), and in simulated time (tests/core).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from specrouter_core.chain import Plan

CURVES = {  # milliseconds of a step by its rows
    "draft": "1:2.5,16:2.6,64:3.5,128:6,256:11",
    "mid": "1:9,16:9.5,64:13,128:22,256:42",
    "target": "1:35,16:40,32:70,64:135,128:265,256:525",  # bound by compute from 16 rows on
}


@dataclass(frozen=True)
class Phase:
    """A state of the world."""

    name: str
    draft: float = 0.65  # agreement
    mid: float = 0.82
    slowdown: float = 1.0  # of mid
    together: int = 1
    replicas: int = 1  # of the target, at least

    @property
    def world(self) -> tuple[float, ...]:
        """All but the name."""
        return astuple(self)[1:]


PHASES = (
    Phase("usual"),
    Phase("easy text", 0.85, 0.95),
    Phase("hard text", 0.30, 0.50),
    Phase("mid 5x slower", slowdown=5),
    Phase("draft at 0.2", draft=0.2),
    Phase("load 8", together=8),
    Phase("load 32", together=32),
    Phase("hard text at load 32", 0.30, 0.50, together=32),
    Phase("a replica added", together=32, replicas=2),
    Phase("load 1 again"),
)


def grid() -> dict[str, Plan]:
    """Every chain, windows of 2, 4 and 8 overlapped, 4 in lock-step."""
    plans = {"alone": Plan(("target",), (8,), 1)}
    for chain in (("draft", "target"), ("mid", "target"), ("draft", "mid", "target")):
        for overlapped, window in ((True, 2), (True, 4), (True, 8), (False, 4)):
            name = f"{'+'.join(chain)} {'overlapped' if overlapped else 'lockstep'} {window}"
            plans[name] = Plan(chain, (window,) * len(chain), 2 * window, overlapped)
    return plans
