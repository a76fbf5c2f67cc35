"""The chart's routes through two Gateways at once, Traefik and Envoy Gateway: the same texts, and streams that last."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from cluster_gateways import CLASSES, CLIENTS, Request, Streamed, Way, classes, gateways, way
from cluster_mesh import SCRIPTS, Cluster, Release, until

PROMPT, SEED = "Name three rivers.", 7
SHORT, STEP_S = 40, 0.25
# longer than the 15 s that Envoy gives a request unless told otherwise, and than the 60 s of most other proxies
LONG = 66


@pytest.fixture(scope="module")
def release(real_cluster: Cluster) -> Iterator[Release]:
    made = Release(
        real_cluster,
        SCRIPTS / "stub-values.yaml",
        namespace="net-gates",
        rest_host="rest.gates.test",
        grpc_host="grpc.gates.test",
    )
    made.prepare()
    slow = f"family.spec.levels[2].stepMs=1:{STEP_S * 1000:g}"
    made.install(
        *gateways(made, classes(real_cluster)),
        "--set",
        slow,
        "--set",
        "router.replicas=1",
        "--set",
        "operator.replicas=1",
    )
    try:
        until(lambda: made.ask(PROMPT, 1), 240)
        yield made
    finally:
        made.uninstall()
        real_cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


@pytest.fixture(scope="module")
def ways(release: Release) -> dict[str, Way]:
    def answers(one: Way, kind: str) -> bool:
        return not CLIENTS[kind](one, Request(PROMPT, 1, SEED)).error

    found = {name: way(release, name) for name in classes(release.cluster)}
    for one in found.values():
        until(partial(answers, one, "rest"), 120)
        until(partial(answers, one, "grpc"), 60)
    return found


def needs(ways: dict[str, Way], name: str) -> Way:
    if name not in ways:
        pytest.skip(f"the cluster has no Gateway class {name}: tests/cluster/build.sh {name}, then up.sh {name}")
    return ways[name]


@pytest.mark.parametrize("name", CLASSES)
def test_each_gateway_gives_the_targets_own_text(release: Release, ways: dict[str, Way], name: str) -> None:
    through = needs(ways, name)
    alone = release.ask(PROMPT, SHORT, seed=SEED, temperature=0.8, specrouter={"chain": ["target"]})
    streamed = {kind: client(through, Request(PROMPT, SHORT, SEED)) for kind, client in CLIENTS.items()}
    streamed["json"] = CLIENTS["rest"](through, Request(PROMPT, SHORT, SEED, stream=False))
    assert {kind: (one.text, one.error) for kind, one in streamed.items()} == dict.fromkeys(streamed, (alone, ""))
    assert streamed["rest"].parts > 5 and streamed["grpc"].parts > 5, "the Gateway held the stream back"


def test_no_gateway_cuts_a_stream_that_lasts(release: Release, ways: dict[str, Way]) -> None:
    """All of them at once: a text by the target alone, of a step at a time."""
    tokens = int(LONG / STEP_S)
    text = release.ask(PROMPT, tokens, seed=SEED, temperature=0.8)
    request = Request(PROMPT, tokens, SEED, chain=("target",))

    def stream(through: Way, kind: str) -> Streamed:
        return CLIENTS[kind](through, request)

    pairs = list(itertools.product(ways.values(), CLIENTS))
    with ThreadPoolExecutor(len(pairs)) as pool:
        done = list(pool.map(lambda pair: stream(*pair), pairs))
    seen = {(through.name, kind): one for (through, kind), one in zip(pairs, done, strict=True)}
    assert not {pair: (one.error, one.seconds) for pair, one in seen.items() if one.error}
    assert {one.text for one in done} == {text}
    assert min(one.seconds for one in done) >= LONG - STEP_S
