"""Whose turn it is: the calls that wait, in the order in which they get their part of a step.

A call of priority p gives way to one of a higher priority q for (q - p) / PER_STEP steps, then it goes first: so it
waits longer, and not for ever. Among equals, those that have waited longest go first. Calls with few tokens to feed
(those that check or draw) go before prompts, unless the first prompt is of higher priority. Prompts are read one
after the other, so that the first is ready sooner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from specrouter_level import call as calls
from specrouter_level import spans
from specrouter_level.call import Call

SHORT = calls.MAX_PROPOSALS + calls.MAX_MORE + 1  # tokens to feed beyond which a call counts as a prompt
PER_STEP = 2  # of priority, that a step's waiting makes up for

Waiting = tuple[Call, int]  # and the tokens that it has to feed


def _due(waiting: Waiting) -> int:
    """The step at which nobody that comes then goes before it."""
    call = waiting[0]
    return call.since + (calls.MAX_PRIORITY - call.priority) // PER_STEP


def queues(live: Iterable[Call], step: int) -> list[list[Waiting]]:
    """The calls in up to three queues, each in its order: more urgent short ones, prompts, less urgent short ones."""
    short: list[Waiting] = []
    prompts: list[Waiting] = []
    for call in live:
        rows = spans.rows(call)
        (prompts if rows > SHORT else short).append((call, rows))
    short.sort(key=_due)
    prompts.sort(key=lambda waiting: (_due(waiting), waiting[0].received))
    if not prompts:
        return [short]
    turn = step + (calls.MAX_PRIORITY - prompts[0][0].priority) // PER_STEP
    behind = next((i for i, waiting in enumerate(short) if _due(waiting) > turn), len(short))
    return [queue for queue in (short[:behind], prompts, short[behind:]) if queue]


def parts(waiting: Sequence[Sequence[Waiting]], rows: int) -> Iterator[tuple[Call, int]]:
    """Who feeds how many tokens in a step of at most ``rows``; each queue leaves a quarter to those after it."""
    room = rows
    for queue in waiting:
        kept = room // 4 if queue is not waiting[-1] else 0
        for call, wanted in queue:
            take = min(wanted, room - kept)
            if take <= 0:
                break
            room -= take
            yield call, take
