"""The chain's text equals the target's alone, over the real interfaces, processes and streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stub_mesh import Router

CHAINS = (["target"], ["mid", "target"], ["draft", "target"], ["draft", "mid", "target"])
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.95, "seed": 1},
    {"temperature": 1.3, "seed": 2**63},
)


def tokens(router: Router, chain: list[str], prompt: str = "once upon", **settings: Any) -> list[int]:
    answer = router.complete(prompt, max_tokens=60, specrouter={"chain": chain}, **settings)
    ours = answer["specrouter"]
    assert answer["choices"][0]["text"].encode() == bytes(ours["tokens"])
    assert set(ours["origins"]) <= set(chain)
    assert len(ours["origins"]) == len(ours["tokens"]) == answer["usage"]["completion_tokens"] == 60
    report = ours["report"]
    assert [level["level"] for level in report["levels"]] == chain
    assert sum(level["committed"] for level in report["levels"]) == 60
    assert report["lost"] == []
    found: list[int] = ours["tokens"]
    return found


@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "nucleus", "hot"])
@pytest.mark.parametrize("mode", ["lockstep", "overlapped"])
def test_every_chain_gives_the_targets_text(
    router: Router, overlapped: Router, mode: str, settings: dict[str, Any]
) -> None:
    one = router if mode == "lockstep" else overlapped
    alone = tokens(router, ["target"], **settings)
    for chain in CHAINS:
        assert tokens(one, chain, **settings) == alone, chain


@pytest.mark.parametrize("mode", ["lockstep", "overlapped"])
def test_eight_together_get_what_each_gets_alone(router: Router, overlapped: Router, mode: str) -> None:
    one = router if mode == "lockstep" else overlapped
    prompts = [f"story {i} begins" for i in range(8)]
    alone = [tokens(router, ["target"], prompt, temperature=0.9, seed=i) for i, prompt in enumerate(prompts)]
    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda i: tokens(one, ["draft", "mid", "target"], prompts[i], temperature=0.9, seed=i), range(8))
        )
    assert together == alone


def test_a_lock_step_chain_saves_calls_of_the_target(router: Router) -> None:
    report = router.complete(max_tokens=60, temperature=0)["specrouter"]["report"]
    by_name = {level["level"]: level for level in report["levels"]}
    assert by_name["target"]["calls"] < 40
    assert by_name["mid"]["accepted"] > 0
    assert by_name["target"]["compute_ms"] > 0


def test_a_stop_text_cuts_the_same_place_in_every_chain(router: Router, overlapped: Router) -> None:
    whole = router.complete(max_tokens=60, temperature=0)["choices"][0]["text"]
    stop = whole[20:23]
    cut = whole[: whole.index(stop)]
    usages = set()
    for one in (router, overlapped):
        for chain in CHAINS:
            answer = one.complete(max_tokens=60, temperature=0, stop=["never seen", stop], specrouter={"chain": chain})
            assert answer["choices"][0]["text"] == cut
            assert answer["choices"][0]["finish_reason"] == "stop"
            usages.add(answer["usage"]["completion_tokens"])
    assert usages == {len(cut) + len(stop)}


def test_a_text_for_the_target_only(router: Router) -> None:
    """Near the levels' max_length the answer ends by length, exactly."""
    prompt = "x" * 2000
    answer = router.complete(prompt, max_tokens=48, temperature=0)
    assert answer["usage"] == {"prompt_tokens": 2000, "completion_tokens": 48, "total_tokens": 2048}
    assert answer["choices"][0]["finish_reason"] == "length"
