"""What the router counts and measures, for Prometheus and OpenTelemetry. All its instruments are here."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specrouter_core.adaptive import Adaptive
from specrouter_core.spread import COUNTS
from specrouter_telemetry.collected import Spreads

EVIDENCE = 4.0  # observations from which a pair's agreement is told
# OpenTelemetry's names for what generative models' servers measure.
OTEL_NAMES = {
    "gen_ai_server_time_per_output_token_seconds": "gen_ai.server.time_per_output_token",
    "gen_ai_server_time_to_first_token_seconds": "gen_ai.server.time_to_first_token",
}


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
        self.round_seconds = Spreads("specrouter_round_seconds", "Time between two commits of a sequence", registry)[""]
        per_token, first_token = OTEL_NAMES
        self.per_token = Spreads(per_token, "Time per token after the first ones", registry, by="class")
        self.first_token = Spreads(first_token, "From a request to its first tokens", registry, by="class")
        self.requests = Counter("specrouter_requests", "Requests, refused ones among them", registry=registry)
        self.prompts = Spreads("specrouter_prompt_tokens", "Of ended requests", registry, bounds=COUNTS)[""]
        self.generated = Spreads("specrouter_generated_tokens", "Of ended requests", registry, bounds=COUNTS)[""]
        pair = ["lower", "upper"]
        self._offered = Counter("specrouter_offered", "Proposals of one level to another", pair, registry=registry)
        self._accepted = Counter("specrouter_accepted", "Proposals that were accepted", pair, registry=registry)
        self.policy_version = Gauge("specrouter_policy_version", "Of the operator's policy in force", registry=registry)
        self.planned = Planned(registry)
        self.switches = Counter("specrouter_switches", "Changes of a running sequence's chain", registry=registry)
        self.scores = Counter("specrouter_scores", "Calls that judge a level outside the chain", registry=registry)
        self.finished = Counter("specrouter_finished", "Sequences by how they ended", ["reason"], registry=registry)
        self.running = Gauge("specrouter_sequences", "Running sequences", registry=registry)
        self.redis_losses = Counter("specrouter_redis_losses", "Times that Redis was lost", registry=registry)
        self.redis_healed = Counter(
            "specrouter_redis_healed", "Times that Redis had lost a part of a record", registry=registry
        )
        self.taken_over = Counter(
            "specrouter_taken_over", "Sequences taken up from another router, or from none", registry=registry
        )
        self.redis_dropped = Counter(
            "specrouter_redis_dropped", "Sequences whose record was given up", registry=registry
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

    def checked(self, lower: str, upper: str, offered: int, accepted: int) -> None:
        """So many proposals of one level were checked by another."""
        if offered:
            self._offered.labels(lower, upper).inc(offered)
            self._accepted.labels(lower, upper).inc(accepted)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)


class Planned(Collector):
    """What the planner believes, read when asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.adaptive: Adaptive | None = None  # none while chains are fixed
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Nothing is known before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Agreement of each level with the target, and the levels' weights."""
        agreement = GaugeMetricFamily("specrouter_agreement", "With the target's draws, as measured", labels=["level"])
        weights = GaugeMetricFamily("specrouter_weight", "How freely a level may be used, 0 to 100", labels=["level"])
        if self.adaptive is not None:
            members = self.adaptive.members
            for member in members:
                weights.add_metric([member.name], member.weight)
                if self.adaptive.agreement.seen(member.name, members[-1].name) >= EVIDENCE:
                    rate = self.adaptive.agreement.rate(member.name, members[-1].name)
                    agreement.add_metric([member.name], rate)
        yield agreement
        yield weights
