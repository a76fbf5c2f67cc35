"""Signals out of Prometheus, for meshes whose metrics are scraped and not pushed.

Asks the HTTP API for matrices of raw growth: ``query_range`` of ``increase(...)`` at the window's end, one query for
each metric and each family's level or routers, kept for ``KEEP_S``. Targets need the label ``specrouter_family`` (and
``namespace`` where families are named namespace/name), by relabelling; see docs/signals.md. How old signals are is
the age of the newest sample (``timestamp()``). Growth shows only where a window holds several scrapes, so windows are
at least ``LEAST_WINDOW_S`` long, and what follows from them is as much later than with OTLP.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from specrouter_core.spread import quantile
from specrouter_operator import metric_names as m
from specrouter_operator.signals import NEVER, LevelSignal, Pair, RouterSignal

log = logging.getLogger(__name__)

TIMEOUT_S = 3.0
MOST_BYTES = 16 << 20  # of one answer
KEEP_S = 2.0  # so long an answer is good for
MAX_KEPT = 4096
LEAST_WINDOW_S = 60.0  # four scrapes of the usual 15 s

Labels = Mapping[str, str]
Row = tuple[Labels, float]


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer, and when it came."""

    at: float
    rows: list[Row]


class PrometheusSource:
    """Implements ``signals.Signals`` over one server. Answers nothing, so stale, while the server can't be asked."""

    def __init__(
        self, url: str, clock: Callable[[], float] = time.monotonic, least_window: float = LEAST_WINDOW_S
    ) -> None:
        """``url``: http(s)://host:port, with a path if there is one. Raises ValueError when it is none."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"prometheus.url: must be http(s)://host:port, got {url!r}")
        self.problem = ""  # of the last question, "" = none
        self._url = url.rstrip("/")
        self._clock = clock
        self._least = least_window
        self._kept: dict[str, Kept] = {}
        self._lock = threading.Lock()

    def level(self, family: str, level: str, now: float, window: float) -> LevelSignal:
        """See ``signals.Signals``."""
        window = max(window, self._least)
        who = _selector(family, level)
        age = self._age(m.STEP + "_count", who)
        if age == NEVER:
            return LevelSignal()
        steps = self._grown(m.STEP + "_count", who, window)
        calls = self._by(m.CALLS, who, window, "outcome")
        total = sum(calls.values())
        held = self._ask(f"{m.HELD}{who}")
        there = max(len(held), 1)
        sequences = self._grown(m.SEQUENCES + "_sum", who, window)
        return LevelSignal(
            age=age,
            replicas={_instance(labels): value for labels, value in held},
            steps=steps,
            step=self._quantiles(m.STEP, who, window).get(""),
            queue=self._quantiles(m.QUEUE, who, window).get(""),
            rows=self._quantiles(m.ROWS, who, window).get(""),
            busy=min(self._grown(m.BUSY + "_total", who, window) / window / there, 1.0),
            fed=self._grown(m.FED + "_total", who, window) / window,
            calls=total / window,
            errors=sum(calls.get(name, 0.0) for name in m.FAULTS) / total if total else 0.0,
            batch=max(sequences / steps, 1.0) if steps else 1.0,
            proposals=self._grown(m.PROPOSALS + "_total", who, window) / total if total else 0.0,
            costs=_costs(self._ask(f"{m.COST}{who}")),
        )

    def routers(self, family: str, now: float, window: float) -> RouterSignal:
        """See ``signals.Signals``."""
        window = max(window, self._least)
        who = _selector(family, "")
        age = self._age(m.RUNNING, who)
        if age == NEVER:
            return RouterSignal()
        running = self._ask(f"{m.RUNNING}{who}")
        tokens = self._grown(m.TOKENS + "_total", who, window)
        seconds = self._grown(m.ROUND + "_sum", who, window)
        agreement: dict[str, list[float]] = {}
        for labels, value in self._ask(f"{m.AGREEMENT}{who}"):
            agreement.setdefault(labels.get("level", ""), []).append(min(max(value, 0.0), 1.0))
        return RouterSignal(
            age=age,
            routers=len(running),
            arrivals=self._grown(m.REQUESTS + "_total", who, window) / window,
            tokens=tokens / window,
            prompt=self._mean(m.PROMPT, who, window),
            length=self._mean(m.LENGTH, who, window),
            per_token=seconds / tokens if tokens else None,
            tpot=self._quantiles(m.TPOT, who, window, "class"),
            ttft=self._quantiles(m.TTFT, who, window, "class"),
            running=sum(value for _, value in running),
            agreement={name: sum(rates) / len(rates) for name, rates in agreement.items()},
        )

    def _age(self, name: str, who: str) -> float:
        """Seconds since the newest sample. Prometheus marks what it can't scrape as gone at once."""
        rows = self._ask(f"min(time() - timestamp({name}{who}))")
        return max(rows[0][1], 0.0) if rows else NEVER

    def _grown(self, name: str, who: str, window: float) -> float:
        rows = self._ask(f"sum(increase({name}{who}[{_span(window)}]))")
        return rows[0][1] if rows else 0.0

    def _by(self, name: str, who: str, window: float, label: str) -> dict[str, float]:
        rows = self._ask(f"sum by ({label}) (increase({name}_total{who}[{_span(window)}]))")
        return {labels.get(label, ""): value for labels, value in rows}

    def _mean(self, name: str, who: str, window: float) -> float | None:
        count = self._grown(name + "_count", who, window)
        return self._grown(name + "_sum", who, window) / count if count else None

    def _quantiles(self, name: str, who: str, window: float, label: str = "") -> dict[str, Pair]:
        """p50 and p95 by the label; "" is all together."""
        by = f"le, {label}" if label else "le"
        rows = self._ask(f"sum by ({by}) (increase({name}_bucket{who}[{_span(window)}]))")
        found: dict[str, list[tuple[float, float]]] = {}
        for labels, value in rows:
            found.setdefault(labels.get(label, "") if label else "", []).append((_bound(labels.get("le", "")), value))
        out = {}
        for key, below in found.items():
            parts = [_counts(sorted(below))]
            p50, p95 = quantile(parts, 0.5), quantile(parts, 0.95)
            if p50 is not None and p95 is not None:
                out[key] = Pair(p50, p95)
        return out

    def _ask(self, query: str) -> list[Row]:
        """The newest values of a query's series; nothing when it can't be had."""
        now = self._clock()
        with self._lock:
            kept = self._kept.get(query)
            if kept is not None and now - kept.at < KEEP_S:
                return kept.rows
        try:
            rows = self._get(query)
            self.problem = ""
        except (OSError, ValueError) as error:
            if not self.problem:
                log.warning("Prometheus at %s can't be asked: %s", self._url, error)
            self.problem = str(error)
            rows = []
        with self._lock:
            self._kept.pop(query, None)
            self._kept[query] = Kept(now, rows)
            while len(self._kept) > MAX_KEPT:
                self._kept.pop(next(iter(self._kept)))
        return rows

    def _get(self, query: str) -> list[Row]:
        """Raises OSError, and ValueError when the answer is not what the API documents."""
        at = time.time()
        fields = {"query": query, "start": f"{at:.3f}", "end": f"{at:.3f}", "step": "1", "timeout": f"{TIMEOUT_S:g}s"}
        url = f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310  # http(s) only, see above
                text = answer.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise ValueError(f"{error.code} {error.reason}") from error
        if len(text) > MOST_BYTES:
            raise ValueError(f"an answer of more than {MOST_BYTES} bytes")
        return _rows(json.loads(text))


def _rows(answer: Any) -> list[Row]:
    """The newest value of each series of a matrix. Raises ValueError."""
    try:
        if answer["status"] != "success" or answer["data"]["resultType"] != "matrix":
            raise ValueError(f"not a matrix: {str(answer.get('error', answer['status']))[:200]}")
        rows: list[Row] = []
        for series in answer["data"]["result"]:
            value = float(series["values"][-1][1])
            if math.isfinite(value):
                rows.append(({str(k): str(v) for k, v in series["metric"].items()}, value))
        return rows
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"not an answer of Prometheus: {type(error).__name__}") from error


def _selector(family: str, level: str) -> str:
    namespace, _, name = family.rpartition("/")
    labels = {"specrouter_family": name} | ({"namespace": namespace} if namespace else {})
    labels |= {"level": level} if level else {}
    return "{" + ", ".join(f"{key}={json.dumps(value)}" for key, value in labels.items()) + "}"


def _span(window: float) -> str:
    return f"{max(1, round(window))}s"


def _bound(le: str) -> float:
    try:
        return float(le)
    except ValueError:
        return math.inf


def _counts(below: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Bounds and counts per bucket, of (bound, values up to it)."""
    bounds = [bound for bound, _ in below if math.isfinite(bound)]
    counts, before = [], 0.0
    for _, count in below:
        counts.append(max(count - before, 0.0))
        before = max(before, count)
    return bounds, counts


def _instance(labels: Labels) -> str:
    """The pod where it is known, else what was scraped."""
    return labels.get("pod") or labels.get("service_instance_id") or labels.get("instance", "")


def _costs(rows: list[Row]) -> dict[int, float]:
    out: dict[int, float] = {}
    for labels, value in rows:
        text = labels.get("rows", "")
        if value > 0 and text.isdecimal() and 0 < int(text) < 10**6:
            out[int(text)] = min(value, out.get(int(text), NEVER))
    return out
