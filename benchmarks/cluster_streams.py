"""Streams of minutes through Traefik and Envoy Gateway at once, over REST and gRPC, by clients that do not come back
when they are cut off: how long each lasted, and whether its text is the target's own.

    cluster_streams.py [--seconds 200]

Steady: a token every quarter of a second. Quiet: one in 45 seconds, as from a level that is very slow or reads a very
long prompt. Without `tests/cluster/build.sh envoy` there is Traefik alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import results
from cluster_gateways import CLIENTS, Request, Way, classes, gateways, way
from cluster_mesh import SCRIPTS, Cluster, Release, cluster, until

PROMPT, SEED = "Name three rivers.", 7


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"{time.strftime('%T')}  {text}\n")


@dataclass(frozen=True)
class Pace:
    """Of a mesh: seconds of each of its target's steps."""

    name: str
    step: float


PACES = (Pace("steady", 0.25), Pace("quiet", 45.0))


def installed(found: Cluster, pace: Pace) -> tuple[Release, list[Way]]:
    """A mesh of this pace behind all Gateways, with all that runs."""
    hosts = {"rest_host": f"rest.{pace.name}.test", "grpc_host": f"grpc.{pace.name}.test"}
    release = Release(found, SCRIPTS / "stub-values.yaml", namespace=f"net-{pace.name}", **hosts)
    release.prepare()
    names = classes(found)
    slow = f"family.spec.levels[2].stepMs=1:{pace.step * 1000:g}"
    one = ("--set", "router.replicas=1", "--set", "operator.replicas=1")
    release.install(*gateways(release, names), "--set", slow, *one)
    return release, [way(release, name) for name in names]


def stream(pace: Pace, through: Way, kind: str, seconds: float, text: str) -> dict[str, Any]:
    """The row of a text by the target alone. ``text`` is what it must give, or begins with that."""
    one = CLIENTS[kind](through, Request(PROMPT, round(seconds / pace.step), SEED, chain=("target",)))
    what = f"{pace.name}, {kind} through {through.name}"
    say(f"{what}: {one.seconds:.0f} s, {one.parts} messages, {one.error or 'whole'}")
    same = bool(one.text) and text.startswith(one.text) and not one.error
    longest = {"longest gap s": one.gap, "cut": one.error, "identical": same}
    return {"what": what, "seconds": one.seconds, "messages": one.parts} | longest


def measure(found: Cluster, seconds: float) -> None:
    """All streams at once; writes the results."""
    meshes = {pace: installed(found, pace) for pace in PACES}
    try:
        steady = meshes[PACES[0]][0]
        until(lambda: steady.ask(PROMPT, 1), 240)
        until(lambda: all(release.settled() for release, _ in meshes.values()), 240, 1.0)
        say("asking for the text")
        text = steady.ask(PROMPT, round(seconds / PACES[0].step), seed=SEED, temperature=0.8)
        say("streaming")
        jobs = [(pace, one, kind) for pace, (_, ways) in meshes.items() for one in ways for kind in CLIENTS]
        with ThreadPoolExecutor(len(jobs)) as pool:
            rows = list(pool.map(lambda job: stream(*job, seconds, text), jobs))
    finally:
        for release, _ in meshes.values():
            release.helm("uninstall", release.name)
            found.kubectl("delete", "namespace", release.namespace, "--wait=false")
    cut, changed = sum(bool(row["cut"]) for row in rows), sum(not row["identical"] for row in rows)
    summary = {"streams": len(rows), "cut": cut, "changed": changed}
    results.write("cluster_streams", rows, summary | {"shortest_s": min(row["seconds"] for row in rows)})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=200)
    given = parser.parse_args()
    with cluster(say) as found:
        measure(found, given.seconds)


main()
