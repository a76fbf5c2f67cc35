"""Whose turn it is in a step: urgent calls first, long prompts in parts, and nobody starves."""

from __future__ import annotations

from strict_engine import PROMPT, STOP, Router, StrictEngine, reference, world

from specrouter.v1 import level_pb2 as pb
from specrouter_level.scheduler import Scheduler
from specrouter_level.turns import PER_STEP


def finishing(scheduler: Scheduler, engine: StrictEngine, router: Router) -> list[int]:
    """Runs to the end; the calls in the order in which they ended."""
    ended: dict[int, None] = {}
    while spans := scheduler.form():
        scheduler.finish(engine.step(spans), 0.001)
        router.read()
        ended |= {n: None for n, reply in router.replies.items() if reply.outcome != pb.OUTCOME_UNSPECIFIED}
    return list(ended)


def test_a_long_prompt_does_not_hold_up_others() -> None:
    engine, scheduler, router = world(max_length=2000, max_rows=32)
    long = router.ask("long", PROMPT * 50)
    scheduler.finish(engine.step(scheduler.form()), 0.001)
    short = router.ask("short", PROMPT[:3], more=1)
    for _ in range(2):
        spans = scheduler.form()
        assert {span.slot for span in spans} == {0, 1}
        assert sum(len(span.text) - span.start for span in spans) == 32
        scheduler.finish(engine.step(spans), 0.001)
    router.read()
    assert router.replies[short].outcome == pb.OUTCOME_DONE and long not in router.replies
    assert list(router.answer(engine, long).tokens) == reference(engine, PROMPT * 50, 1)


def test_prompts_are_not_starved_by_many_short_calls() -> None:
    engine, scheduler, router = world(max_length=2000, max_rows=8, slots=20)
    for i in range(19):
        router.ask(f"s{i}", [i, 7], more=64)
    long = router.ask("long", PROMPT * 10)
    for _ in range(len(PROMPT) * 10 // 2):  # a quarter of a step is 2 rows
        scheduler.finish(engine.step(scheduler.form()), 0.001)
    router.read()
    assert router.replies[long].outcome == pb.OUTCOME_DONE
    shorts = [router.replies[i + 1] for i in range(19)]
    assert all(len(reply.tokens) > 20 or reply.tokens[-1] == STOP for reply in shorts)


def test_higher_priority_goes_first_and_lower_ones_finish_with_equal_texts() -> None:
    engine, scheduler, router = world(max_rows=4, slots=24)
    low = [router.ask(f"low{i}", [i, 7], more=8, priority=10) for i in range(8)]
    middle = [router.ask(f"middle{i}", [i, 8], more=8) for i in range(8)]  # 50, though it does not say so
    high = [router.ask(f"high{i}", [i, 9], more=8, priority=90) for i in range(8)]
    order = finishing(scheduler, engine, router)
    place = [sum(map(order.index, group)) / 8 for group in (high, middle, low)]
    assert place == sorted(place) and set(order[:8]) == set(high), order
    for group, second in ((low, 7), (middle, 8), (high, 9)):
        for i, number in enumerate(group):
            reply = router.replies[number]
            assert reply.outcome == pb.OUTCOME_DONE
            assert list(reply.tokens) == reference(engine, [i, second], 9)


def test_lower_priority_is_not_starved_by_a_flood_of_higher() -> None:
    engine, scheduler, router = world(max_rows=4, slots=24, max_length=2000)
    low = router.ask("low", [1, 7], more=3, priority=0)
    prompt = router.ask("prompt", PROMPT * 40, priority=0)
    tokens = {f"high{i}": [i, 9] for i in range(20)}
    numbers = {name: router.ask(name, text, more=2, priority=100) for name, text in tokens.items()}
    answered = 0
    done: dict[int, int] = {}
    for step in range(len(PROMPT) * 40 + 300):
        scheduler.finish(engine.step(scheduler.form()), 0.001)
        router.read()
        for name, number in numbers.items():
            if number in router.replies and router.replies[number].outcome == pb.OUTCOME_DONE:
                answered += 1
                numbers[name] = router.ask(name, tokens[name], more=2, priority=100)
        done |= {n: step for n in (low, prompt) if n in router.replies and router.replies[n].tokens and n not in done}
        if len(done) == 2:
            break
    assert done[low] <= 100 // PER_STEP + 1, "a priority of 100 makes it wait 50 steps, not more"
    assert prompt in done and answered > 100
    assert list(router.replies[prompt].tokens) == reference(engine, PROMPT * 40, 1)


def test_an_urgent_prompt_goes_before_less_urgent_draws_and_leaves_them_a_part() -> None:
    engine, scheduler, router = world(max_rows=16, slots=24, max_length=2000)
    for i in range(20):
        router.ask(f"s{i}", [i, 7], more=64, priority=20)
    scheduler.finish(engine.step(scheduler.form()), 0.001)
    router.ask("urgent", PROMPT * 50, priority=80)
    spans = scheduler.form()
    fed = sorted((len(span.text) - span.start for span in spans), reverse=True)
    assert fed[0] == 12 and sum(fed) == 16 and len(spans) >= 3
    scheduler.finish(engine.step(spans), 0.001)
    for _ in range(40):  # 4 rows in each are left for the 20 others
        scheduler.finish(engine.step(scheduler.form()), 0.001)
    calls = [call for call in scheduler._live if call.priority == 20]
    assert len(calls) > 10 and all(len(call.tokens) >= 5 for call in calls)


def test_a_call_that_supersedes_one_which_waits_has_its_place() -> None:
    engine, scheduler, router = world(max_rows=4, slots=24)
    router.ask("low", [1, 7], more=1, priority=50)
    for i in range(10):
        router.ask(f"high{i}", [i, 9], more=64, priority=100)
    for _ in range(50 // PER_STEP):
        scheduler.finish(engine.step(scheduler.form()), 0.001)
        newer = router.ask("low", [1, 7], more=1, priority=50)
    for _ in range(5):  # the urgent ones wait a step or two themselves
        scheduler.finish(engine.step(scheduler.form()), 0.001)
    router.read()
    assert router.replies[newer].tokens
