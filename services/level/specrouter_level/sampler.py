"""The coupled sampler on the device: equal to ``specrouter_core.sampling.draw``, row by row.

The work over the whole vocabulary is done in float32 on the device and only narrows the choice down, with
margins wide enough for its rounding; what is left (a few ids) is decided in float64 by the core's own noise. Where the
narrowing cannot be sure, the core's reference decides.

Without truncation the argmax of ``score + gumbel`` is the argmin of ``E / p``, with E = -log(uniform) and p the
unnormalised probability. With w = 1 - uniform, E is at least w, and at most 1.39 w where w is at most 1/2: so integers
and one division an id give the few that can win, without a logarithm. On the CPU numpy does the integers: it has
unsigned shifts, and its calls cost less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specrouter_core import noise
from specrouter_core.sampling import Sampling, draw, penalise

MARGIN = 1e-4  # relative; float32 keeps p and the sum of p to 1e-5 where it matters
TINY = 1e-12  # a smaller w is not known to MARGIN: the uniform has 52 bits
KEPT = 16  # rows that memory is kept for
THRESHOLDS = (1e-3, 3e-5, 1e-6)  # of p / max p: where a top-p set is looked for first


@dataclass(frozen=True, slots=True)
class Request:
    """What one row of logits is drawn with."""

    text: Sequence[int]  # at least up to the drawn position
    position: int  # of the drawn token
    prompt_length: int
    sampling: Sampling
    probe: int = 0  # top probabilities to report


@dataclass(frozen=True, slots=True)
class Result:
    """One drawn token."""

    token: int
    confidence: float  # the probability of the most likely token, before truncation and noise
    probe: list[tuple[int, float]]


def _signed(value: int) -> int:
    """The 64-bit pattern of ``value`` as torch's signed integer."""
    value &= noise.MASK
    return value - (1 << 64) if value >> 63 else value


class Sampler:
    """Draws tokens for rows of logits over one vocabulary, on one device."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        ids = torch.arange(1, vocab_size + 1, dtype=torch.int64, device=device)
        self._steps = ids * _signed(noise.GOLDEN)  # the part of the noise that depends on the id alone
        self._z = torch.empty_like(ids)
        self._shifted = torch.empty_like(ids)
        self._room = torch.empty(2, 0, vocab_size, dtype=torch.float32, device=device)
        self._floats = np.empty((2, vocab_size), np.float32)
        self._on_host = device.type == "cpu"

    def draw(self, logits: Tensor, requests: Sequence[Request]) -> list[Result]:
        """One token a row. ``logits``: [rows, vocabulary], any float type, on the sampler's device.

        Raises FloatingPointError when a row's logits are not numbers.
        """
        space, weights = self._space(len(requests))
        rows = logits if logits.dtype == torch.float32 else space.copy_(logits)
        changed = [i for i, r in enumerate(requests) if r.sampling.penalised or r.sampling.logit_bias]
        if changed:
            rows = rows.clone()
        for index in changed:
            rows[index] = self._penalised(rows[index], requests[index])
        temperatures = [max(request.sampling.temperature, 1e-30) or 1.0 for request in requests]
        best = rows.amax(-1, keepdim=True)
        torch.sub(rows, best, out=weights)
        if any(request.sampling.temperature not in {0, 1} for request in requests):
            weights.div_(torch.tensor(temperatures, dtype=torch.float32, device=rows.device)[:, None])
        sums = weights.exp_().sum(-1).tolist()
        results = []
        for index, request in enumerate(requests):
            if not math.isfinite(sums[index]):
                raise FloatingPointError(f"logits for position {request.position} are not finite")
            if request.sampling.temperature == 0:
                token = self._likeliest(rows[index], best[index])
            else:
                token = self._coupled(rows[index], weights[index], sums[index], request)
            probe = _top(weights[index], sums[index], request.probe) if request.probe else []
            results.append(Result(token, 1 / sums[index], probe))
        return results

    def _space(self, rows: int) -> tuple[Tensor, Tensor]:
        """Two tensors [rows, vocabulary] to work in; fresh memory would cost more than what is done with it."""
        if rows > self._room.shape[1]:
            more = self._room.new_empty(2, rows, self._room.shape[2])
            if rows > KEPT:
                return more[0], more[1]
            self._room = more
        return self._room[0, :rows], self._room[1, :rows]

    def _likeliest(self, row: Tensor, best: Tensor) -> int:
        """The first of the ids with the largest logit."""
        return int(row.numpy().argmax()) if self._on_host else int(_ids(row == best)[0])

    @staticmethod
    def _penalised(row: Tensor, request: Request) -> Tensor:
        """The row after bias and penalties, by the core's own arithmetic."""
        text = list(request.text[: request.position])
        done = penalise(row.cpu().numpy(), text, request.prompt_length, request.sampling)
        return torch.from_numpy(done).to(row.device)

    def _coupled(self, row: Tensor, weights: Tensor, total: float, request: Request) -> int:
        """The draw at a temperature above 0. ``weights``: exp of the tempered row minus its maximum."""
        sampling = request.sampling
        if sampling.top_p < 1 or sampling.min_p > 0 or 0 < sampling.top_k < row.shape[0]:
            found = _truncated(row, weights, total, sampling)
        elif self._on_host:
            found = self._contenders_on_host(weights.numpy(), request)
        else:
            found = self._contenders(weights, request)
        if found is None:  # too close to call in float32; the penalties are in the row already
            bare = replace(sampling, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, logit_bias={})
            return draw(row.cpu().numpy(), range(request.position), 0, bare)
        scores = _at(row, found, sampling.temperature)
        return int(found[np.argmax(scores + noise.gumbel(sampling.seed, request.position, found))])

    def _contenders_on_host(self, weights: NDArray[np.float32], request: Request) -> NDArray[np.int64]:
        """The same in numpy, from the upper 32 bits of the noise.

        The hash's last shift changes the lowest of them at most, so w in units of 2**-32 is in (v - 1, v + 2).
        """
        steps, z, shifted = (part.numpy().view(np.uint64) for part in (self._steps, self._z, self._shifted))
        np.add(steps, np.uint64(noise.key(request.sampling.seed, request.position)), out=z)
        for by, factor in ((30, noise.MIX1), (27, noise.MIX2)):
            np.right_shift(z, np.uint64(by), out=shifted)
            np.bitwise_xor(z, shifted, out=z)
            np.multiply(z, np.uint64(factor), out=z)
        upper, v, other = shifted.view(np.uint32)[: z.size], *self._floats
        np.invert(z.view(np.uint32)[1::2], out=upper)
        v[:] = upper
        v += 2
        with np.errstate(divide="ignore", over="ignore"):  # an id without weight can't win
            least = float(np.divide(v, weights, out=other).min())
        bound = least * (1.3863 if least <= 2**31 else 73.6)  # as below
        np.multiply(weights, np.float32(bound * (1 + MARGIN)), out=other)
        other += 3
        return np.flatnonzero(v <= other)

    def _contenders(self, weights: Tensor, request: Request) -> NDArray[np.int64] | None:
        """The ids that can win over the whole vocabulary, ascending; None if that is uncertain."""
        z, shifted = self._z, self._shifted
        torch.add(self._steps, _signed(noise.key(request.sampling.seed, request.position)), out=z)
        for by, factor in ((30, noise.MIX1), (27, noise.MIX2), (31, 1)):
            torch.bitwise_right_shift(z, by, out=shifted)
            z.bitwise_xor_(shifted.bitwise_and_((1 << (64 - by)) - 1))
            if factor != 1:
                z.mul_(_signed(factor))
        w = z.float().mul_(-(2.0**-64))  # of the signed integer, so that a small w keeps its digits
        w.sub_(w.floor())
        ratio = w / weights
        least, smallest = float(ratio.amin()), float(w.amin())
        if smallest < TINY:
            return None
        # Weights are at most 1, so w <= least at the least ratio. Above 1/2 only E <= 36.8 is known.
        bound = least * (1.3863 if least <= 0.5 else 73.6)
        return _ids(ratio <= bound * (1 + MARGIN))


def _ids(mask: Tensor) -> NDArray[np.int64]:
    """The indices where a 1-D mask is true, ascending, on the host."""
    return np.flatnonzero(mask.cpu().numpy())


def _at_least(values: Tensor, least: float) -> NDArray[np.int64]:
    """The indices of values not below ``least``, ascending, on the host."""
    if values.device.type == "cpu":
        return np.flatnonzero(values.numpy() >= least)
    return _ids(values >= least)


def _at(row: Tensor, ids: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """The tempered logits of some ids, float64, on the host."""
    picked = row[torch.from_numpy(ids).to(row.device)].cpu().numpy()
    scores: NDArray[np.float64] = picked.astype(np.float64) / temperature
    return scores


def _top(weights: Tensor, total: float, count: int) -> list[tuple[int, float]]:
    """The ``count`` largest probabilities, likeliest first."""
    values, ids = weights.topk(min(count, weights.shape[0]))
    return [(token, value / total) for token, value in zip(ids.tolist(), values.tolist(), strict=True)]


def _candidates(row: Tensor, weights: Tensor, total: float, sampling: Sampling) -> NDArray[np.int64]:
    """Ids that hold every survivor: the most likely ones, down to some probability, ascending."""
    few = 0 < sampling.top_k < row.shape[0]
    floor = sampling.min_p * (1 - MARGIN)
    for threshold in THRESHOLDS:
        if threshold <= floor and not few:
            break
        ids = _at_least(weights, threshold)
        if few and ids.size >= sampling.top_k:
            values = row[torch.from_numpy(ids).to(row.device)]
            return ids[_ids(values >= values.topk(sampling.top_k).values[-1])]
        if not few and sampling.top_p < 1:
            mass = float(weights[torch.from_numpy(ids).to(row.device)].sum())
            if mass >= sampling.top_p * total * (1 + MARGIN):
                return ids
    return _ids(row >= row.topk(sampling.top_k).values[-1]) if few else _at_least(weights, floor)


def _count(before: NDArray[np.float64], limit: float, margin: float) -> int | None:
    """How many entries of ``before`` (ascending) lie below ``limit``; None if within ``margin`` of it."""
    low, high = (int(np.searchsorted(before, limit * (1 + sign * margin))) for sign in (-1, 1))
    return low if low == high else None


def _truncated(row: Tensor, weights: Tensor, total: float, sampling: Sampling) -> NDArray[np.int64] | None:
    """The survivors of top-k, top-p and min-p, ascending; None if their number is in doubt."""
    ids = _candidates(row, weights, total, sampling)
    scaled = _at(row, ids, sampling.temperature)
    order = np.argsort(-scaled, kind="stable")
    kept = scaled[order]
    count: int | None
    if sampling.top_p == 1:
        count = kept.size
    else:
        exact = np.exp(kept - kept[0])
        before = np.cumsum(exact) - exact
        if 0 < sampling.top_k < row.shape[0]:
            count = int((before < sampling.top_p * exact.sum()).sum())
        else:
            count = _count(before, sampling.top_p * total, MARGIN)
            if count is None:  # once more, with a sum in float64
                total = float(row.double().div_(sampling.temperature).sub_(float(kept[0])).exp_().sum())
                count = _count(before, sampling.top_p * total, 1e-11)
        if count is None:
            return None
    if sampling.min_p > 0:
        count = min(count, int((kept >= kept[0] + math.log(sampling.min_p)).sum()))
    return ids[np.sort(order[:count])]
