"""A scenario on the API server, and an operator that dies at one of its writes. Run as a program: at every single one.

    .venv/bin/python tests/operator/deaths.py [--part 1/2] [--again 3] [--backend KServe]

Each write twice: the operator dies before it is sent, and after it was carried out but before the answer. Prints each
case that ends other than the run without faults; exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from api_faults import Killed, KilledAtNew, proxied
from control_plane import control_plane
from families import level, policy
from kube import Kubelet, Place, differences, until

from specrouter_operator.operator import Pace
from specrouter_operator.resource import FAMILY, POLICY, Object

QUICK = Pace(relist=2.0, watch=3, lease=1.5, retry=0.15)
AT_ONCE = 4  # scenarios
BEFORE = [level("draft", replicas={"min": 1, "max": 3}), level("mid"), level("target")]
AFTER = [level("draft", replicas={"min": 2, "max": 3}), level("target", slots=8)]


def scenario(place: Place, backend: str = "Deployment") -> dict[str, Object]:
    """Two families and a policy come; one family changes and loses a level, the other goes. Returns the end."""
    place.create("ModelFamily", "demo", {"backend": backend, "levels": BEFORE})
    place.create("ModelFamily", "other", {"backend": backend, "levels": [level("target")]})
    place.create("RoutingPolicy", "demo", policy("demo", scaling={"mode": "Manual"}))
    place.settled(90)
    place.edit(FAMILY, "demo", {"levels": AFTER, "replicas": 2})
    place.edit(POLICY, "demo", {"weights": {"pins": {"draft": 40}}})
    place.kubectl("delete", "mf", "other", "--wait=false")

    def swept() -> bool:
        names = " ".join(place.dump())
        return "mid" not in names and "other" not in names

    until("level and family are gone", swept, 90, every=0.3)
    return place.settled(90)


@contextmanager
def places(cluster: Path, folder: Path) -> Iterator[Callable[[], Place]]:
    """Makes namespaces, and ends them all."""
    with ExitStack() as stack:

        def made() -> Place:
            place = Place(cluster, folder)
            stack.callback(place.close)
            return place

        yield made


def lives(place: Place, cluster: Path, backend: str = "Deployment") -> tuple[dict[str, Object], int, int]:
    """The scenario without faults: its end, how many writes it took, and how many of them were new."""
    counted = KilledAtNew(0, False)  # never
    with proxied(cluster, counted) as proxy:
        place.operator(proxy.url, pace=QUICK)
        return scenario(place, backend), proxy.writes, counted.writes


def dies(place: Place, cluster: Path, plan: Killed, backend: str) -> tuple[dict[str, Object], Killed]:
    """The scenario with an operator that dies at a write, and one that comes after it."""
    with proxied(cluster, plan) as proxy, ThreadPoolExecutor(1) as pool:
        first = place.operator(proxy.url, pace=QUICK)
        end = pool.submit(scenario, place, backend)
        while not plan.dead.wait(0.1) and not end.done():
            pass
        first._stop.set()  # it can neither write nor give back its lease
        place.operator(pace=QUICK)
        return end.result(), plan


@dataclass(frozen=True)
class Outcome:
    """Of one death. ``fault``: what ended otherwise; "" when nothing did."""

    at: int
    delivered: bool
    died: bool
    seconds: float
    fault: str


def every(cluster: Path, folder: Path, backend: str, part: int, parts: int, again: int) -> Iterator[Outcome]:
    """All deaths of one part, as they end."""
    with places(cluster, folder) as made:
        wanted, writes, _ = lives(made(), cluster, backend)
    print(f"{writes} writes without faults", flush=True)
    cases = [(at, bool(lost)) for at in range(1, writes + 1) for lost in (0, 1)][part - 1 :: parts] * again

    def run(at: int, delivered: bool) -> Outcome:
        begun, plan, fault = time.monotonic(), None, ""
        with places(cluster, folder) as made:
            try:
                end, plan = dies(made(), cluster, Killed(at, delivered), backend)
                fault = "; ".join(differences(wanted, end))
            except AssertionError as error:
                fault = str(error)
        died = plan is None or plan.dead.is_set()
        return Outcome(at, delivered, died, time.monotonic() - begun, fault)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from (one.result() for one in as_completed([pool.submit(run, *case) for case in cases]))


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="which of how many parts of all cases")
    parser.add_argument("--again", type=int, default=1, help="times that each case is run")
    parser.add_argument("--backend", default="Deployment", choices=["Deployment", "KServe"])
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    found: list[Outcome] = []
    with control_plane() as cluster, tempfile.TemporaryDirectory() as folder:
        kubelet = Kubelet(cluster)
        kubelet.start()
        for one in every(cluster, Path(folder), args.backend, part, parts, args.again):
            found.append(one)
            what = one.fault or ("as without faults" if one.died else "as without faults, but it never died")
            when = "after" if one.delivered else "before"
            print(f"{len(found):4} died {when} write {one.at:3}: {one.seconds:5.1f} s, {what}", flush=True)
        kubelet.stop()
    wrong = sum(bool(one.fault) for one in found)
    print(f"{len(found)} deaths, {sum(one.died for one in found)} happened, {wrong} ended otherwise")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
