"""HTTP for Kubernetes' probes and Prometheus: /healthz, /readyz, /metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

TIMEOUT_S = 5.0


class Health:
    """The server. ``port`` 0: any; ``port`` tells which."""

    def __init__(self, port: int, alive: Callable[[], bool], ready: Callable[[], bool]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = TIMEOUT_S

            def do_GET(self) -> None:
                """One answer."""
                if self.path == "/metrics":
                    self._answer(200, generate_latest(), CONTENT_TYPE_LATEST)
                elif self.path in ("/healthz", "/readyz"):
                    fine = alive() if self.path == "/healthz" else ready()
                    self._answer(200 if fine else 503, b"ok\n" if fine else b"no\n", "text/plain")
                else:
                    self._answer(404, b"/healthz, /readyz, /metrics\n", "text/plain")

            def _answer(self, status: int, body: bytes, form: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", form)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes are no news."""

        self._server = ThreadingHTTPServer(("", port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])

    def start(self) -> None:
        """Serve from a thread of its own."""
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
