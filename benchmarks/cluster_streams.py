"""Streams of minutes through Traefik and Envoy Gateway at once, over REST and gRPC, by clients that do not come back
when they are cut off: how long each lasted, and whether its text is the target's own.

    cluster_streams.py [--seconds 200]

Steady: a token every quarter of a second. Quiet: one in 45 seconds, as from a level that is very slow or reads a very
long prompt. Without `tests/cluster/build.sh envoy` there is Traefik alone.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import results
from cluster_gateways import CLIENTS, Request, Way, classes, gateways, way
from cluster_mesh import CHART, SCRIPTS, Release, cluster, until

PROMPT, SEED = "Name three rivers.", 7
STEADY_S, QUIET_S = 0.25, 45.0


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"{time.strftime('%T')}  {text}\n")


def streamed(ways: list[Way], what: str, tokens: int, text: str) -> list[dict[str, Any]]:
    """A row for each stream of a text by the target alone. ``text``: what they must give, or begins with it."""
    request = Request(PROMPT, tokens, SEED, chain=("target",))
    pairs = list(itertools.product(ways, CLIENTS))
    with ThreadPoolExecutor(len(pairs)) as pool:
        done = list(pool.map(lambda pair: CLIENTS[pair[1]](pair[0], request), pairs))
    rows = []
    for (through, kind), one in zip(pairs, done, strict=True):
        same = bool(one.text) and text.startswith(one.text) and not one.error
        rows.append(
            {
                "what": f"{what}, {kind} through {through.name}",
                "seconds": one.seconds,
                "messages": one.parts,
                "longest gap s": one.gap,
                "cut": one.error,
                "identical": same,
            }
        )
        say(f"{what}, {kind} through {through.name}: {one.seconds:.0f} s, {one.parts} messages, {one.error or 'whole'}")
    return rows


def slow(seconds: float) -> tuple[str, str]:
    """The setting that makes a step of the target take so long."""
    return "--set", f"family.spec.levels[2].stepMs=1:{seconds * 1000:g}"


def measure(release: Release, seconds: float) -> None:
    """All of it; writes the results."""
    release.prepare()
    names = classes(release.cluster)
    settings = [*gateways(release, names), "--set", "router.replicas=1", "--set", "operator.replicas=1"]
    release.install(*settings, *slow(STEADY_S))
    until(lambda: release.ask(PROMPT, 1), 240)
    ways = [way(release, name) for name in names]
    tokens = round(seconds / STEADY_S)
    text = release.ask(PROMPT, tokens, seed=SEED, temperature=0.8)
    rows = streamed(ways, "steady", tokens, text)
    results.write("cluster_streams", rows)
    release.helm("upgrade", release.name, CHART, "--values", release.values, *settings, *slow(QUIET_S))
    time.sleep(5)
    until(release.settled, 240)
    rows += streamed(ways, "quiet", round(seconds / QUIET_S), text)
    cut = sum(bool(row["cut"]) for row in rows)
    summary = {"streams": len(rows), "cut": cut, "changed": sum(not row["identical"] for row in rows)}
    results.write("cluster_streams", rows, summary | {"shortest_s": min(row["seconds"] for row in rows)})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=200)
    given = parser.parse_args()
    with cluster(say) as found:
        hosts = {"rest_host": "rest.streams.test", "grpc_host": "grpc.streams.test"}
        release = Release(found, SCRIPTS / "stub-values.yaml", namespace="net-streams", **hosts)
        try:
            measure(release, given.seconds)
        finally:
            release.uninstall()
            found.kubectl("delete", "namespace", release.namespace, "--wait=false")


main()
