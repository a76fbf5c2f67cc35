"""Which replica a sequence gets, and which sequences should change theirs.

A replica's *wait* is the time of its queue and step, times the sequences that would share it. A sequence that comes
gets the least wait. Sequences that sit where they wait ``UNEVEN`` times as long as elsewhere are moved, a few at a
time and where it pays to read their text again: off a replica that has become slow, and onto one that was added.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from specrouter_router.link import Link
from specrouter_router.seat import Seat

UNEVEN = 1.4
ODD = 2.0  # times as slow as the fastest: its times are not what the level takes
AT_ONCE = 16  # of so many sequences, one is moved in one look
STAY_S = 5.0  # a sequence that was moved stays so long
CALLS = 50  # a sequence is moved where so many calls make up for reading its text again


def choose(links: Sequence[Link], now: float) -> Link | None:
    """The replica where a sequence that comes will wait least; equals are told apart by chance."""
    if len(links) < 2:
        return links[0] if links else None
    best = _best(links)
    return min(links, key=lambda link: (_wait(link, _load(link), best, now), random.random()))


def misplaced(links: Sequence[Link], now: float) -> list[tuple[Seat, Link]]:
    """Sequences that should sit elsewhere, and where: those with the least text to be read again."""
    seated = [link for link in links if link.seats]
    if len(links) < 2 or not seated:
        return []
    best = _best(links)
    worst = max(seated, key=lambda link: _wait(link, len(link.seats) - 1, best, now))
    there = min(links, key=lambda link: _wait(link, len(link.seats), best, now))
    before, after = _wait(worst, len(worst.seats) - 1, best, now), _wait(there, len(there.seats), best, now)
    if before < UNEVEN * after:
        return []
    most = CALLS * (before - after) / there.tempo.read if there.tempo.read else math.inf
    free = [seat for seat in worst.seats if seat.left is None and now - seat.moved > STAY_S]
    worth = [seat for seat in sorted(free, key=lambda seat: seat.held(worst)) if seat.held(worst) <= most]
    return [(seat, there) for seat in worth[: math.ceil(len(worst.seats) / AT_ONCE)]]


def compare(links: Sequence[Link], now: float) -> None:
    """See which replicas are much slower than the fastest."""
    best = _best(links)
    least = min((link.tempo.seconds(best, now) for link in links), default=0.0)
    for link in links:
        link.odd = link.tempo.seconds(best, now) > ODD * least


def _load(link: Link) -> int:
    return len(link.seats) + len(link.inflight)


def _best(links: Sequence[Link]) -> float:
    return min((step for link in links if (step := link.tempo.step)), default=0.0)


def _wait(link: Link, load: int, best: float, now: float) -> float:
    return (1 + load) * link.tempo.seconds(best, now)
