"""A drafting level stops where it is not sure enough."""

from __future__ import annotations

from typing import Any

import pytest
from live_level import PROMPT, Router, alone, serving, stub
from small_models import save

from specrouter.v1 import level_pb2 as pb
from specrouter_level import torch_engine
from specrouter_level.engine import Engine
from specrouter_level.ngram import NgramEngine

MORE = 40


@pytest.fixture(scope="module")
def torch_level(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return torch_engine.load(
        save("llama", tmp_path_factory.mktemp("llama")), threads=1, max_length=256, slots=4, max_rows=64
    )


async def drawn(engine: Engine, prefix: list[int], **fields: Any) -> pb.ExtendReply:
    async with serving(engine) as level, level.connect() as service:
        reply = await Router(service).ask("a", prefix, **fields)
        assert reply.outcome == pb.OUTCOME_DONE
        return reply


@pytest.mark.parametrize("kind", ["stub", "torch"])
async def test_it_stops_after_the_first_draw_below_the_threshold(kind: str, torch_level: Engine) -> None:
    engine: Engine = stub() if kind == "stub" else torch_level
    prefix = PROMPT if kind == "stub" else [1 + i % 90 for i in range(20)]
    free = await drawn(engine, prefix, more=MORE)
    assert len(free.tokens) == len(free.confidence) == MORE + 1
    assert all(0 < value <= 1 for value in free.confidence)
    for place in (0, 3, MORE // 2):
        threshold = (sorted(free.confidence)[place] + sorted(free.confidence)[place + 1]) / 2
        first = next(i for i, value in enumerate(free.confidence) if value < threshold)
        careful = await drawn(engine, prefix, more=MORE, confidence=threshold)
        assert list(careful.tokens) == list(free.tokens[: first + 1])  # the unsure draw is the last
    assert len((await drawn(engine, prefix, more=MORE, confidence=1.0)).tokens) == 1


async def test_accepted_proposals_do_not_stop_it() -> None:
    right = alone(PROMPT, 20)
    reply = await drawn(stub(), PROMPT, proposals=right[:10], more=10, confidence=1.0)
    assert list(reply.tokens) == right[:11]
    wrong = await drawn(stub(), PROMPT, proposals=[*right[:4], right[4] ^ 1], more=10, confidence=1.0)
    assert list(wrong.tokens) == right[:5]


async def test_a_lookup_is_sure_of_what_it_finds() -> None:
    engine = NgramEngine(max_length=256, slots=2, max_rows=64)
    reply = await drawn(engine, list(b"to be or not to be or"), more=5, confidence=1.0)
    assert bytes(reply.tokens) == b" not t" and set(reply.confidence) == {1.0}
