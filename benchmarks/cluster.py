"""The chart on a real cluster, measured: from install to the first token, from a policy's edit to the routers, and
what clients see of killed pods and of upgrades.

    cluster.py [--demo]     # --demo: with the demo family's models (made by `specrouter models pull demo`) besides
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import results
from cluster_load import Load, Seen
from cluster_mesh import CHART, MODELS, SCRIPTS, Release, cluster, models_volume, until

POLICY_EDITS = 5
VICTIMS = {
    "a target replica": "specrouter.dev/level=target",
    "the middle level": "specrouter.dev/level=mid",
    "the draft": "specrouter.dev/level=draft",
    "a router": "app.kubernetes.io/component=router",
    "Redis": "app.kubernetes.io/component=redis",
    "an operator": "app.kubernetes.io/component=operator",
}
Row = dict[str, Any]


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"{time.strftime('%T')}  {text}\n")


def installed(release: Release, family: str, rows: list[Row]) -> float:
    """Install, until the first answer came through the Gateway; seconds."""
    release.prepare()
    begin = time.monotonic()
    release.install("--set", f"family.name={family}")
    until(lambda: release.ask("Name three rivers.", 1, family=family), 900)
    took = time.monotonic() - begin
    until(release.settled, 300)
    rows.append({"what": f"install of {family} to the first token", "seconds": took})
    say(f"first token of {family} after {took:.1f} s")
    return took


def policy(release: Release, rows: list[Row]) -> float:
    """The longest time from a policy's edit until every router has it, of a few; seconds."""

    def known(weight: int) -> bool:
        return set(release.weights("mid")) == {weight}

    times = []
    for i in range(POLICY_EDITS):
        weight = 40 + i
        change = json.dumps({"spec": {"weights": {"pins": {"mid": weight}}}})
        begin = time.monotonic()
        release.kubectl("patch", "rpol", "stub", "--type=merge", "-p", change)
        until(partial(known, weight), 60, 0.05)
        times.append(time.monotonic() - begin)
    release.kubectl("patch", "rpol", "stub", "--type=merge", "-p", json.dumps({"spec": {"weights": None}}))
    rows.append({"what": "policy edit to all routers", "seconds": statistics.median(times), "worst": max(times)})
    say(f"policy edits: {', '.join(f'{one:.1f}' for one in times)} s")
    return max(times)


async def kills(release: Release, load: Load, rows: list[Row]) -> list[Seen]:
    """Kill one pod of each kind under streams."""
    all_seen = []
    for what, selector in VICTIMS.items():
        await asyncio.to_thread(until, release.settled, 180)

        async def kill(selector: str = selector) -> None:
            victim = release.pods(selector)[0]
            await asyncio.to_thread(release.kubectl, "delete", "pod", victim, "--grace-period=0", "--force")
            await asyncio.sleep(8)

        seen = await load.during(kill)
        rows.append(row(f"killed: {what}", seen))
        say(f"killed {what}: {seen}")
        all_seen.append(seen)
    return all_seen


async def upgrades(release: Release, load: Load, rows: list[Row]) -> list[Seen]:
    """Upgrade routers, operator and two levels under streams, and roll back."""
    changed = ["--set-string=router.podAnnotations.try=2", "--set-string=operator.podAnnotations.try=2"]
    changed += ["--set=family.spec.levels[1].slots=24", "--set=family.spec.levels[2].slots=24"]
    upgrade = ["upgrade", release.name, str(CHART), "--values", str(release.values)]
    all_seen = []
    for what, verb in {
        "upgrade": [*upgrade, *changed],
        "rollback": ["rollback", release.name, "1"],
    }.items():
        await asyncio.to_thread(until, release.settled, 180)

        async def act(verb: list[str] = verb) -> None:
            await asyncio.to_thread(release.helm, *verb)
            await asyncio.sleep(5)
            await asyncio.to_thread(until, release.settled, 300, 1.0)

        seen = await load.during(act)
        rows.append(row(what, seen))
        say(f"{what}: {seen}")
        all_seen.append(seen)
    return all_seen


def row(what: str, seen: Seen) -> Row:
    """Of the table."""
    return {
        "what": what,
        "texts": seen.texts,
        "changed": seen.changed,
        "failed": seen.failed,
        "breaks": len(seen.breaks),
        "gap s": max(seen.gaps, default=0.0),
    }


async def stub(release: Release, rows: list[Row], summary: dict[str, float]) -> None:
    """All of it, with levels that need no weights."""
    summary["install_to_token_s"] = installed(release, "stub", rows)
    summary["policy_to_router_s"] = policy(release, rows)
    load = Load(release, "stub")
    await load.learn()
    killed = await kills(release, load, rows)
    summary["kill_texts"] = sum(seen.texts for seen in killed)
    summary["kill_changed_texts"] = sum(seen.changed + seen.failed for seen in killed)
    summary["kill_gap_s"] = max(max(seen.gaps) for seen in killed)
    results.write("cluster", rows, summary)
    upgraded = await upgrades(release, load, rows)
    summary["upgrade_requests"] = sum(seen.texts for seen in upgraded)
    summary["upgrade_failed_requests"] = sum(seen.failed for seen in upgraded)
    summary["upgrade_changed_texts"] = sum(seen.changed for seen in upgraded)
    results.write("cluster", rows, summary)
    begin = time.monotonic()
    release.uninstall()
    summary["uninstall_s"] = time.monotonic() - begin


def demo(release: Release, rows: list[Row], summary: dict[str, float]) -> None:
    """Install to the first token with real models, and whether the chain's text is the target's own."""
    release.prepare()
    models_volume(release)
    summary["demo_install_to_token_s"] = installed(release, "demo", rows)
    wrong = 0
    for seed, prompt in enumerate(("Name three rivers.", "Why is the sky blue?")):
        body: Row = {"family": "demo", "seed": seed, "temperature": 0.7}
        alone = release.ask(prompt, 40, specrouter={"chain": ["target"]}, **body)
        wrong += release.ask(prompt, 40, **body) != alone
        say(f"demo: {alone!r}")
    summary["demo_changed_texts"] = wrong
    rows.append({"what": "demo: chain against target alone", "texts": 2, "changed": wrong})
    release.uninstall()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true")
    given = parser.parse_args()
    if given.demo and not (Path(MODELS) / "smollm2-135m-instruct").is_dir():
        sys.exit("the demo family's models are not there: specrouter models pull demo")
    rows: list[Row] = []
    summary: dict[str, float] = {}
    with cluster(say) as found:
        asyncio.run(stub(Release(found, SCRIPTS / "stub-values.yaml"), rows, summary))
        if given.demo:
            demo(Release(found, SCRIPTS / "demo-values.yaml", namespace="demo"), rows, summary)
    results.write("cluster", rows, summary)


main()
