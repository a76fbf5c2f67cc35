"""The client and what is drawn of its stream; the router is a canned one behind real HTTP."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from specrouter_local.chat import Talk
from specrouter_local.client import Answer, Piece, Router, Settings
from specrouter_local.demo import Pair, Scene, comparison
from specrouter_local.errors import UserError
from specrouter_local.painter import Painter, account, colours

LEVELS = ["draft", "mid", "target"]
SETTINGS = Settings("m", 50, 0.7, 5, ("mid", "target"))


def chunk(
    pieces: list[tuple[str, str]], tokens: list[int], finish: str | None = None, **more: object
) -> dict[str, Any]:
    delta = {"content": "".join(text for text, _ in pieces)} if pieces else {}
    ours = {
        "tokens": tokens,
        "origins": [origin for _, origin in pieces],
        "pieces": [{"text": text, "origin": origin} for text, origin in pieces],
    }
    return {"choices": [{"delta": delta, "finish_reason": finish}], "specrouter": ours} | more


def account_of(*levels: str) -> dict[str, Any]:
    rows = [{"level": level, "offered": 10, "accepted": 8, "committed": 1} for level in levels]
    return {"rounds": 4, "levels": rows, "lost": ["draft"]}


LAST = chunk([], [], "stop", usage={"completion_tokens": 3})
LAST["specrouter"] |= {"report": account_of("mid", "target"), "seed": 5}
STREAM = [chunk([("Hel", "draft"), ("lo", "mid")], [1, 2]), chunk([(" world", "target")], [3]), LAST]


class Server(ThreadingHTTPServer):
    """Answers what ``replies`` say, one a request; keeps the bodies."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Canned)
        self.bodies: list[Any] = []
        self.replies: list[tuple[int, Any]] = []


class Canned(BaseHTTPRequestHandler):
    """One request to it."""

    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, events = self.server.replies.pop(0)
        self.send_response(status)
        self.end_headers()
        if status != 200:
            self.wfile.write(json.dumps(events).encode())
            return
        for event in events:
            self.wfile.write(f"data: {event if event == '[DONE]' else json.dumps(event)}\n\n".encode())


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def router(server: Server) -> Iterator[Router]:
    made = Router(f"http://127.0.0.1:{server.server_address[1]}")
    yield made
    made.close()


def test_the_stream_becomes_pieces_and_an_answer(server: Server, router: Router) -> None:
    server.replies = [(200, [*STREAM, "[DONE]"])]
    answer = Answer()
    pieces = list(router.chat(SETTINGS, [{"role": "user", "content": "hi"}], answer))
    assert pieces == [Piece("Hel", "draft"), Piece("lo", "mid"), Piece(" world", "target")]
    assert (answer.text, answer.tokens, answer.origins) == ("Hello world", [1, 2, 3], ["draft", "mid", "target"])
    assert (answer.count, answer.finish, answer.seed) == (3, "stop", 5)
    assert answer.report == account_of("mid", "target")
    assert 0 < answer.first <= answer.seconds
    body = server.bodies[0]
    assert body["specrouter"] == {"report": True, "chain": ["mid", "target"]}
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("m", 50, 0.7, 5)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((404, {"error": {"message": "no model x"}}), "the router refused: no model x"),
        ((200, [STREAM[0], {"error": {"message": "target lost"}}]), "the router stopped: target lost"),
        ((200, [STREAM[0]]), "ended before the answer did"),
    ],
)
def test_what_goes_wrong_is_said(server: Server, router: Router, reply: tuple[int, Any], message: str) -> None:
    server.replies = [reply]
    with pytest.raises(UserError, match=message):
        list(router.chat(SETTINGS, [], Answer()))


def test_a_router_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"the router at http://127\.0\.0\.1:1 doesn't answer"):
        Router("http://127.0.0.1:1").status()


def screen(width: int = 40) -> Console:
    return Console(file=io.StringIO(), width=width, color_system="standard", force_terminal=True)


def plain(console: Console) -> str:
    return Text.from_ansi(written(console)).plain


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_pieces_are_drawn_in_their_levels_colours() -> None:
    console = screen()
    Painter(console, colours(LEVELS)).draw([Piece("Hel", "draft"), Piece("lo", "mid"), Piece(" you", "target")])
    assert written(console) == "  \x1b[32mHel\x1b[0m\x1b[36mlo\x1b[0m \x1b[33myou\x1b[0m\n"


def test_lines_break_between_words_and_where_the_answer_does() -> None:
    text = "Sunlight is scattered by the air.\n\n- blue light more\n    - red light less, " + "x" * 50
    for size in (1, 3, 7, 200):
        console = screen()
        pieces = [Piece(text[i : i + size], LEVELS[i % 3]) for i in range(0, len(text), size)]
        Painter(console, colours(LEVELS)).draw(pieces)
        lines = [line.rstrip() for line in plain(console).splitlines()]
        assert lines == [
            "  Sunlight is scattered by the air.",
            "",
            "  - blue light more",
            "      - red light less,",
            "  " + "x" * 50,
        ], size


def test_the_account_counts_tokens_by_level() -> None:
    console = screen(120)
    answer = Answer("abc", [1, 2, 3, 4], ["mid", "mid", "mid", "target"], "stop", seconds=0.2)
    answer.report = account_of("mid", "target")
    console.print(account(answer, LEVELS))
    shown = plain(console)
    assert "4 tokens, 20.0 tokens/s" in shown
    assert "50.0 ms per token" in shown
    assert "3 tokens (75%), target accepted 8 of 10" in shown
    assert "lost on the way" in shown


def test_the_chat_keeps_what_was_said_until_reset(
    server: Server, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.replies = [(200, [*STREAM, "[DONE]"]), (500, {"error": {"message": "oh"}})] + [
        (200, [*STREAM, "[DONE]"])
    ] * 2
    lines = iter(["hi", "fails", "again", "/reset", "/what", "", "new", "/quit", "never read"])
    console = screen(100)
    monkeypatch.setattr(console, "input", lambda prompt: next(lines))
    Talk(console, router, LEVELS).loop(SETTINGS)
    said = [[message["content"] for message in body["messages"]] for body in server.bodies]
    assert said == [["hi"], ["hi", "Hello world", "fails"], ["hi", "Hello world", "again"], ["new"]]
    assert "the router refused: oh" in plain(console)
    assert next(lines) == "never read"


@pytest.mark.parametrize(("tokens", "word"), [([1, 2, 3], "yes"), ([1, 2, 4], "NO")])
def test_the_comparison_says_whether_the_texts_are_the_same(tokens: list[int], word: str) -> None:
    by_chain = Answer("abc", [1, 2, 3], seconds=0.1, report=account_of(*LEVELS))
    alone = Answer("abc", tokens, seconds=0.25)
    console = screen(160)
    console.print(comparison([Pair(Scene("A question", "?"), by_chain, alone)], "target"))
    rows = [line.split() for line in plain(console).splitlines()]
    assert ["identical", "text", word] in rows
    assert ["times", "faster", "2.50"] in rows
    assert ["calls", "of", "target", "4", "instead", "of", "3"] in rows
    assert ["accepted", "by", "mid", "8", "of", "10", "proposals"] in rows
    assert ["accepted", "by", "target", "8", "of", "10", "proposals"] in rows
