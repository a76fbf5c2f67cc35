"""Why a proposal is accepted when it equals the draw, and never by the ratio rule with the same noise."""

import numpy as np

from specrouter_core import noise
from specrouter_core.sampling import Sampling, draw

TARGET = np.array([0.5, 0.3, 0.15, 0.05])
DRAFT = np.array([0.2, 0.2, 0.3, 0.3])
IDS = np.arange(4)
DRAWS = 6000


def coupled(p: np.ndarray, seed: int) -> int:
    return draw(np.log(p).astype(np.float32), [], 0, Sampling(seed=seed))


def far(counts: np.ndarray) -> float:
    """Chi-square of counts against the target's distribution; 3 degrees of freedom, 99.9 % below 16.3."""
    expected = TARGET * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_the_ratio_rule_with_shared_noise_is_biased() -> None:
    """Speculative sampling's rule: accept x if u < p(x) / q(x), else draw from the rest, max(p - q, 0).

    Right when u and the redraw are independent of how x was drawn. Here all three use one position's noise.
    """
    counts = np.zeros(4)
    rest = np.maximum(TARGET - DRAFT, 0)
    for seed in range(DRAWS):
        token = coupled(DRAFT, seed)
        u = float(noise.uniform(seed, 0, IDS)[token])
        if u >= TARGET[token] / DRAFT[token]:
            with np.errstate(divide="ignore"):
                token = int(np.argmax(np.log(rest) + noise.gumbel(seed, 0, IDS)))
        counts[token] += 1
    assert far(counts) > 100


def test_equality_with_the_targets_draw_is_not() -> None:
    """Accept when equal, else the target's draw: the token is always the target's own."""
    counts = np.zeros(4)
    accepted = 0
    for seed in range(DRAWS):
        proposal, own = coupled(DRAFT, seed), coupled(TARGET, seed)
        accepted += proposal == own
        counts[proposal if proposal == own else own] += 1
    assert far(counts) < 16.3
    distance = np.abs(TARGET - DRAFT).sum() / 2
    slack = 3 * 0.5 / DRAWS**0.5
    assert (1 - distance) / (1 + distance) - slack <= accepted / DRAWS <= 1 - distance + slack
