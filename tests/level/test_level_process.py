"""The real process: ``specrouter-level`` from start to SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from processes import Process, free_ports, numbers, until
from specrouter.v1 import level_pb2 as pb
from specrouter.v1.level_pb2_grpc import LevelServiceStub

COMMAND = str(Path(sys.executable).with_name("specrouter-level"))
START_SECONDS = 30.0  # on a busy machine; 1.5 on an idle one
STOP_SECONDS = 5.0
INFER = b'{"inputs": [{"name": "prefix", "datatype": "INT32", "shape": [1], "data": [1]}]}'
TEXT = list(b"to be, or not to be, or not")
PARAMS = pb.SequenceParams(prompt_length=len(TEXT))


class Level:
    """A running level process."""

    def __init__(self, log: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.http, self.grpc = free_ports(2)
        self.log = log
        arguments = [COMMAND, "--http-port", str(self.http), "--grpc-port", str(self.grpc), *options]
        self.process = Process(arguments, log, env=env).popen

    def get(self, path: str, data: bytes | None = None) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data)
        request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310  # http, see above
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.get("/v2/health/ready")[0] == 200

        assert until(ready, START_SECONDS), self.log.read_text()

    def number(self, name: str) -> float:
        """One of its metrics, 0 where it is not there yet."""
        return next(numbers(f"http://127.0.0.1:{self.http}", f"specrouter_level_{name}"), 0.0)

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def ask(self, **fields: Any) -> pb.ExtendReply:
        """The last reply to one call."""
        usual: dict[str, Any] = {"sequence": "a", "suffix": TEXT, "params": PARAMS, "deadline_ms": 5000}
        call = pb.ExtendCall(call=1, **(usual | fields))
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc}") as channel:
            requests = iter([pb.ExtendRequest(calls=[call])])
            for response in LevelServiceStub(channel).Extend(requests, timeout=call.deadline_ms / 1000 + 5):
                for reply in response.replies:
                    if reply.outcome:
                        return reply
        raise AssertionError("no last reply")


@contextmanager
def running(log: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Level]:
    level = Level(log, *options, env=env)
    try:
        level.wait()
        yield level
    finally:
        if level.process.poll() is None:
            level.process.kill()
            level.process.wait()


@pytest.mark.parametrize(("engine", "number"), [("stub", signal.SIGTERM), ("ngram", signal.SIGINT)])
def test_from_start_to_stop(engine: str, number: int, tmp_path: Path) -> None:
    with running(tmp_path / "log", "--name", "low", "--engine", engine, "--slots", "4") as level:
        assert json.loads(level.get("/v2/models/low")[1])["inputs"][0]["name"] == "prefix"
        assert level.get("/v2/models/low/ready")[0] == 200
        with grpc.insecure_channel(f"127.0.0.1:{level.grpc}") as channel:
            described = LevelServiceStub(channel).Describe(pb.DescribeRequest(), timeout=5)
        assert (described.name, described.engine, described.slots) == ("low", engine, 4)
        reply = level.ask(more=3)
        assert reply.outcome == pb.OUTCOME_DONE and len(reply.tokens) == 4
        if engine == "ngram":
            assert bytes(reply.tokens) == b" to "
        for port in (level.grpc, level.http):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
                raw.sendall(bytes(range(256)) * 20)
        assert level.ask(more=3).tokens == reply.tokens
        assert 'specrouter_level_calls_total{level="low",outcome="done"} 2.0' in level.get("/metrics")[1]
        status, body = level.get("/v2/models/low/infer", INFER)
        assert status == 501 and "LevelService/Extend" in body
        assert level.get("/v2/models/other")[0] == 404
        assert level.get("/v2/models/low/infer", b"\xff")[0] == level.get("/v1/models/low:predict", b"{")[0] == 400
        assert level.stop(number) == 0
        assert "Traceback" not in level.log.read_text()


def test_sigterm_while_a_call_runs_and_by_environment(tmp_path: Path) -> None:
    env = {
        f"SPECROUTER_LEVEL_{name}": value for name, value in (("NAME", "slow"), ("ENGINE", "stub"), ("STEP_MS", "1:50"))
    }
    with running(tmp_path / "log", env=env) as level:
        call = pb.ExtendCall(call=1, sequence="a", suffix=TEXT, more=9, params=PARAMS, deadline_ms=5000)
        with grpc.insecure_channel(f"127.0.0.1:{level.grpc}") as channel:
            stream = LevelServiceStub(channel).Extend(iter([pb.ExtendRequest(calls=[call])]), timeout=10)
            next(stream)
            level.process.send_signal(signal.SIGTERM)
            *_, last = stream
        assert last.replies[0].outcome == pb.OUTCOME_DONE and len(last.replies[0].tokens) == 10
        assert level.process.wait(STOP_SECONDS) == 0


@pytest.mark.parametrize("which", ["grpc", "http"])
def test_a_port_in_use_ends_the_process(which: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        level = Level(tmp_path / "log", "--name", "low", "--engine", "ngram", f"--{which}-port", port)
        assert level.process.wait(START_SECONDS) in (1, 3)  # ours, uvicorn's
        said = level.log.read_text()
        assert port in said and ("cannot listen on" in said or "address already in use" in said)
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "torch"], "model: "),
        (["--engine", "torch", "--model", "/nonexistent"], "/nonexistent"),
        (["--engine", "stub", "--step-ms", "fast"], "step-ms: "),
        (["--engine", "magic"], "--engine"),
        (["--engine", "stub", "--agreement", "2"], "--agreement"),
    ],
)
def test_wrong_options_are_named(options: list[str], message: str, tmp_path: Path) -> None:
    level = Level(tmp_path / "log", "--name", "low", *options)
    assert level.process.wait(START_SECONDS) == 2
    assert message in level.log.read_text() and "Traceback" not in level.log.read_text()


def test_a_level_without_weights_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, specrouter_level.scripts, specrouter_level.process, specrouter_level.stub, specrouter_level.ngram;"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=START_SECONDS).returncode == 0
