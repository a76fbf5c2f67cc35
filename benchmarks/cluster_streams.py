"""Streams of minutes through Traefik and Envoy Gateway at once, over REST and gRPC, by clients that do not come back
when they are cut off: how long each lasted, and whether its text is the target's own.

    cluster_streams.py [--seconds 200]

Without `tests/cluster/build.sh envoy` there is Traefik alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import results
from cluster_gateways import CLIENTS, Request, Way, classes, gateways, way
from cluster_mesh import SCRIPTS, Release, cluster, until

PROMPT, SEED = "Name three rivers.", 7
STEP_S = 0.25  # of the target: a token, and a message


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"{time.strftime('%T')}  {text}\n")


def stream(through: Way, kind: str, tokens: int, text: str) -> dict[str, Any]:
    """The row of a text by the target alone, which must be ``text``."""
    one = CLIENTS[kind](through, Request(PROMPT, tokens, SEED, chain=("target",)))
    what = f"{kind} through {through.name}"
    say(f"{what}: {one.seconds:.0f} s, {one.parts} messages, {one.error or 'whole'}")
    longest = {"longest gap s": one.gap, "cut": one.error, "identical": one.text == text}
    return {"what": what, "seconds": one.seconds, "messages": one.parts} | longest


def measure(release: Release, seconds: float) -> None:
    """All streams at once; writes the results."""
    names, tokens = classes(release.cluster), round(seconds / STEP_S)
    slow = f"family.spec.levels[2].stepMs=1:{STEP_S * 1000:g}"
    release.prepare()
    release.install(*gateways(release, names), "--set", slow, "--set", "router.replicas=1,operator.replicas=1")
    until(lambda: release.ask(PROMPT, 1), 240)
    until(release.settled, 240, 1.0)
    ways = [way(release, name) for name in names]
    say("asking for the text")
    text = release.ask(PROMPT, tokens, seed=SEED, temperature=0.8)
    say("streaming")
    jobs = [(one, kind) for one in ways for kind in CLIENTS]
    with ThreadPoolExecutor(len(jobs)) as pool:
        rows = list(pool.map(lambda job: stream(job[0], job[1], tokens, text), jobs))
    cut, changed = sum(bool(row["cut"]) for row in rows), sum(not row["identical"] for row in rows)
    summary = {"streams": len(rows), "cut": cut, "changed": changed}
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
            release.helm("uninstall", release.name)
            found.kubectl("delete", "namespace", release.namespace, "--wait=false")


main()
