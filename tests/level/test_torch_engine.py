"""Limits, passes, calibration and the environment of the torch engine."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_models import save

from specrouter_core.sampling import Sampling
from specrouter_level import calibrate, passes, reproducible, torch_engine
from specrouter_level.engine import Params, Span
from specrouter_level.torch_engine import TorchEngine

PARAMS = Params(Sampling(temperature=0.0), prompt_length=70)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    parts: list[str] = []
    made = torch_engine.load(
        save("llama", tmp_path_factory.mktemp("llama")),
        threads=1,
        max_length=128,
        slots=2,
        max_rows=100,
        progress=lambda part, done: parts.append(part) if done in {0, 1} else None,
    )
    assert {"hashing", "loading", "calibrating"} <= set(parts)
    return made


@pytest.mark.parametrize(
    "span",
    [
        Span(2, 0, [1], 1, PARAMS),
        Span(-1, 0, [1], 1, PARAMS),
        Span(0, 1, [1], 0, PARAMS),
        Span(0, 0, [1, 2], 3, PARAMS),
        Span(0, 0, [1] * 101, 1, PARAMS),
        Span(0, 100, [1] * 129, 1, PARAMS),
    ],
)
def test_spans_outside_the_limits_are_refused(engine: TorchEngine, span: Span) -> None:
    with pytest.raises(ValueError, match=r"span|step"):
        engine.step([span])


def test_a_slot_occurs_once_in_a_step(engine: TorchEngine) -> None:
    with pytest.raises(ValueError, match="twice"):
        engine.step([Span(0, 0, [1], 1, PARAMS)] * 2)


def test_what_an_engine_says_of_itself(engine: TorchEngine) -> None:
    info = engine.info
    assert (info.engine, info.dtype, info.device, info.exactness) == ("torch", "float32", "cpu", "shape")
    assert [cost.rows for cost in info.costs] == [size for size in calibrate.SIZES if size <= 64]
    assert all(cost.seconds > 0 for cost in info.costs)
    assert all(rows <= to <= calibrate.FURTHEST for rows, to in engine.padding.items())


def test_padding_avoids_slow_row_counts_only() -> None:
    least = {1: 1.0, 2: 1.8, 3: 2.1, 4: 1.5, 5: 1.3, 6: 1.31, 7: 1.32, 8: 1.33, 16: 0.1}
    times = {rows: [seconds + 5, seconds] for rows, seconds in least.items()}
    table = calibrate.padding(times)
    assert table == {1: 1, 2: 5, 3: 5, 4: 5, 5: 5, 6: 6, 7: 7, 8: 8}
    assert [cost.seconds for cost in calibrate.costs(times, table)][1:3] == [3.8, 3.8]


def test_flat_passes_hold_every_row_once() -> None:
    one = passes.flat([Span(1, 2, [7, 8, 9, 10], 1, PARAMS), Span(0, 0, [5, 6], 2, PARAMS)])[0]
    assert one.tokens == [9, 10, 5, 6]
    assert one.positions == [2, 3, 0, 1]
    assert [(draw.row, draw.span, draw.position) for draw in one.draws] == [(1, 0, 4), (2, 1, 1), (3, 1, 2)]


def test_fixed_passes_have_fixed_shapes() -> None:
    """A prompt of 70 fed from 66 on, then 13 generated tokens; another sequence's 2 tokens after its prompt."""
    text = list(range(83))
    made = passes.fixed([Span(0, 66, text, 14, PARAMS), Span(1, 70, text[:72], 1, PARAMS)])
    assert [len(one.tokens) for one in made] == [passes.CHUNK, passes.ROWS, passes.ROWS]
    chunk = made[0].pieces[0]
    assert (chunk.start, chunk.stored, chunk.span) == (64, 6, 128)
    assert made[0].positions[:6] == [64, 65, 66, 67, 68, 69]
    assert [draw.position for one in made for draw in one.draws if draw.span == 0] == list(range(70, 84))
    assert [draw.position for one in made for draw in one.draws if draw.span == 1] == [72]
    assert all(piece.rows == 1 and piece.span == 128 for one in made[1:] for piece in one.pieces)


def test_the_environment_is_set_before_torch_loads() -> None:
    code = (
        "import os, sys; from specrouter_level import reproducible; os.environ['OMP_WAIT_POLICY'] = 'ACTIVE';"
        "n = reproducible.prepare(); assert 'torch' not in sys.modules; assert n >= 1;"
        "assert os.environ['MKL_CBWR'].endswith(',STRICT') and os.environ['OMP_NUM_THREADS'] == str(n);"
        "assert 'OMP_WAIT_POLICY' not in os.environ and os.environ['GOMP_SPINCOUNT'] == str(reproducible.SPINS)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    with pytest.raises(RuntimeError, match="before torch"):
        reproducible.prepare()


@pytest.mark.parametrize(
    ("file", "content", "most"),
    [("cpu.max", "150000 100000\n", 1), ("cpu.max", "max 100000\n", 10_000), ("cpu.max", "rubbish\n", 10_000)],
)
def test_threads_follow_the_cgroups_limit(file: str, content: str, most: int, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    assert 1 <= reproducible.cpu_limit(tmp_path) <= most
