"""Whatever goes wrong on the way, the end is that of a run without faults.

After Sieve (Sun et al., OSDI 2022: crashes between writes, stale and missed events) and Acto (Gu et al., SOSP 2023).
"""

from __future__ import annotations

import datetime
import json
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from api_faults import Killed, KilledAtNew, Proxy, Storm, proxied
from deaths import AT_ONCE, QUICK, dies, lives, places, scenario
from kube import Place, differences, until

from specrouter_operator.resource import LEASE, Object


@pytest.fixture(scope="module")
def clean(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Object], int]:
    """The end of a run without faults, and how many writes it took."""
    with places(cluster, tmp_path_factory.mktemp("clean")) as made:
        return lives(made(), cluster)[:2]


def generations(place: Place, cluster: Path, writes: int, delivered: bool) -> tuple[dict[str, Object], int]:
    """The scenario with operators that each die at their write number ``writes``; one follows the other."""
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        end, deaths = pool.submit(scenario, place), 0
        while not end.done():
            plan = Killed(writes, delivered)
            operator = place.operator(stack.enter_context(proxied(cluster, plan)).url, pace=QUICK, leads=True)
            while not plan.dead.wait(0.05) and not end.done():
                pass
            deaths += plan.dead.is_set()
            operator._stop.set()
        return end.result(), deaths


@pytest.mark.parametrize(("writes", "delivered"), [(2, False), (1, True)], ids=["after-each", "answer-lost"])
def test_death_between_any_two_writes(
    cluster: Path, tmp_path: Path, clean: tuple[dict[str, Object], int], writes: int, delivered: bool
) -> None:
    """Each operator gets one write done, and dies: before the next one, or before it hears of the first."""
    with places(cluster, tmp_path) as made:
        end, deaths = generations(made(), cluster, writes, delivered)
        assert not differences(clean[0], end)
        assert deaths >= clean[1] // 2  # a later operator finds some things done, as those that are being watched


@pytest.mark.parametrize("backend", ["Deployment", "KServe"])
def test_death_at_a_write(cluster: Path, tmp_path: Path, backend: str) -> None:
    """One death, at a write that must come, and the next one leads when the lease has run out. deaths.py has every
    write."""
    with places(cluster, tmp_path) as made, ThreadPoolExecutor(AT_ONCE) as pool:
        wanted, _, new = lives(made(), cluster, backend)
        plans = [KilledAtNew(at, bool(at % 2)) for at in random.Random(1).sample(range(2, new + 1), AT_ONCE)]
        runs = [pool.submit(dies, made(), cluster, plan, backend) for plan in plans]
        for run in runs:
            end, plan = run.result()
            assert plan.dead.is_set(), (plan.at, new)
            assert not differences(wanted, end)


def test_storms_of_faults(cluster: Path, tmp_path: Path, clean: tuple[dict[str, Object], int]) -> None:
    def run(place: Place, seed: int) -> tuple[dict[str, Object], Proxy]:
        with proxied(cluster, Storm(seed)) as proxy:
            place.operator(proxy.url, pace=QUICK)
            return scenario(place), proxy

    with places(cluster, tmp_path) as made, ThreadPoolExecutor(AT_ONCE) as pool:
        for one in [pool.submit(run, made(), seed) for seed in range(4)]:
            end, proxy = one.result()
            assert not differences(clean[0], end)
            assert proxy.faults >= 30


def test_two_leaders_at_once(cluster: Path, tmp_path: Path, clean: tuple[dict[str, Object], int]) -> None:
    """Should the lease ever fail, two operators that write the same wishes do no harm."""
    with places(cluster, tmp_path) as made, proxied(cluster, Storm(5, share=0.1)) as proxy:
        place = made()
        for url in (None, proxy.url):
            place.operator(url, pace=QUICK, leads=True)
        assert not differences(clean[0], scenario(place))


def test_clocks_that_disagree(cluster: Path, tmp_path: Path, clean: tuple[dict[str, Object], int]) -> None:
    """Two replicas, an hour fast and an hour slow: one leads at a time, the other takes over, the end is the same."""
    with places(cluster, tmp_path) as made:
        place = made()
        pair = []
        for hours in (1, -1):
            skew = datetime.timedelta(hours=hours)
            pair.append(place.operator(pace=QUICK, today=lambda skew=skew: datetime.datetime.now(datetime.UTC) + skew))
        both = []

        def watched() -> dict[str, Object]:
            return scenario(place)

        with ThreadPoolExecutor(1) as pool:
            end = pool.submit(watched)
            until("one leads", lambda: any(one.lease.held() for one in pair))
            turns = 0
            while not end.done():
                both.append(all(one.lease.held() for one in pair))
                leader = next((one for one in pair if one.lease.held()), None)
                if leader is not None and turns < 1 and len(both) > 30:
                    turns += 1
                    leader._stop.set()  # hung: it neither renews nor gives back
                    leader.lease._release = lambda: None  # type: ignore[method-assign]
                time.sleep(0.05)
        assert not any(both) and turns == 1
        assert not differences(clean[0], end.result())


def test_processes_killed_again_and_again(cluster: Path, tmp_path: Path, clean: tuple[dict[str, Object], int]) -> None:
    """The real command, SIGKILLed at random times while the scenario runs."""
    with places(cluster, tmp_path) as made, ThreadPoolExecutor(1) as pool:
        place = made()
        config = place.operator_kubeconfig()
        command = [sys.executable, "-c", "from specrouter_operator.scripts import main; main()", "run"]
        options = {"namespace": place.name, "kubeconfig": config, "port": 0, "otlp-port": 0, "lease-seconds": 1}
        options |= {"otlp-endpoint": "http://collector:4317", "relist-seconds": 2, "watch-seconds": 3}
        command += [f"--{name}={value}" for name, value in options.items()]
        chance, kills = random.Random(1), 0
        end = pool.submit(scenario, place)
        while True:
            with (tmp_path / "operator.log").open("ab") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                while not end.done() and process.poll() is None:
                    lease = place.get(LEASE, "specrouter-operator")
                    if kills < 4 and lease is not None and process.poll() is None:
                        time.sleep(chance.uniform(0.8, 2.0))  # from before it leads to after
                        process.send_signal(signal.SIGKILL)
                        kills += 1
                        break
                    time.sleep(0.1)
            finally:
                if end.done() or process.poll() is None:
                    process.kill()
                process.wait(10)
            if end.done():
                break
        assert kills >= 2, (tmp_path / "operator.log").read_text()[-2000:]
        assert not differences(clean[0], end.result())


def test_dumps_show_what_matters(clean: tuple[dict[str, Object], int]) -> None:
    """The comparison would see a difference."""
    end, writes = clean
    assert writes > 20
    assert {
        "ModelFamily/demo",
        "RoutingPolicy/demo",
        "Deployment/demo-draft-predictor",
        "ConfigMap/demo-family",
    } <= set(end)
    assert end["Deployment/demo-draft-predictor"]["spec"]["replicas"] == 3  # two copies of 2, at most 3
    changed = json.loads(json.dumps(end))
    changed["Deployment/demo-draft-predictor"]["spec"]["replicas"] = 1
    assert differences(end, changed) == [".Deployment/demo-draft-predictor.spec.replicas: 1 in place of 3"]
