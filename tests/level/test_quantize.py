"""Weight-only copies: close to the original, and a way down where an operator is missing."""

from pathlib import Path

import pytest
import torch
from small_models import save
from torch import nn

from specrouter_core.sampling import Sampling
from specrouter_level import quantize, torch_engine
from specrouter_level.engine import Params, Span

CPU = torch.device("cpu")


@pytest.mark.parametrize(("layer", "limit"), [(quantize.Int8, 0.02), (quantize.Int4, 0.15)])
@pytest.mark.parametrize("rows", [0, 1, 5, 70])
def test_a_copy_computes_nearly_the_same(layer: type[nn.Module], limit: float, rows: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(96, 64, generator=generator), torch.randn(96, generator=generator)
    x = torch.randn(1, rows, 64, generator=generator).bfloat16()
    got = layer(weight, bias)(x)
    assert got.shape == (1, rows, 96)
    assert got.dtype == torch.bfloat16
    if rows:
        want = x.float() @ weight.T + bias
        assert float((got.float() - want).norm() / want.norm()) < limit


def test_a_level_says_what_it_serves(tmp_path: Path) -> None:
    directory = save("llama", tmp_path)
    engines = {
        kind: torch_engine.load(directory, threads=1, dtype="bfloat16", quantization=kind, max_length=128, slots=2)
        for kind in ("none", "int8", "int4")
    }
    assert [engine.info.dtype for engine in engines.values()] == ["bfloat16", "int8", "int4"]
    assert len({engine.info.model_digest for engine in engines.values()}) == 3
    assert len({engine.info.vocab_digest for engine in engines.values()}) == 1
    text = [5 + i % 80 for i in range(40)]
    params = Params(Sampling(temperature=0.0), 2)
    drawn = {kind: engine.step([Span(0, 0, text, 38, params)])[0].tokens for kind, engine in engines.items()}
    assert sum(a == b for a, b in zip(drawn["none"], drawn["int8"], strict=True)) > 30


@pytest.mark.parametrize(("missing", "kind"), [({"int4"}, "int8"), ({"int4", "int8"}, "bfloat16")])
def test_where_an_operator_is_missing_the_next_one_serves(
    missing: set[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> nn.Module:
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(quantize, "_LAYERS", {**quantize._LAYERS, **dict.fromkeys(missing, broken)})
    engine = torch_engine.load(save("llama", tmp_path), threads=1, quantization="int4", max_length=128, slots=1)
    assert engine.info.dtype == kind
    assert any("int4" in line and kind.removeprefix("bfloat16") in line for line in caplog.messages)


def test_probes_find_what_is_here() -> None:
    assert quantize.best("int8", CPU) in {"int8", "none"}
    assert quantize.best("int4", CPU) in {"int4", "int8", "none"}
