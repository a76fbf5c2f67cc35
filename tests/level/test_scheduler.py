"""The scheduler against the stub engine: whatever arrives in whatever order, an answer depends on the prefix alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_engine import PROMPT, STOP, Router, StrictEngine, reference, run, world

from specrouter.v1 import level_pb2 as pb
from specrouter_core.prefix import START, Text
from specrouter_level.engine import Span
from specrouter_level.scheduler import Scheduler
from specrouter_level.stub import ALPHABET

CUT_SHORT = (
    pb.OUTCOME_SUPERSEDED,
    pb.OUTCOME_STALE_EPOCH,
    pb.OUTCOME_OVERLOADED,
    pb.OUTCOME_PREFIX_UNKNOWN,
    pb.OUTCOME_INTERNAL,
)
ACTIONS = ["call"] * 6 + ["run"] * 3 + ["form", "finish"] * 2 + ["withdraw", "release", "break", "fail"]


class Trial:
    """Two routers and a scheduler that do what ``data`` draws, and what their calls must have been answered."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.engine = StrictEngine(slots=self.draw(st.integers(1, 4)), max_rows=self.draw(st.sampled_from([4, 16, 70])))
        self.scheduler = Scheduler(self.engine.info)
        self.routers = [Router(self.scheduler), Router(self.scheduler)]
        self.expected: dict[tuple[int, int], list[int]] = {}  # by router and call
        self.texts = {
            name: [ALPHABET[i % 32] for i in range(length)] for name, length in zip("abc", (1, 9, 90), strict=True)
        }
        self.epochs = dict.fromkeys(self.texts, 0)
        self.running: list[Span] | None = None

    def act(self) -> None:
        """One of all things that may happen."""
        place, name = self.draw(st.integers(0, 1)), self.draw(st.sampled_from("abc"))
        router = self.routers[place]
        match self.draw(st.sampled_from(ACTIONS)):
            case "call":
                self.call(place, name)
            case "withdraw" if router.number:
                gone = [self.draw(st.integers(1, router.number))]
                self.scheduler.receive(router.stream, pb.ExtendRequest(withdrawn=gone))
            case "release":
                self.scheduler.receive(router.stream, pb.ExtendRequest(released=[name]))
            case "break":
                self.scheduler.close(router.stream)
                router.read()
                router.number += 1000
                self.expected = {key: value for key, value in self.expected.items() if key[0] != place}
            case action:
                self.step(action)
        router.read()
        assert len(self.scheduler.slots) <= self.engine.info.slots

    def step(self, action: str) -> None:
        """All steps that there are, or one in two parts."""
        if self.running is None:
            if action == "run":
                run(self.scheduler, self.engine)
            elif action == "form":
                self.running = self.scheduler.form() or None
        elif action in ("finish", "fail"):
            if action == "finish":
                self.scheduler.finish(self.engine.step(self.running), 0.001)
            else:
                self.scheduler.fail("the engine failed: Test")
            self.running = None

    def call(self, place: int, name: str) -> None:
        """About a new prefix: some of the old text, then right or wrong tokens; proposals begin right."""
        text = self.texts[name]
        keep = self.draw(st.integers(1, len(text)))
        prefix = text[:keep] + self.draw(st.lists(st.sampled_from(list(ALPHABET)), max_size=5))
        right = reference(self.engine, prefix, 8, stops=())[: self.draw(st.integers(0, 8))]
        proposals = right + self.draw(st.lists(st.sampled_from([97, 98]), max_size=3))
        proposals = proposals[: self.engine.info.max_length - len(prefix) - 1]
        more = self.draw(st.integers(0, 6))
        score = bool(proposals) and self.draw(st.booleans())
        self.epochs[name] += self.draw(st.sampled_from([0, 0, 0, 1]))
        fields = {"proposals": proposals, "more": 0 if score else more, "score": score, "epoch": self.epochs[name]}
        number = self.routers[place].ask(name, prefix, base=self.draw(st.sampled_from([0, keep // 2, keep])), **fields)
        if score:
            drawn = [reference(self.engine, prefix + proposals[:i], 1)[0] for i in range(len(proposals))]
        else:
            same = reference(self.engine, prefix, len(proposals) + 1)
            accepted = next((i for i, p in enumerate(proposals) if i >= len(same) or same[i] != p), len(proposals))
            drawn = reference(self.engine, prefix, accepted + 1 + more)
        self.expected[place, number] = drawn
        self.texts[name] = prefix + self.draw(st.sampled_from([[], drawn[:3], proposals]))

    def end(self) -> None:
        """Every call has been answered, rightly, as far as it got."""
        self.step("finish")
        run(self.scheduler, self.engine)
        for router in self.routers:
            router.read()
        assert self.scheduler.busy == 0
        for (place, number), tokens in self.expected.items():
            reply = self.routers[place].replies[number]
            if reply.outcome == pb.OUTCOME_DONE:
                assert list(reply.tokens) == tokens
                assert len(reply.confidence) == len(tokens)
            else:
                assert list(reply.tokens) == tokens[: len(reply.tokens)]
                assert reply.outcome in CUT_SHORT


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_answers_depend_on_the_prefix_alone(data: st.DataObject) -> None:
    trial = Trial(data)
    for _ in range(data.draw(st.integers(5, 40))):
        trial.act()
    trial.end()


def test_right_proposals_take_one_step_and_are_all_accepted() -> None:
    engine, scheduler, router = world(max_rows=70)
    right = reference(engine, PROMPT, 9)
    assert STOP not in right
    reply = router.answer(engine, router.ask("a", PROMPT, proposals=right[:8]))
    assert reply.outcome == pb.OUTCOME_DONE and list(reply.tokens) == right
    assert len(engine.steps) == 1
    timing = reply.timing
    assert (timing.steps, timing.tokens, timing.batch, timing.rows) == (1, len(PROMPT) + 8, 1, len(PROMPT) + 8)
    assert scheduler.counts.accepted == 8


def test_going_on_feeds_one_token_a_step() -> None:
    engine, _, router = world(max_rows=70)
    right = reference(engine, PROMPT, 6)
    number = router.ask("a", PROMPT, more=3)
    assert list(router.answer(engine, number).tokens) == right[:4]
    assert [len(span.text) - span.start for (span,) in engine.steps] == [len(PROMPT), 1, 1, 1]
    # The held text ends with a draw that was not fed; the next call names all of it and feeds that one alone.
    text = PROMPT + right[:4]
    number = router.ask("a", text, base=len(text), more=1)
    assert list(router.answer(engine, number).tokens) == right[4:6]
    assert [len(span.text) - span.start for (span,) in engine.steps[4:]] == [1, 1]


def test_a_wrong_proposal_rolls_back_to_the_accepted_ones() -> None:
    engine, _, router = world(max_rows=70)
    right = reference(engine, PROMPT, 5)
    wrong = 97 if right[2] != 97 else 98
    reply = router.answer(engine, router.ask("a", PROMPT, proposals=[*right[:2], wrong, right[3]], more=1))
    assert list(reply.tokens) == right[:4]
    assert [len(span.text) - span.start for (span,) in engine.steps] == [len(PROMPT) + 4, 1]
    text = PROMPT + right[:4]
    router.answer(engine, router.ask("a", text, base=len(PROMPT)))
    (span,) = engine.steps[-1]
    assert span.start == len(text) - 1


def test_kv_of_refused_proposals_is_never_built_on() -> None:
    engine, _, router = world(max_rows=70)
    right = reference(engine, PROMPT, 5)
    router.answer(engine, router.ask("a", PROMPT, proposals=[right[0], 1, 2, 3]))
    text = PROMPT + right[:4]
    reply = router.answer(engine, router.ask("a", text, base=len(PROMPT) + 2))
    assert list(reply.tokens) == right[4:5] and reply.timing.tokens == 3


def test_draws_are_told_as_they_come() -> None:
    engine, scheduler, router = world()
    number = router.ask("a", PROMPT[:5], more=2)
    seen = []
    for _ in range(3):
        scheduler.finish(engine.step(scheduler.form()), 0.001)
        router.read()
        seen.append((len(router.replies[number].tokens), router.replies[number].outcome))
    assert seen == [(1, pb.OUTCOME_UNSPECIFIED), (2, pb.OUTCOME_UNSPECIFIED), (3, pb.OUTCOME_DONE)]


def test_a_newer_call_supersedes_one_in_the_running_step() -> None:
    engine, scheduler, router = world(max_rows=70)
    right = reference(engine, PROMPT, 3)
    old = router.ask("a", PROMPT, proposals=[1, 2, 3])
    spans = scheduler.form()
    new = router.ask("a", PROMPT + right[:1], base=len(PROMPT), more=1)
    router.read()
    assert router.replies[old].outcome == pb.OUTCOME_SUPERSEDED
    assert scheduler.busy == 1
    scheduler.finish(engine.step(spans), 0.001)
    reply = router.answer(engine, new)
    assert list(reply.tokens) == right[1:3]
    steps = 1000 * len(engine.steps)  # run() says 1 ms of each, as did this test
    assert reply.timing.compute_us == steps - 1000 and reply.sequence_us == steps
    (span,) = engine.steps[1]
    assert span.start == len(PROMPT)  # the prompt that the old call fed is kept


def test_a_released_sequence_frees_its_slot_when_its_step_ends() -> None:
    engine, scheduler, router = world(slots=1)
    router.ask("a", PROMPT[:4])
    spans = scheduler.form()
    scheduler.receive(router.stream, pb.ExtendRequest(released=["a"]))
    refused = router.ask("b", PROMPT[:4])
    scheduler.finish(engine.step(spans), 0.001)
    taken = router.ask("b", PROMPT[:4])
    assert router.answer(engine, taken).outcome == pb.OUTCOME_DONE
    assert router.replies[refused].outcome == pb.OUTCOME_OVERLOADED and router.replies[refused].retry_ms > 0
    assert router.replies[1].outcome == pb.OUTCOME_SUPERSEDED


def test_idle_sequences_make_room_oldest_first_and_running_ones_never() -> None:
    engine, scheduler, router = world(slots=2)
    for name in ("a", "b"):
        router.answer(engine, router.ask(name, PROMPT[:4]))
    router.answer(engine, router.ask("a", PROMPT[:5], base=4))
    router.answer(engine, router.ask("c", PROMPT[:4]))
    assert scheduler.slots.evictions == 1
    gone = router.answer(engine, router.ask("b", PROMPT[:5], base=4))
    assert (gone.outcome, gone.held, gone.held_hash) == (pb.OUTCOME_PREFIX_UNKNOWN, 0, START)
    assert router.answer(engine, router.ask("a", PROMPT[:5], base=5)).outcome == pb.OUTCOME_DONE
    router.ask("a", PROMPT[:6], base=5)
    router.ask("c", PROMPT[:5], base=4)
    assert router.answer(engine, router.ask("d", PROMPT[:4])).outcome == pb.OUTCOME_OVERLOADED


def test_an_unknown_base_says_what_is_held() -> None:
    engine, _, router = world()
    first = router.answer(engine, router.ask("a", PROMPT[:6]))
    reply = router.answer(engine, router.ask("a", PROMPT, base=12))
    text = Text([*PROMPT[:6], *first.tokens])
    assert (reply.outcome, reply.held, reply.held_hash) == (pb.OUTCOME_PREFIX_UNKNOWN, len(text), text.hashes[-1])
    wrong = router.answer(engine, router.ask("a", [1] * 8, base=6))
    assert wrong.outcome == pb.OUTCOME_PREFIX_UNKNOWN


def test_epochs_fence_off_a_former_owner() -> None:
    engine, scheduler, router = world()
    newer = Router(scheduler)
    old = router.ask("a", PROMPT[:4], epoch=3, more=5)
    new = newer.ask("a", PROMPT[:4], epoch=4)
    assert newer.answer(engine, new).outcome == pb.OUTCOME_DONE
    stale = router.ask("a", PROMPT[:4], epoch=3)
    router.read()
    assert [router.replies[i].outcome for i in (old, stale)] == [pb.OUTCOME_STALE_EPOCH] * 2
    scheduler.receive(router.stream, pb.ExtendRequest(released=["a"]))  # no longer its own
    assert newer.answer(engine, newer.ask("a", PROMPT[:5], base=4, epoch=4)).outcome == pb.OUTCOME_DONE


def test_a_new_owner_is_not_told_of_the_former_ones_steps() -> None:
    engine, scheduler, router = world()
    assert router.answer(engine, router.ask("a", PROMPT[:4], epoch=3, more=4)).sequence_us == 5000
    newer = Router(scheduler)
    assert newer.answer(engine, newer.ask("a", PROMPT[:5], epoch=4)).sequence_us == 1000
    assert newer.answer(engine, newer.ask("a", PROMPT[:6], base=5, epoch=4)).sequence_us == 2000


def test_late_calls_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, scheduler, router = world()
    number = router.ask("a", PROMPT[:4], more=10, deadline_ms=50)
    scheduler.finish(engine.step(scheduler.form()), 0.001)
    monkeypatch.setattr("specrouter_level.scheduler.perf_counter", lambda: 1e9)
    assert router.answer(engine, number).outcome == pb.OUTCOME_EXPIRED
    assert len(router.replies[number].tokens) == 1 and scheduler.busy == 0


def test_going_on_stops_at_a_stop_id_and_at_low_confidence() -> None:
    engine, _, router = world(max_length=2000)
    text = reference(engine, PROMPT, 1500)
    assert text[-1] == STOP
    reply = router.answer(engine, router.ask("a", PROMPT + text[:-3], more=20))
    assert list(reply.tokens) == text[-3:] and reply.outcome == pb.OUTCOME_DONE
    proposed = router.answer(engine, router.ask("a", PROMPT + text[:-3], proposals=[*text[-3:], 99], more=20))
    assert list(proposed.tokens) == text[-3:]
    unsure = router.answer(engine, router.ask("a", PROMPT + text[:10], more=20, confidence=0.8))
    assert all(p >= 0.8 for p in unsure.confidence[:-1]) and unsure.confidence[-1] < 0.8


def test_the_text_ends_at_max_length() -> None:
    engine, _, router = world(max_length=24)
    reply = router.answer(engine, router.ask("a", PROMPT, more=64))
    assert reply.outcome == pb.OUTCOME_DONE and len(reply.tokens) == 24 - len(PROMPT)


def test_score_answers_at_every_position() -> None:
    engine, _, router = world(max_rows=70)
    committed = list(b"jumped over")
    number = router.ask("a", PROMPT, proposals=committed, score=True, probe=4)
    reply = router.answer(engine, number)
    own = [reference(engine, PROMPT + committed[:i], 1)[0] for i in range(len(committed))]
    assert list(reply.tokens) == own and reply.timing.steps == 1
    assert [len(probe.ids) for probe in reply.probes] == [4] * len(committed)
    assert all(probe.ids[0] == token for probe, token in zip(reply.probes, own, strict=True))
    text = PROMPT + committed
    after = router.answer(engine, router.ask("a", text, base=len(text)))
    assert list(after.tokens) == reference(engine, text, 1) and after.timing.tokens == 1


def test_a_failed_step_fails_its_calls_and_loses_their_kv() -> None:
    engine, scheduler, router = world(max_rows=70)
    router.answer(engine, router.ask("a", PROMPT))
    for i in range(3):
        number = router.ask("a", [*PROMPT, 97 + i])
        scheduler.form()
        scheduler.fail("the engine failed: RuntimeError")
        assert router.answer(engine, number).outcome == pb.OUTCOME_INTERNAL
    assert not scheduler.healthy
    text = [*PROMPT, 120]
    reply = router.answer(engine, router.ask("a", text))
    assert list(reply.tokens) == reference(engine, text, 1) and reply.timing.tokens == len(text)
    assert scheduler.healthy


def test_a_newer_call_takes_up_what_the_older_ones_step_found() -> None:
    """A level that draws on by itself is given proposals in the middle of a step: nothing is computed twice."""
    engine, scheduler, router = world()
    prefix = list(PROMPT)
    right = reference(engine, prefix, 6)
    router.answer(engine, router.ask("a", prefix))  # holds right[0]
    first = router.ask("a", [*prefix, right[0]], base=len(prefix), more=5)
    drawn = engine.step(scheduler.form())  # finds right[1], but before the level can say so:
    second = router.ask("a", [*prefix, right[0]], base=len(prefix), proposals=right[1:4])
    scheduler.finish(drawn, 0.001)
    before = len(engine.steps)
    reply = router.answer(engine, second)
    assert list(reply.tokens) == right[1:5] and reply.outcome == pb.OUTCOME_DONE
    assert router.replies[first].outcome == pb.OUTCOME_SUPERSEDED
    (step,) = engine.steps[before:]
    assert list(step[0].text[step[0].start :]) == right[1:4], "the known draw is checked without a step of its own"


def test_a_wrong_proposal_is_refused_without_a_step_where_the_draw_is_known() -> None:
    engine, _, router = world()
    prefix = list(PROMPT)
    right = reference(engine, prefix, 1)
    router.answer(engine, router.ask("a", prefix))
    before = len(engine.steps)
    reply = router.answer(engine, router.ask("a", prefix, base=len(prefix), proposals=[right[0] ^ 1, 97]))
    assert list(reply.tokens) == right and reply.outcome == pb.OUTCOME_DONE
    assert len(engine.steps) == before


def test_known_draws_go_with_other_sampling() -> None:
    engine, _, router = world()
    prefix = list(PROMPT)
    router.answer(engine, router.ask("a", prefix))
    other = pb.SequenceParams(sampling=pb.Sampling(seed=8, temperature=0.8), prompt_length=1)
    before = len(engine.steps)
    router.answer(engine, router.ask("a", prefix, params=other))
    assert len(engine.steps) == before + 1
