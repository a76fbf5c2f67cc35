"""Writes noise_vectors.json: run it only when the definition in specrouter_core/noise.py changes on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from specrouter_core import noise

CASES = [(0, 0), (0, 1), (1, 0), (42, 7), (2**63, 4095), (2**64 - 1, 2**31)]
IDS = [0, 1, 2, 255, 49151, 151935, 2**31 - 1]


def main() -> None:
    ids = np.asarray(IDS)
    vectors = []
    for seed, position in CASES:
        uniforms = noise.uniform(seed, position, ids)
        gumbels = noise.gumbel(seed, position, ids)
        vectors.append(
            {
                "seed": str(seed),
                "position": position,
                "key": f"{noise.key(seed, position):016x}",
                "ids": IDS,
                "bits": [f"{int(b):016x}" for b in noise.bits(seed, position, ids)],
                "uniform": [float(u).hex() for u in uniforms],
                "gumbel": [float(g).hex() for g in gumbels],
            }
        )
    path = Path(__file__).with_name("noise_vectors.json")
    path.write_text(json.dumps({"definition": "specrouter_core/noise.py", "vectors": vectors}, indent=1) + "\n")


if __name__ == "__main__":
    main()
