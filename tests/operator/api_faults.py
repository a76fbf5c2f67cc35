"""A proxy in front of the API server that answers wrongly, late, twice or not at all, as it is told."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import urllib3
import yaml

Fault = Literal["none", "409", "410", "429", "500", "hang", "lost", "unsent", "cut", "deaf"]
HANG_S = 3.0


@dataclass(frozen=True)
class Request:
    """What the operator asks for."""

    verb: str
    path: str
    watch: bool

    @property
    def write(self) -> bool:
        """A write of anything but the lease and events."""
        return self.verb != "GET" and not self.path.endswith(("/events", "/leases")) and "/leases/" not in self.path


Plan = Callable[[Request], Fault]


def honest(request: Request) -> Fault:
    """No faults."""
    return "none"


@dataclass
class Storm:
    """Random faults, the same for a seed and an order of requests; none after so many."""

    seed: int
    share: float = 0.3
    most: int = 60
    faults: tuple[Fault, ...] = ("409", "429", "500", "hang", "lost", "unsent")
    count: int = 0
    hangs: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def __call__(self, request: Request) -> Fault:
        if self.count >= self.most or "/leases" in request.path:
            return "none"
        if request.watch:
            self.count += 1
            return self._random.choice(("cut", "deaf", "410", "none"))
        if self._random.random() > self.share:
            return "none"
        self.count += 1
        fault = self._random.choice(self.faults)
        if fault == "hang":
            self.hangs += 1
        return "500" if fault == "hang" and self.hangs > 3 else fault


@dataclass
class Killed:
    """The operator dies at its write number ``at``: before it is sent, or after it was carried out."""

    at: int
    delivered: bool
    writes: int = 0
    dead: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: Request) -> Fault:
        with self.lock:
            if self.dead.is_set():
                return "unsent"
            counts = self.counts(request)
            self.writes += counts
            if counts and self.writes == self.at:
                self.dead.set()
                return "lost" if self.delivered else "unsent"
            return "none"

    def counts(self, request: Request) -> bool:
        """Whether it is one of the writes that are counted: all are."""
        return request.write


@dataclass
class KilledAtNew(Killed):
    """Here a write counts that nobody made before: of a scenario there are always as many. How often a status is
    written, or a deletion sent again, depends on how fast things go."""

    made: set[tuple[str, str]] = field(default_factory=set)

    def counts(self, request: Request) -> bool:
        """See Killed."""
        what = request.verb, request.path
        new = request.write and not request.path.endswith("/status") and what not in self.made
        self.made.add(what)
        return new


class Proxy:
    """Forwards to the API server of a kubeconfig, by a plan. ``writes`` counts what was forwarded."""

    def __init__(self, kubeconfig: Path, plan: Plan) -> None:
        cluster = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]
        self._server_url, authority = cluster["server"], cluster.get("certificate-authority")
        self._pool = urllib3.PoolManager(ca_certs=authority, retries=False, maxsize=32)
        self.plan, self.writes, self.faults = plan, 0, 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                with suppress(OSError):
                    proxy._handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop; connections break."""
        self.plan = lambda request: "unsent"
        self._http.shutdown()
        self._http.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        request = Request(handler.command, parts.path, "watch" in parse_qs(parts.query))
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        fault = self.plan(request)
        self.faults += fault != "none"
        if fault == "unsent":
            handler.close_connection = True
            return
        if fault == "hang":
            time.sleep(HANG_S)
            handler.close_connection = True
            return
        if fault in ("409", "410", "429", "500"):
            self._refuse(handler, int(fault))
            return
        self.writes += request.write
        headers = {
            k: v for k, v in handler.headers.items() if k.lower() not in ("host", "content-length", "connection")
        }
        answer = self._pool.request(
            request.verb,
            self._server_url + handler.path,
            body=body or None,
            headers=headers,
            preload_content=False,
            timeout=urllib3.Timeout(connect=5, read=90),
        )
        try:
            self._pass(handler, request, fault, answer)
        finally:
            answer.close()

    def _pass(self, handler: BaseHTTPRequestHandler, request: Request, fault: Fault, answer: Any) -> None:
        if request.watch and answer.status == 200:
            self._stream(handler, fault, answer)
            return
        data = answer.read()
        if fault == "lost":
            handler.close_connection = True
            return
        handler.send_response(answer.status)
        handler.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _stream(self, handler: BaseHTTPRequestHandler, fault: Fault, answer: Any) -> None:
        """A watch: "cut" breaks off after two events, "deaf" swallows every second one and is late with the others."""
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        for i, line in enumerate(_lines(answer)):
            if self.plan(Request("GET", "/alive", False)) == "unsent" or (fault == "cut" and i >= 2):
                return
            if fault == "deaf":
                if i % 2:
                    continue
                time.sleep(0.2)
            handler.wfile.write(line + b"\n")
            handler.wfile.flush()

    def _refuse(self, handler: BaseHTTPRequestHandler, status: int) -> None:
        data = json.dumps({"kind": "Status", "code": status, "message": "a fault of the proxy"}).encode()
        handler.send_response(status)
        if status == 429:
            handler.send_header("Retry-After", "1")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def _lines(answer: Any) -> Iterator[bytes]:
    rest = b""
    for piece in answer.stream(1 << 16, decode_content=True):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole


@contextmanager
def proxied(kubeconfig: Path, plan: Plan) -> Iterator[Proxy]:
    """A proxy for a while."""
    proxy = Proxy(kubeconfig, plan)
    try:
        yield proxy
    finally:
        proxy.close()
