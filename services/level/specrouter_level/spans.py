"""A call's part of a step, and what the step's draws mean for it."""

from __future__ import annotations

from specrouter_level.call import Call
from specrouter_level.engine import Drawn, Span


def rows(call: Call) -> int:
    """Tokens the call still has to feed before its next draws."""
    held = call.held
    length = len(held.text)
    return length - min(held.valid, length - 1) + len(call.rest) - (1 if call.score else 0)


def span(call: Call, take: int) -> Span:
    """The call's part of a step: the next ``take`` tokens it has to feed."""
    held = call.held
    tokens = held.text.tokens
    length = len(tokens)
    start = min(held.valid, length - 1)
    end = start + take
    text = tokens[:end] if end <= length else tokens + call.rest[: end - length]
    last = end - length == len(call.rest)  # all proposals are fed, so the engine may go on by itself
    return Span(
        slot=held.slot,
        start=start,
        text=text,
        draws=max(0, end - length + 1),
        params=held.params,
        probe=call.probe,
        more=call.left - 1 if last else 0,
    )


def taken(call: Call, draws: int, answer: Drawn, room: int) -> tuple[list[int], bool]:
    """Record the draws that count.

    Returns the tokens by which the text grows, at most ``room``, and whether the call is done.
    """
    stop_ids = call.held.params.stop_ids
    new: list[int] = []
    for i, token in enumerate(answer.tokens):
        call.tokens.append(token)
        call.likelihoods.append(answer.confidence[i])
        if answer.probes:
            call.probes.append(answer.probes[i])
        proposal = call.rest[i] if i < len(call.rest) else None
        if call.score and proposal is not None:
            new.append(proposal)
            if i + 1 == len(call.rest):
                return new, True
            continue
        new.append(token)
        if token in stop_ids or len(new) == room:
            return new, True
        if token != proposal:
            call.left -= 1
            if call.left == 0 or answer.confidence[i] < call.confidence:
                return new, True
            if proposal is not None:  # what the engine drew after a wrong proposal is void
                return new, False
    return new, len(answer.tokens) < draws  # fewer: the engine has no more to offer


def accepted(call: Call, tokens: list[int]) -> int:
    """How many of the tokens are leading proposals."""
    both = min(len(tokens), len(call.rest))
    return next((i for i in range(both) if tokens[i] != call.rest[i]), both)
