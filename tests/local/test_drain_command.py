"""``specrouter drain`` on a real mesh with two routers: parts go and come back, and a text goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from threading import Thread
from typing import Any

import httpx
import pytest
from test_up import UP, Up, cache, call

from specrouter_local.state import Run

__all__ = ["cache"]  # a fixture


@pytest.fixture(scope="module")
def up(cache: None) -> Iterator[Up]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECROUTER_DRAIN_S", "0.2")
        patch.setattr("test_up.UP", [*UP, "--routers", "2"])
        mesh = Up()
        yield mesh
        assert mesh.end(signal.SIGINT) == 0, mesh.said()
        assert mesh.nothing_is_left()


def tokens(url: str, **request: Any) -> tuple[int, str, str]:
    """How many a stream brought, its sequence, and why it broke off."""
    count, name, code = 0, "", ""
    method, path = ("POST", "/v1/completions") if "json" in request else ("GET", "")
    with httpx.stream(method, f"{url}{path}", timeout=60, trust_env=False, **request) as response:
        name = response.headers["x-specrouter-sequence"]
        for line in response.iter_lines():
            if line.startswith("id: "):
                count = int(line[4:].partition(".")[0])
            elif '"error"' in line:
                code = httpx.Response(200, text=line[6:]).json()["error"]["code"]
    return count, name, code


def test_a_text_goes_on_while_its_router_is_drained(up: Up) -> None:
    one, two = (f"http://{part.address}" for part in up.state().parts if part.kind == "router")
    before = up.pid("router-0")
    said: list[str] = []
    thread = Thread(target=lambda: said.append(call("drain", "router-0")))
    thread.start()
    body = {"model": "stub", "prompt": "tell me", "max_tokens": 1500, "specrouter": {"report": True}}
    count, name, code = tokens(one, json=body | {"stream": True})
    thread.join()
    assert "router-0: handed over in" in said[0] and "back after" in said[0]
    assert up.pid("router-0") != before
    assert "router-0 has handed its work over" in up.said()
    assert code == "moved" and 0 < count < 1500
    for url in (two, one):
        rest = tokens(f"{url}/v1/sequences/{name}/stream", headers={"last-event-id": str(count)})
        assert rest == (1500, name, "")


def test_all_replicas_of_a_level_one_after_the_other(up: Up) -> None:
    before = up.pid("mid")
    assert call("drain", "mid").startswith("mid: handed over in")
    assert up.pid("mid") != before and up.state().phase == "ready"


def test_what_can_not_be_drained_is_one_clear_line(up: Up) -> None:
    assert "it has redis, draft" in call("drain", "nothing", code=1)
    assert "redis can't be drained" in call("drain", "redis", code=1)
    assert Run("stub").alive()
