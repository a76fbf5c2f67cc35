"""With exactness bitwise, KV and logits do not depend on how a text was fed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import save

pytestmark = pytest.mark.timeout(240)
EXACT, RUN = (str(Path(__file__).with_name(name)) for name in ("exact.py", "bitwise_run.py"))


def run(directory: Path, dtype: str, quantization: str, exactness: str, threads: int = 1) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, EXACT, str(threads), RUN, str(directory), dtype, quantization, exactness],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    ("kind", "dtype", "quantization", "threads"),
    [
        ("llama", "float32", "none", 2),
        ("llama", "bfloat16", "none", 1),
        ("qwen3", "bfloat16", "int4", 1),
        ("gemma2", "bfloat16", "none", 1),
    ],
)
def test_every_grouping_gives_the_same_bits(
    kind: str, dtype: str, quantization: str, threads: int, tmp_path: Path
) -> None:
    result = run(save(kind, tmp_path), dtype, quantization, "bitwise", threads)
    assert result["positions"] > 200
    assert result["logits_differ"] == 0
    assert result["kv_differ"] == 0


def test_steps_of_varying_shape_do_not(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    assert run(save("llama", tmp_path), "bfloat16", "none", "shape")["logits_differ"] > 0
