"""More sequences at once than the target has slots: they wait for one another, and none fails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stub_mesh import Level, meshed


def test_sequences_wait_for_a_slot(tmp_path: Path) -> None:
    levels = [
        Level("draft", 0.6, "1:1", slots=3),
        Level("mid", 0.8, "1:2", slots=3),
        Level("target", step_ms="1:5", slots=2),
    ]
    refused = 'specrouter_level_calls_total{level="target",outcome="overloaded"}'
    with meshed(tmp_path, levels) as mesh:
        router = mesh.router("overlapped")

        def text(seed: int) -> str:
            found: str = router.complete(max_tokens=80, temperature=0.8, seed=seed)["choices"][0]["text"]
            return found

        with ThreadPoolExecutor(12) as pool:
            together = list(pool.map(text, range(12)))
        assert together == [text(seed) for seed in range(12)]
        assert mesh.levels["target"].gauge(refused) > 12
