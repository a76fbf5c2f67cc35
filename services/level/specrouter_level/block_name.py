"""The name of a block of keys and values: everything its bytes depend on, and nothing else.

The keys and values at a position follow from the model and the text up to there. Sampling parameters and seed play no
part, nor does the sequence, so whoever has the same text finds the same blocks: another replica that takes over, or
another request with the same beginning. Hence

    root      = SHA-256(format, model digest, codec, layout, exactness, block length)
    chain(i)  = SHA-256(chain(i-1), token ids of block i),  chain(-1) = root
    name(i)   = HMAC-SHA256(tenant's key, chain(i), prompt part)

SHA-256 over whole texts and not the 64-bit hash that the wire uses: that one is a check within a sequence, while
whoever could make two texts with one name could give one the other's memory. Keyed with the tenant's key, names
tell nothing of the texts, and tenants do not meet.

**The prompt part.** How a position is computed leaves its mark in the last bits. With exactness ``bitwise`` a level
computes positions of the prompt in chunks of 64 rows at fixed places, and those after it in steps of 8 rows
(``passes``). So a position's bytes are a function of the text up to it and of where the prompt ended, if that was
before it. A chunk's rows do not depend on one another's content, so for a block that ends within the prompt it does not
matter how much of the prompt follows; for a block that the prompt's end falls into, or lies before, it does:

    prompt part = min(prompt length, end of the block)

With it, equal names mean equal bits: sequences that share a prompt share its whole blocks (the part is then the block's
end), and a block with generated text is found only by a sequence whose prompt ended at the same place. A restored
level then holds, bit for bit, what it would have computed. What the bits depend on besides (library, processor,
threads: ``Layout.numerics``) is in the root.

With exactness ``shape`` the last bits depend on who else was in the batch, so nothing could be promised by the prompt's
end; the part is 0, and equal texts share blocks wherever their prompts ended.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from specrouter_level.codec import Layout

FORMAT = 1
DIGITS = 40  # 160 bits: no two texts will ever share a name


class Namer:
    """Names the blocks of one level."""

    def __init__(  # each is a thing that a block depends on
        self, *, model_digest: str, codec: str, layout: Layout, exactness: str, positions: int, key: bytes
    ) -> None:
        self.positions = positions
        self._bitwise = exactness == "bitwise"
        self._key = key
        about = {
            "format": FORMAT,
            "model": model_digest,
            "codec": codec,
            "layout": asdict(layout),
            "exactness": exactness,
            "positions": positions,
        }
        self._root = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).digest()

    def names(self, tokens: Sequence[int], prompt_length: int) -> list[str]:
        """Of every whole block of the text, from the first; hex, DIGITS long."""
        found: list[str] = []
        ids = np.asarray(tokens, dtype="<u4")
        chain = self._root
        for end in range(self.positions, len(tokens) + 1, self.positions):
            chain = hashlib.sha256(chain + ids[end - self.positions : end].tobytes()).digest()
            part = min(prompt_length, end) if self._bitwise else 0
            found.append(hmac.digest(self._key, chain + part.to_bytes(8, "little"), "sha256").hex()[:DIGITS])
        return found


def tenant(key: bytes) -> str:
    """How Redis keys name the owner of a tenant key; "open" without one."""
    return hmac.digest(key, b"specrouter tenant", "sha256").hex()[:16] if key else "open"
