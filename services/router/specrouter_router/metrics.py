"""What the router counts, in Prometheus' form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The counters of one router process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._calls_by: dict[tuple[str, str], Counter] = {}  # looking labels up is slow
        self._tokens_by: dict[str, Counter] = {}
        self.rounds = Counter("specrouter_rounds", "Answers of the target that committed tokens", registry=registry)
        self._tokens = Counter(
            "specrouter_tokens", "Committed tokens by the level that first proposed them", ["level"], registry=registry
        )
        self._calls = Counter(
            "specrouter_calls", "Calls to levels by how they ended", ["level", "outcome"], registry=registry
        )
        self.round_seconds = Histogram(
            "specrouter_round_seconds", "Time between two commits of a sequence", registry=registry, buckets=SECONDS
        )
        self.switches = Counter("specrouter_switches", "Changes of a running sequence's chain", registry=registry)
        self.scores = Counter("specrouter_scores", "Calls that judge a level outside the chain", registry=registry)
        self.finished = Counter("specrouter_finished", "Sequences by how they ended", ["reason"], registry=registry)
        self.running = Gauge("specrouter_sequences", "Running sequences", registry=registry)
        self.redis_losses = Counter("specrouter_redis_losses", "Times that Redis was lost", registry=registry)
        self.redis_dropped = Counter(
            "specrouter_redis_dropped", "Ended sequences whose record was given up", registry=registry
        )

    def call_ended(self, level: str, outcome: str) -> None:
        """A call to a level has ended."""
        counter = self._calls_by.get((level, outcome))
        if counter is None:
            counter = self._calls_by[level, outcome] = self._calls.labels(level, outcome)
        counter.inc()

    def committed(self, origin: str, count: int) -> None:
        """So many tokens that this level was the first to propose."""
        counter = self._tokens_by.get(origin)
        if counter is None:
            counter = self._tokens_by[origin] = self._tokens.labels(origin)
        counter.inc(count)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
