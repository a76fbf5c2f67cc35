"""Any interleaving of replies, losses, duplicates, late replies and cancels yields the target's text."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_core.chain import Plan
from specrouter_core.event import NOTHING, Action, Call, Cancel, Commit, Failed, Finish, Lost, Replan, Reply, Withdraw
from specrouter_core.machine import Machine
from specrouter_core.prefix import Text

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")
STOP = 7
Draw = Callable[[list[int]], int]  # a level: from a text to its next token
DRY = 3  # a level that is dry has no guess at every third place


def language(agreement: float, name: str) -> Draw:
    """A level: a pure function from a text to its next token, equal to the target's with this probability."""

    def draw(text: list[int]) -> int:
        state = Text(text).hashes[-1]
        token = random.Random(state).randrange(7 if len(text) < 25 else 8)
        if random.Random(f"{state}{name}").random() >= agreement:
            token = (token + 1) % 8
        return token

    return draw


def extend(draw: Draw, call: Call, committed: list[int], *, dry: bool) -> list[int]:
    """What a level answers; a dry one has no guess after some texts."""
    text = [*committed[: call.base], *call.ahead]
    out: list[int] = []
    for proposal in call.proposals:
        out.append(draw(text + out))
        if out[-1] != proposal or out[-1] == STOP:
            return out
    for _ in range(call.more + 1):
        if dry and (len(text) + len(out)) % DRY == 0:
            return out
        out.append(draw(text + out))
        if out[-1] == STOP:
            break
    return out


@dataclass
class World:
    """Levels behind a network that delays, loses, repeats and truncates."""

    machine: Machine
    draws: dict[str, Draw]
    rng: random.Random
    dry_level: str | None = None
    faults: float = 0.0
    waiting: list[tuple[Call, list[int]]] = field(default_factory=list)
    old: list[tuple[Call, list[int]]] = field(default_factory=list)
    got: list[int] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    steps: int = 0
    finish: Finish | None = None

    @property
    def reason(self) -> str | None:
        """Why it ended, once it has."""
        return None if self.finish is None else self.finish.reason

    def take(self, actions: list[Action]) -> None:
        start = self.machine.prompt_length
        for action in actions:
            assert self.finish is None, "an action after the end"
            match action:
                case Call():
                    assert len(action.proposals) + action.more >= 0 and action.more >= 0
                    same = [c for c, _ in self.waiting if c.level == action.level]
                    assert not same, "two calls of one level in flight"
                    if not self.machine.plan.overlapped:
                        assert not self.waiting, "lock-step has one call in flight"
                    dry = action.level == self.dry_level and action.level != self.machine.plan.target
                    tokens = extend(self.draws[action.level], action, self.machine.committed, dry=dry)
                    self.waiting.append((action, tokens))
                case Withdraw():
                    gone = [w for w in self.waiting if w[0].call == action.call]
                    self.old += gone
                    self.waiting = [w for w in self.waiting if w[0].call != action.call]
                case Commit():
                    assert action.start == start + len(self.got), "a token twice, or a gap"
                    assert len(action.tokens) == len(action.origins) == len(action.draws) > 0
                    self.check_draws(action)
                    self.got += action.tokens
                    self.origins += action.origins
                case Finish():
                    self.finish = action
                case Lost():
                    self.waiting = [w for w in self.waiting if w[0].level != action.level]
        self.check_invariant()

    def check_draws(self, commit: Commit) -> None:
        """What a level is said to have drawn on committed text is what it draws there."""
        for at, draws in enumerate(commit.draws, commit.start):
            assert self.machine.plan.target not in draws
            for level, token in draws.items():
                if token == NOTHING:
                    assert level == self.dry_level and at % DRY == 0, "it had a guess"
                else:
                    assert token == self.draws[level](self.machine.committed[:at])

    def check_invariant(self) -> None:
        lanes = self.machine._lanes
        for lower, upper in pairwise(lanes):
            assert lower.ahead[: len(upper.ahead)] == upper.ahead
            assert len(lower.ahead) == len(lower.origins)
            assert lower.ahead.count(STOP) <= 1
        assert not lanes[-1].ahead

    def step(self) -> None:
        self.steps += 1
        assert self.steps < 20000, "no end"
        if self.old and self.rng.random() < 0.2:  # late, or once more
            call, tokens = self.rng.choice(self.old)
            self.take(self.machine.receive(Reply(call.call, tokens[: self.rng.randrange(len(tokens) + 1)], True)))
            return
        assert self.waiting, "nothing in flight before the end"
        n = self.rng.randrange(len(self.waiting))
        call, tokens = self.waiting[n]
        if self.rng.random() < 0.3:  # a part of it first
            self.take(self.machine.receive(Reply(call.call, tokens[: self.rng.randrange(len(tokens) + 1)], False)))
            return
        if self.rng.random() < self.faults:
            self.old.append(self.waiting.pop(n))
            target_would_end = call.level == self.machine.plan.target and self.machine._lanes[-1].failures >= 1
            if target_would_end:  # keep the target alive: its loss is another test
                return self.take(self.machine.receive(Reply(call.call, tokens, True)))
            return self.take(self.machine.receive(Failed(call.call, fatal=False, why="lost")))
        self.old.append(self.waiting.pop(n))
        self.take(self.machine.receive(Reply(call.call, tokens, True)))

    def run(self) -> list[int]:
        self.take(self.machine.start())
        while self.finish is None:
            self.step()
        assert not self.waiting
        assert self.machine.receive(Cancel()) == []
        return self.got


def alone(prompt: list[int], limit: int) -> list[int]:
    text = list(prompt)
    while len(text) < limit and (len(text) == len(prompt) or text[-1] != STOP):
        text.append(language(1.0, "t")(text))
    return text[len(prompt) :]


def world(
    n: int,
    windows: list[int],
    lookahead: int,
    overlapped: bool,
    agreement: float,
    seed: int,
    limit: int,
    **kw: Any,
) -> World:
    names = NAMES[:n]
    if not overlapped and n > 4:  # each level waits for a full window: calls multiply by the window per level
        windows = [min(window, 2) for window in windows]
    plan = Plan(names, tuple(windows[:n]), lookahead, overlapped)
    draws = {name: language(agreement, name) for name in names[:-1]} | {names[-1]: language(1.0, "t")}
    machine = Machine(plan, [1, 2, 3], limit=limit, stop_ids=frozenset({STOP}))
    return World(machine, draws, random.Random(seed), **kw)


chains = dict(
    n=st.integers(1, 8),
    windows=st.lists(st.integers(1, 8), min_size=8, max_size=8),
    lookahead=st.integers(1, 24),
    overlapped=st.booleans(),
    agreement=st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]),
    seed=st.integers(0, 2**32),
    limit=st.integers(4, 60),
)


@settings(max_examples=300, deadline=None)
@given(**chains, dry=st.booleans())
def test_any_order_yields_the_targets_text(dry: bool, **chain: Any) -> None:
    w = world(**chain, dry_level="a" if dry else None)
    assert w.run() == alone([1, 2, 3], chain["limit"])
    assert w.reason in ("stop", "length")
    assert sum(t.committed for t in w.machine.tallies.values()) == len(w.got)
    for tally in w.machine.tallies.values():
        assert tally.accepted <= tally.offered


@settings(max_examples=300, deadline=None)
@given(**chains, faults=st.sampled_from([0.05, 0.3, 0.6]))
def test_losses_shrink_the_chain_but_not_the_text(faults: float, **chain: Any) -> None:
    w = world(**chain, faults=faults)
    assert w.run() == alone([1, 2, 3], chain["limit"])
    for level in w.machine.lost:
        assert level not in w.machine.plan.levels


@settings(max_examples=200, deadline=None)
@given(**chains, switches=st.lists(st.integers(0, 255), min_size=1, max_size=6))
def test_switching_the_chain_midway_keeps_the_text(switches: list[int], **chain: Any) -> None:
    w = world(**chain)
    names, windows = NAMES[: chain["n"]], [min(window, 2) for window in chain["windows"]]
    w.take(w.machine.start())
    for mask in switches:
        for _ in range(4):
            if w.finish is None:
                w.step()
        keep = [i for i in range(chain["n"]) if mask >> i & 1 or i == chain["n"] - 1]
        plan = Plan(
            tuple(names[i] for i in keep), tuple(windows[i] for i in keep), chain["lookahead"], bool(mask & 128)
        )
        if w.finish is None and plan.overlapped >= w.machine.plan.overlapped:
            w.take(w.machine.receive(Replan(plan)))
    while w.finish is None:
        w.step()
    assert w.got == alone([1, 2, 3], chain["limit"])


@settings(max_examples=50, deadline=None)
@given(**chains, after=st.integers(0, 30))
def test_cancel_ends_at_once_and_withdraws_everything(after: int, **chain: Any) -> None:
    w = world(**chain)
    w.take(w.machine.start())
    for _ in range(after):
        if w.finish is None:
            w.step()
    if w.finish is None:
        w.take(w.machine.receive(Cancel()))
        assert w.reason == "cancelled"
    assert not w.waiting
    assert w.got == alone([1, 2, 3], chain["limit"])[: len(w.got)]


def only(actions: list[Action]) -> Call:
    """The one action, which is a call."""
    (call,) = actions
    assert isinstance(call, Call)
    return call


def leading(actions: list[Action]) -> Commit:
    """The first action, which is a commit."""
    commit = actions[0]
    assert isinstance(commit, Commit)
    return commit


def pair(actions: list[Action]) -> tuple[Commit, Call]:
    """A commit, then a call."""
    return leading(actions), only(actions[1:])


def test_the_targets_loss_ends_the_sequence_with_its_name() -> None:
    machine = Machine(Plan(("a", "t"), (2, 2)), [1], limit=9)
    first, target = machine.start()
    assert isinstance(first, Call) and isinstance(target, Call)
    assert (first.level, target.level) == ("a", "t")
    actions = machine.receive(Failed(target.call, fatal=True, why="connection reset"))
    assert Finish("error", "t: connection reset") in actions


def test_a_level_that_keeps_failing_leaves_and_the_rest_goes_on() -> None:
    machine = Machine(Plan(("a", "t"), (2, 2), overlapped=False), [1], limit=9)
    prompt = only(machine.start())
    actions = machine.receive(Reply(prompt.call, [5], True))
    for _ in range(3):
        (call,) = [a for a in actions if isinstance(a, Call)]
        assert call.level == "a"
        actions = machine.receive(Failed(call.call, why="deadline"))
    assert actions[0] == Lost("a", "deadline")
    assert [a.level for a in actions if isinstance(a, Call)] == ["t"]


def test_origins_name_the_first_proposer() -> None:
    machine = Machine(Plan(("a", "b", "t"), (2, 2, 4), overlapped=False), [1], limit=20)
    call = only(machine.start())
    assert (call.level, call.proposals) == ("t", ())
    commit, call = pair(machine.receive(Reply(call.call, [9], True)))
    assert commit == Commit(1, (9,), ("t",), ({},))
    call = only(machine.receive(Reply(call.call, [10, 11], True)))
    assert (call.level, call.proposals) == ("b", (10, 11))
    call = only(machine.receive(Reply(call.call, [10, 12], True)))
    assert (call.level, call.ahead, call.more) == ("a", (10, 12), 1)
    call = only(machine.receive(Reply(call.call, [13, 14], True)))
    call = only(machine.receive(Reply(call.call, [13, 14, 15], True)))
    assert (call.level, call.proposals) == ("t", (10, 12, 13, 14))
    commit = leading(machine.receive(Reply(call.call, [10, 12, 13, 99], True)))
    draws = ({"a": 10, "b": 10}, {"a": 11, "b": 12}, {"a": 13, "b": 13}, {"a": 14, "b": 14})
    assert commit == Commit(2, (10, 12, 13, 99), ("a", "b", "a", "t"), draws)


def test_where_the_lowest_has_no_guess_the_next_level_goes_on_by_itself() -> None:
    machine = Machine(Plan(("a", "b", "t"), (4, 4, 6), overlapped=False), [1], limit=40)
    call = only(machine.start())
    _, call = pair(machine.receive(Reply(call.call, [9], True)))
    assert call.level == "a"
    call = only(machine.receive(Reply(call.call, [], True)))
    assert (call.level, call.proposals, call.more) == ("b", (), 3)
    call = only(machine.receive(Reply(call.call, [1, 2, 3, 4], True)))
    assert call.level == "a", "its text has grown: there may be a guess now"
    call = only(machine.receive(Reply(call.call, [], True)))
    assert (call.level, call.more) == ("b", 1), "no more than the target takes"
    call = only(machine.receive(Reply(call.call, [5, 6], True)))
    assert (call.level, call.proposals) == ("t", (1, 2, 3, 4, 5, 6))


def test_no_guess_is_told_as_a_draw_of_nothing() -> None:
    machine = Machine(Plan(("a", "t"), (3, 3), 3, False, (1, 1), 0.5), [1], limit=40)
    call = only(machine.start())
    _, call = pair(machine.receive(Reply(call.call, [9], True)))
    call = only(machine.receive(Reply(call.call, [5], True)))
    commit, call = pair(machine.receive(Reply(call.call, [5, 6], True)))
    assert commit.draws == ({"a": 5}, {"a": NOTHING}), "it stopped after one draw, and could have made three"
    call = only(machine.receive(Reply(call.call, [], True)))
    commit, call = pair(machine.receive(Reply(call.call, [7], True)))
    assert commit.draws == ({"a": NOTHING},)
    call = only(machine.receive(Reply(call.call, [5], True, unsure=True)))
    commit = leading(machine.receive(Reply(call.call, [5, 6], True)))
    assert commit.draws == ({"a": 5}, {}), "it was told to stop there: what it would have drawn is not known"


def test_the_target_alone_streams_a_windowful() -> None:
    machine = Machine(Plan(("t",), (4,)), [1], limit=20)
    call = only(machine.start())
    assert (call.proposals, call.more) == ((), 3)
    assert machine.receive(Reply(call.call, [5], False)) == [Commit(1, (5,), ("t",), ({},))]
    assert machine.receive(Reply(call.call, [5], False)) == []
    commit, following = pair(machine.receive(Reply(call.call, [5, 6, 8, 9], True)))
    assert commit == Commit(2, (6, 8, 9), ("t",) * 3, ({},) * 3)
    assert following.base == 5


def test_a_sequence_taken_over_goes_on_from_what_is_committed() -> None:
    plan = Plan(("t",), (4,))
    assert Machine(plan, [1], limit=4, generated=[2, 3, 4]).start() == [Finish("length")]
    call = only(Machine(plan, [1], limit=9, generated=[2, 3]).start())
    assert call.base == 3


@pytest.mark.parametrize(
    ("kw", "field"),
    [
        (dict(levels=(), windows=()), "levels"),
        (dict(levels=tuple("abcdefghi"), windows=(1,) * 9), "levels"),
        (dict(levels=("a", "a"), windows=(1, 1)), "levels"),
        (dict(levels=("a", "b"), windows=(1,)), "windows"),
        (dict(levels=("a",), windows=(0,)), "windows"),
        (dict(levels=("a",), windows=(65,)), "windows"),
        (dict(levels=("a",), windows=(1,), lookahead=0), "lookahead"),
    ],
)
def test_a_bad_plan_names_the_field(kw: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        Plan(**kw)
