"""The OpenAI interface, as its official client and as bare HTTP see it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from stub_mesh import Router

MESSAGES: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "tell me a story"}]


@pytest.fixture
def client(router: Router) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{router.url}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def test_chat_in_one_piece_and_as_a_stream_agree(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="test", messages=MESSAGES, max_completion_tokens=40, seed=5)
    stream = client.chat.completions.create(
        model="test", messages=MESSAGES, max_tokens=40, seed=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert whole.usage is not None and whole.usage.completion_tokens == 40
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions_take_text_or_ids(client: openai.OpenAI) -> None:
    by_text = client.completions.create(model="test", prompt="abc", temperature=0)
    by_ids = client.completions.create(model="test", prompt=list(b"abc"), temperature=0)
    assert by_text.choices[0].text == by_ids.choices[0].text
    assert by_text.usage is not None and by_text.usage.completion_tokens == 16
    streamed = client.completions.create(model="test", prompt="abc", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == by_text.choices[0].text


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["test"]
    assert client.models.retrieve("test").id == "test"
    with pytest.raises(openai.NotFoundError, match="model"):
        client.models.retrieve("other")


def test_the_client_sees_errors_as_openais(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_a_seed_is_made_up_and_told_and_repeats_the_text(router: Router) -> None:
    first = router.complete(max_tokens=30)
    seed = first["specrouter"]["seed"]
    again = router.complete(max_tokens=30, seed=seed)
    other = router.complete(max_tokens=30)
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert other["specrouter"]["seed"] != seed


def test_a_stream_with_report_has_the_documented_form(router: Router) -> None:
    events = list(router.events(max_tokens=40, seed=3, stream_options={"include_usage": True}))
    *chunks, last = events
    offset = 0
    for chunk in chunks:
        ours = chunk["specrouter"]
        assert set(ours) == {"sequence", "offset", "tokens", "origins", "pieces"}
        assert ours["offset"] == offset and len(ours["tokens"]) == len(ours["origins"])
        assert "".join(piece["text"] for piece in ours["pieces"]) == chunk["choices"][0]["text"]
        offset += len(ours["tokens"])
    assert offset == 40 and last["choices"] == []
    assert last["usage"]["completion_tokens"] == 40
    ours = last["specrouter"]
    assert set(ours) == {"sequence", "report", "seed"} and ours["seed"] == 3
    assert set(ours["report"]) == {"rounds", "levels", "lost", "chains", "switches"}
    (chain,) = ours["report"]["chains"]
    assert (chain["levels"], chain["mode"], chain["tokens"]) == (["draft", "mid", "target"], "lockstep", 40)
    assert chain["rounds"] == ours["report"]["rounds"] and chain["ms"] > 0 and ours["report"]["switches"] == 0
    fields = {"level", "calls", "drawn", "offered", "accepted", "committed", "compute_ms", "queue_ms"}
    assert all(set(level) == fields for level in ours["report"]["levels"])


def test_status_health_and_metrics(router: Router) -> None:
    router.complete(max_tokens=5)
    status = httpx.get(f"{router.url}/v1/status", trust_env=False).json()
    assert status["model"] == "test" and status["redis"] == "ok"
    assert [level["name"] for level in status["levels"]] == ["draft", "mid", "target"]
    assert all(level["ready"] and level["engine"] == "stub" for level in status["levels"])
    assert status["chain"]["windows"] == {"draft": 3, "mid": 4, "target": 6}
    assert status["chain"]["policy"] == "fixed" and status["adaptive"] is None
    assert httpx.get(f"{router.url}/healthz", trust_env=False).status_code == 200
    assert router.metric("specrouter_rounds_total") > 0
    assert router.metric('specrouter_calls_total{level="target",outcome="done"}') > 0


PAIR = ["mid", "target"]
BAD: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("unknown model", {"model": "nope"}, "model"),
    ("model of a wrong type", {"model": 3}, "model"),
    ("no prompt", {"prompt": None}, "prompt"),
    ("empty prompt", {"prompt": ""}, "prompt"),
    ("no ids", {"prompt": []}, "prompt"),
    ("ids out of the vocabulary", {"prompt": [5000]}, "prompt"),
    ("negative ids", {"prompt": [-1]}, "prompt.0"),
    ("two prompts", {"prompt": ["a", "b"]}, "prompt"),
    ("oversize prompt", {"prompt": "x" * 3000}, "prompt"),
    ("negative max_tokens", {"max_tokens": -1}, "max_tokens"),
    ("no max_tokens", {"max_tokens": 0}, "max_tokens"),
    ("huge max_tokens", {"max_tokens": 10**30}, "max_tokens"),
    ("more than fits", {"max_tokens": 5000}, "max_tokens"),
    ("max_tokens as text", {"max_tokens": "12"}, "max_tokens"),
    ("temperature NaN", {"temperature": float("nan")}, "temperature"),
    ("temperature infinite", {"temperature": float("inf")}, "temperature"),
    ("temperature 3", {"temperature": 3}, "temperature"),
    ("top_p 0", {"top_p": 0}, "top_p"),
    ("300 stop texts", {"stop": ["x"] * 300}, "stop"),
    ("empty stop text", {"stop": [""]}, "stop"),
    ("long stop text", {"stop": "x" * 300}, "stop"),
    ("two choices", {"n": 2}, "n"),
    ("logprobs", {"logprobs": 3}, "logprobs"),
    ("echo", {"echo": True}, "echo"),
    ("unknown field", {"temprature": 1}, "temprature"),
    ("bias of no id", {"logit_bias": {"x": 1}}, "logit_bias"),
    ("bias out of the vocabulary", {"logit_bias": {"9999": 1}}, "logit_bias"),
    ("bias too large", {"logit_bias": {"1": 101}}, "logit_bias"),
    ("seed too large", {"seed": 2**64}, "seed"),
    ("unknown level", {"specrouter": {"chain": ["x", "target"]}}, "specrouter.chain"),
    ("chain out of order", {"specrouter": {"chain": ["mid", "draft", "target"]}}, "specrouter.chain"),
    ("chain without the target", {"specrouter": {"chain": ["draft"]}}, "specrouter.chain"),
    ("a level twice", {"specrouter": {"chain": ["draft", "draft", "target"]}}, "specrouter.chain"),
    ("windows without a chain", {"specrouter": {"windows": [4, 4]}}, "specrouter.windows"),
    ("too few windows", {"specrouter": {"chain": ["mid", "target"], "windows": [4]}}, "specrouter.windows"),
    ("window 0", {"specrouter": {"chain": ["target"], "windows": [0]}}, "specrouter.windows.0"),
    ("window 65", {"specrouter": {"chain": ["target"], "windows": [65]}}, "specrouter.windows.0"),
    ("least above its window", {"specrouter": {"chain": PAIR, "windows": [4, 4], "least": [1, 5]}}, "specrouter.least"),
    ("too few least", {"specrouter": {"chain": PAIR, "windows": [4, 4], "least": [1]}}, "specrouter.least"),
    ("least without windows", {"specrouter": {"chain": PAIR, "least": [1, 1]}}, "specrouter.least"),
    ("lookahead 0", {"specrouter": {"chain": PAIR, "windows": [4, 4], "lookahead": 0}}, "specrouter.lookahead"),
    ("lookahead without windows", {"specrouter": {"lookahead": 9}}, "specrouter.lookahead"),
    ("unknown mode", {"specrouter": {"mode": "fast"}}, "specrouter.mode"),
    ("long class", {"specrouter": {"class": "x" * 41}}, "specrouter.class"),
    ("class by another name", {"specrouter": {"traffic": "x"}}, "specrouter.traffic"),
    ("stream_options without stream", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("lone surrogate", {"prompt": "\ud800"}, "prompt"),
)


@pytest.mark.parametrize(("body", "field"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_a_clear_400(router: Router, body: dict[str, Any], field: str) -> None:
    content = json.dumps({"model": "test", "prompt": "x"} | body)
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{router.url}/v1/completions", content=content, headers=headers, trust_env=False)
    assert response.status_code in (400, 404)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"] or "").startswith(field), error
    assert error["message"].startswith(error["param"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_bad_chats(router: Router, body: dict[str, Any], field: str) -> None:
    response = router.post("/v1/chat/completions", {"model": "test", "messages": MESSAGES} | body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(field)


def test_harmless_fields_are_taken(router: Router) -> None:
    body: dict[str, Any] = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "n": 1,
        "logprobs": None,
        "response_format": {"type": "text"},
    }
    answer = router.complete(max_tokens=3, **body)
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/completions", b"{not json", 400),
        ("POST", "/v1/completions", b"\xff\xfe\x00", 400),
        ("POST", "/v1/completions", b"[1, 2]", 400),
        ("POST", "/v1/completions", b"", 400),
        ("POST", "/v1/completions", b" " * (5 << 20), 413),
        ("POST", "/v1/nothing", b"{}", 404),
        ("GET", "/v1/completions", b"", 405),
    ],
)
def test_broken_http_gets_openais_error_form(
    router: Router, method: str, path: str, content: bytes, status: int
) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.request(method, f"{router.url}{path}", content=content, headers=headers, trust_env=False)
    assert response.status_code == status
    assert response.json()["error"]["message"]
