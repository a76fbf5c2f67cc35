"""One sequence's times and checks, for the router's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from specrouter_core.chain import Plan
from specrouter_router.metrics import Metrics

if TYPE_CHECKING:
    from specrouter_core.lane import Tally


class Measure:
    """Begins with the sequence. ``resumed``: another router began it, so nothing is said of its first token."""

    def __init__(self, metrics: Metrics, traffic: str, prompt: int, now: float, *, resumed: bool) -> None:
        self._metrics = metrics
        self._traffic = traffic
        self._prompt = prompt
        self._began = now
        self._resumed = resumed
        self._first: float | None = None  # when the first round ended
        self._last = now
        self._tokens = 0  # after the first round
        self._total = 0
        self._checked: dict[str, tuple[int, int]] = {}  # level -> offered and accepted, as counted so far

    def round(self, seconds: float, tokens: int, now: float) -> None:
        """A round has ended, ``seconds`` after the one before."""
        self._metrics.round_seconds.observe(seconds)
        self._last = now
        self._total += tokens
        if self._first is not None:
            self._tokens += tokens
            return
        self._first = now
        if not self._resumed:
            self._metrics.first_token[self._traffic].observe(now - self._began)

    def checked(self, plan: Plan, tallies: Mapping[str, Tally]) -> None:
        """The sequence leaves this plan, or ends: count what its levels offered each other since it came to it."""
        for lower, upper in pairwise(plan.levels):
            tally = tallies.get(upper)
            if tally is None:
                continue
            offered, accepted = self._checked.get(upper, (0, 0))
            self._metrics.checked(lower, upper, tally.offered - offered, tally.accepted - accepted)
            self._checked[upper] = tally.offered, tally.accepted

    def ended(self) -> None:
        """The sequence has ended whole."""
        self._metrics.generated.observe(self._total)
        self._metrics.prompts.observe(self._prompt)
        if self._first is not None and self._tokens:
            self._metrics.per_token[self._traffic].observe((self._last - self._first) / self._tokens)
