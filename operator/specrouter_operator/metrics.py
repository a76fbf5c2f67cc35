"""The operator's own measurements, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("specrouter_operator_requests", "Requests to the API server.", ["verb", "status"])
WRITES = Counter("specrouter_operator_writes", "Objects that were written because they differed.", ["kind"])
RECONCILES = Histogram(
    "specrouter_operator_reconcile_seconds",
    "Time of one reconcile.",
    ["outcome"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
DEPTH = Gauge("specrouter_operator_queue_depth", "Families that wait for a reconcile.")
LEADS = Gauge("specrouter_operator_leads", "1 while this replica leads.")
RELISTS = Counter("specrouter_operator_relists", "Full reads of a resource.", ["resource"])
