"""Two versions of router, levels and operator side by side: every mix of them, one part exchanged after another, under
streams through the Gateway, whose texts must be those that the target alone gave in the first version.

    cluster_skew.py OLD NEW     # tags of images that the cluster has; tests/cluster/dockerfile.sh makes them
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import results
from cluster_load import Load, Seen
from cluster_mesh import CHART, SCRIPTS, Release, cluster, until

PARTS = ("router", "level", "operator")
# Each mix is had once, and each differs from the one before in one part: forward and back.
MIXES = ("000", "001", "011", "010", "110", "111", "101", "100", "000")
STAY_S = 6.0  # under streams, after a part is exchanged


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"{time.strftime('%T')}  {text}\n")


def settings(mix: str, tags: tuple[str, str]) -> list[str]:
    """Of helm, for a mix."""
    return [f"--set-string={part}.image.tag={tags[int(which)]}" for part, which in zip(PARTS, mix, strict=True)]


async def exchanged(release: Release, load: Load, mix: str, tags: tuple[str, str]) -> Seen:
    """Upgrade to a mix under streams."""

    def upgrade() -> None:
        release.helm("upgrade", release.name, CHART, "--values", release.values, *settings(mix, tags))
        time.sleep(STAY_S)
        until(release.settled, 300, 1.0)
        images = {tag for tag in tags if mix not in ("000", "111")} or {tags[int(mix[0])]}
        there = {
            container["image"].rpartition(":")[2]
            for pod in release.get("pods")["items"]
            for container in pod["spec"]["containers"]
            if "specrouter/" in container["image"] and "deletionTimestamp" not in pod["metadata"]
        }
        if not images <= there:
            raise RuntimeError(f"mix {mix}: images of {', '.join(sorted(there))} run")
        release.kubectl("wait", "--for=condition=Ready", "--timeout=120s", "mf/stub", "rpol/stub")

    async def act() -> None:
        await asyncio.to_thread(upgrade)

    return await load.during(act)


async def run(release: Release, tags: tuple[str, str], rows: list[dict[str, object]]) -> dict[str, float]:
    """All mixes."""
    release.install(*settings(MIXES[0], tags))
    until(lambda: release.ask("Name three rivers.", 1), 240)
    until(release.settled, 120)
    load = Load(release, "stub")
    await load.learn()
    texts = changed = failed = 0
    for mix in MIXES[1:]:
        names = ", ".join(f"{part} {tags[int(which)]}" for part, which in zip(PARTS, mix, strict=True))
        seen = await exchanged(release, load, mix, tags)
        fresh = release.kubectl(
            "get", "rpol/stub", "-o", "jsonpath={.status.conditions[?(@.type=='SignalsFresh')].status}"
        )
        say(f"{names}: {seen}; signals fresh: {fresh}")
        rows.append(
            {
                "mix": names,
                "texts": seen.texts,
                "changed": seen.changed,
                "failed": seen.failed,
                "longest gap s": max(seen.gaps, default=0.0),
                "signals fresh": fresh,
            }
        )
        texts, changed, failed = texts + seen.texts, changed + seen.changed, failed + seen.failed
        results.write("cluster_skew", rows, {"texts": texts, "changed_texts": changed, "failed_requests": failed})
    return {"texts": texts, "changed_texts": changed, "failed_requests": failed}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new")
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    hosts = {"rest_host": "rest.mesh.test", "grpc_host": "grpc.mesh.test"}
    with cluster(say) as found:
        release = Release(found, SCRIPTS / "stub-values.yaml", namespace="skew", **hosts)
        try:
            asyncio.run(run(release, (given.old, given.new), rows))
        finally:
            release.uninstall()


main()
