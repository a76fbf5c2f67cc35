"""What drawing costs beside the model: the sampler's time against a whole step's.

    python benchmarks/sampler.py

The demo family's int4 copy, 8 rows, at the demo's number of threads: a step whose draws are taken at temperature 0, and
the sampler alone on that step's logits for each way of sampling. The share is sampler / (step - greedy + sampler).
Needs the demo's weights (`specrouter models pull demo`). Writes results/sampler.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from specrouter_level import reproducible

THREADS = reproducible.prepare()

import torch

import results
from specrouter_core.sampling import Sampling
from specrouter_level import torch_engine
from specrouter_level.engine import Params, Span
from specrouter_level.sampler import Request, Result
from specrouter_local import models

ROWS = 8
CONTEXT = 64
STEPS, DRAWS = 30, 60
WAYS: dict[str, dict[str, Any]] = {
    "temperature 0": {"temperature": 0.0},
    "full vocabulary": {"temperature": 0.8},
    "top-k 50, min-p 0.05": {"temperature": 0.8, "top_k": 50, "min_p": 0.05},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
}


def main() -> None:
    engine = torch_engine.load(
        models.pull(lambda *_: None), quantization="int4", threads=THREADS, max_length=256, slots=1, max_rows=64
    )
    text = [1 + (7919 * i) % 40_000 for i in range(CONTEXT + ROWS)]
    seen: list[torch.Tensor] = []
    draw = engine._sampler.draw

    def keeping(logits: torch.Tensor, requests: Sequence[Request]) -> list[Result]:
        seen.append(logits.clone())
        return draw(logits, requests)

    engine._sampler.draw = keeping  # type: ignore[method-assign]
    params = Params(Sampling(temperature=0.0), CONTEXT)
    engine.step([Span(0, 0, text[:CONTEXT], 0, params)])
    steps = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        engine.step([Span(0, CONTEXT, text, ROWS, params)])
        steps.append(time.perf_counter() - begin)
    step, logits = statistics.median(steps), seen[-1]
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    with torch.inference_mode():
        for turn in range(DRAWS):
            for name, fields in WAYS.items():
                requests = [
                    Request(text, CONTEXT + 1 + row, CONTEXT, Sampling(seed=turn, **fields)) for row in range(ROWS)
                ]
                begin = time.perf_counter()
                draw(logits, requests)
                times[name].append(time.perf_counter() - begin)
    greedy = statistics.median(times["temperature 0"])
    rows: list[dict[str, Any]] = []
    for name, values in times.items():
        seconds = statistics.median(values)
        share = seconds / (step - greedy + seconds)
        rows.append({"sampling": name, "ms": round(seconds * 1000, 3), "share": round(share, 4)})
    results.write(
        "sampler",
        rows,
        {
            "rows": ROWS,
            "threads": THREADS,
            "step_ms": round(step * 1000, 2),
            "worst_share": max(r["share"] for r in rows),
        },
    )


if __name__ == "__main__":
    main()
