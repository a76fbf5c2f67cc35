"""Is what happened allowed? Pure functions over what clients saw and what Redis kept.

After etcd's robustness tests: the system runs under faults, everything is written down, and the history is judged
afterwards, by rules that know nothing of how the system works:

- ``wrong``: a token, or text, that the target alone would not have said at this place, in a stream or in the record;
- ``lost``: tokens left out within a stream or before its first one, or a sequence without an end;
- ``doubled``: a stream that repeats what its client said it had;
- ``fenced``: a change of a record by an owner that had been replaced (an epoch below one seen before, or an epoch with
  two owners);
- ``rounds``: a change of a record whose round is not above the last one's of its epoch, or that shortens it;
- ``leaked`` and ``traced`` (a traceback in a log) are looked for in the mesh itself, see chaos_mesh.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from changes import Commit
from language import Expected, expected

from sighting import Ask, Broke, Ended, Event, GaveUp, Got, Opened

Item = TypeVar("Item", Event, Commit)
Truth = Callable[[Ask], Expected]  # what the target alone says to it
Kind = Literal["wrong", "lost", "doubled", "fenced", "rounds", "leaked", "traced"]


@dataclass(frozen=True)
class Problem:
    """One thing that must not happen."""

    kind: Kind
    sequence: str
    what: str


def judge(
    asks: Iterable[Ask], events: Sequence[Event], commits: Sequence[Commit], truth: Truth = expected
) -> list[Problem]:
    """All problems of these sequences. ``events`` in the order of each client, ``commits`` in Redis's."""
    seen, changes = _by_sequence(events), _by_sequence(commits)
    problems: list[Problem] = []
    for ask in asks:
        whole = truth(ask)
        for kind, what in [
            *judge_streams(seen.get(ask.name, []), whole),
            *judge_end(ask, seen.get(ask.name, []), whole),
            *judge_record(changes.get(ask.name, []), whole),
        ]:
            problems.append(Problem(kind, ask.name, what))
    return problems


def judge_late(asks: Mapping[str, Ask], commits: Iterable[Commit], truth: Truth = expected) -> list[Problem]:
    """Changes that were made when their sequences had been judged already."""
    return [
        Problem(kind, name, what)
        for name, changes in _by_sequence(commits).items()
        for kind, what in judge_record(changes, truth(asks[name]))
    ]


def _by_sequence(items: Iterable[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        found[item.sequence].append(item)
    return found


def judge_streams(events: Iterable[Event], whole: Expected) -> Iterable[tuple[Kind, str]]:
    """Each connection by itself: it must begin where the client asked, leave nothing out, repeat nothing, be right."""
    at = 0
    for event in events:
        match event:
            case Opened():
                at = event.offset
            case Got():
                if event.offset > at:
                    yield "lost", f"stream {event.stream}: tokens {at} to {event.offset - 1} were left out"
                elif event.offset < at:
                    yield "doubled", f"stream {event.stream}: token {event.offset} came, {at} was next"
                at = event.offset + len(event.tokens)
                right = whole.tokens[event.offset : at]
                if event.tokens != right:
                    got = bytes(event.tokens)
                    yield "wrong", f"stream {event.stream}: {got!r} from {event.offset} on, not {bytes(right)!r}"


def judge_end(ask: Ask, events: Sequence[Event], whole: Expected) -> Iterable[tuple[Kind, str]]:
    """All of it together: nothing missing, the text as it is, the end that it should have."""
    tokens: dict[int, int] = {}
    text = ""
    texts = {0: text}  # what it was when its client had so many tokens
    for event in events:
        if isinstance(event, Opened):
            text = texts.get(event.offset, text)  # also when it was sent less than it had before, and goes on with that
        elif isinstance(event, Got):
            tokens.update(enumerate(event.tokens, event.offset))
            text += event.text
            texts[event.offset + len(event.tokens)] = text
        elif isinstance(event, Ended):
            text += event.text
    ended = [event for event in events if isinstance(event, Ended)]
    if not ended:
        if any(isinstance(event, GaveUp) for event in events) or not events:
            why = next((f"{e.code}: {e.why}" for e in reversed(events) if isinstance(e, Broke)), "nothing")
            yield "lost", f"no end; the last that was heard: {why}"
        else:
            yield "lost", "no end, and nobody gave up"
        return
    end = ended[0]
    cancelled = ask.cancel_after > 0 and end.finish == "cancelled"
    want = len(tokens) if cancelled else len(whole.tokens)
    if sorted(tokens) != list(range(want)):
        yield "lost", f"{len(tokens)} tokens of {want} came"
    if len(ended) > 1:
        yield "doubled", f"{len(ended)} ends"
    if end.tokens != want and not cancelled:
        yield "lost", f"its end says {end.tokens} tokens, it has {want}"
    if not cancelled and end.finish != whole.finish:
        yield "wrong", f"finish {end.finish}, not {whole.finish}"
    if text != whole.text if not cancelled else not whole.text.startswith(text):
        yield "wrong", f"the text {text!r}, not {whole.text!r}"


def judge_record(commits: Iterable[Commit], whole: Expected) -> Iterable[tuple[Kind, str]]:
    """What Redis was told, in its order."""
    last: Commit | None = None
    for commit in commits:
        if commit.tokens != whole.tokens[: len(commit.tokens)]:
            yield "wrong", f"the record of epoch {commit.epoch}, round {commit.round} holds {bytes(commit.tokens)!r}"
        if last is not None and commit.life == last.life:
            if commit.epoch < last.epoch:
                yield "fenced", f"a write of epoch {commit.epoch} after one of epoch {last.epoch}"
            elif commit.epoch == last.epoch:
                if commit.owner and last.owner and commit.owner != last.owner:
                    yield "fenced", f"epoch {commit.epoch} has the owners {last.owner} and {commit.owner}"
                if commit.round <= last.round and commit != last:  # an owner may ask, by a write, if it still is that
                    yield "rounds", f"round {commit.round} after round {last.round} of epoch {commit.epoch}"
                if len(commit.tokens) < len(last.tokens):
                    yield "rounds", f"{len(commit.tokens)} tokens after {len(last.tokens)} in epoch {commit.epoch}"
        last = commit
