"""Gateways of several classes in front of one release of the chart, and streams through them by clients that do not
come back when they are cut off."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import httpx
import openai
from openai.types import Completion

from cluster_mesh import GATEWAY_PORT, Cluster, Object, Release, until
from specrouter.v1 import level_pb2, router_pb2
from specrouter.v1.router_pb2_grpc import RouterServiceStub

CLASSES = ("traefik", "envoy")
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Way:
    """Through one Gateway. ``address``: host:port; ``host``: the name of REST or gRPC there."""

    name: str
    address: str
    rest_host: str
    grpc_host: str


@dataclass(frozen=True)
class Request:
    """For a text. ``chain``: of these levels alone; empty: what the router chooses."""

    prompt: str
    tokens: int
    seed: int
    chain: tuple[str, ...] = ()
    model: str = "stub"
    stream: bool = True


@dataclass(frozen=True)
class Streamed:
    """What came. ``parts``: messages; ``seconds`` from request to end; ``gap``: the longest time without a message,
    seconds; ``error``: why it ended too soon, empty when it did not."""

    text: str
    parts: int
    seconds: float
    gap: float
    error: str = ""


Client = Callable[[Way, Request], Streamed]


def classes(cluster: Cluster) -> list[str]:
    """Those of CLASSES that the cluster has."""
    found = json.loads(cluster.kubectl("get", "gatewayclasses", "-o", "json"))["items"]
    names = {one["metadata"]["name"] for one in found}
    return [name for name in CLASSES if name in names]


def gateways(release: Release, names: Sequence[str]) -> list[str]:
    """Make a Gateway of each class, called as it; what to install the release with, so that it is behind all of
    them."""
    for name in names:
        listeners = [
            {"name": kind, "hostname": host, "port": GATEWAY_PORT, "protocol": "HTTP"}
            for kind, host in (("rest", release.rest_host), ("grpc", release.grpc_host))
        ]
        made = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": name},
            "spec": {"gatewayClassName": name, "listeners": listeners},
        }
        release.kubectl("apply", "-f", "-", given=json.dumps(made))
    settings = ["gateway.create=false", f"gateway.rest.hostname={release.rest_host}"]
    settings.append(f"gateway.grpc.hostname={release.grpc_host}")
    settings += [f"gateway.parentRefs[{i}].name={name}" for i, name in enumerate(names)]
    return [part for setting in settings for part in ("--set", setting)]


def way(release: Release, name: str) -> Way:
    """Through the Gateway of this class, once it is there. Raises TimeoutError."""
    address = release.cluster.gateway
    if name == "envoy":
        # Envoy Gateway makes a Service for each Gateway; kube-proxy leads to it from the node as well
        selector = f"gateway.envoyproxy.io/owning-gateway-namespace={release.namespace}"
        found: list[Object] = []

        def there() -> bool:
            services = ("get", "services", "-A", "-l", selector, "-o", "json")
            found[:] = json.loads(release.cluster.kubectl(*services))["items"]
            return bool(found)

        until(there, 60)
        address = f"{found[0]['spec']['clusterIP']}:{GATEWAY_PORT}"
    return Way(name, address, release.rest_host, release.grpc_host)


def rest(way: Way, request: Request) -> Streamed:
    """By the ``openai`` client."""
    client = openai.OpenAI(
        base_url=f"http://{way.address}/v1",
        api_key="none",
        default_headers={"Host": way.rest_host},
        max_retries=0,
        timeout=600,
    )
    ours = {"specrouter": {"chain": list(request.chain)}} if request.chain else None
    begin, texts, times, error = time.monotonic(), [], [], ""
    try:
        answer = client.completions.create(
            model=request.model,
            prompt=request.prompt,
            max_tokens=request.tokens,
            seed=request.seed,
            temperature=TEMPERATURE,
            stream=request.stream,
            extra_body=ours,
        )
        for chunk in [answer] if isinstance(answer, Completion) else answer:
            times.append(time.monotonic())
            texts += [choice.text for choice in chunk.choices]
    except (openai.APIError, httpx.HTTPError) as problem:
        error = f"{type(problem).__name__}: {problem}"
    return _streamed("".join(texts), begin, times, error)


def over_grpc(way: Way, request: Request) -> Streamed:
    """Generate."""
    wanted = router_pb2.GenerateRequest(
        model=request.model,
        text=request.prompt,
        max_tokens=request.tokens,
        sampling=level_pb2.Sampling(seed=request.seed, temperature=TEMPERATURE),
        chain=list(request.chain),
    )
    begin, texts, times, error = time.monotonic(), [], [], ""
    with grpc.insecure_channel(way.address, options=[("grpc.default_authority", way.grpc_host)]) as channel:
        try:
            for event in RouterServiceStub(channel).Generate(wanted, timeout=600):
                times.append(time.monotonic())
                texts.append(event.text)
        except grpc.RpcError as problem:
            error = f"{problem.code().name}: {problem.details()}"
    return _streamed("".join(texts), begin, times, error)


CLIENTS: dict[str, Client] = {"rest": rest, "grpc": over_grpc}


def _streamed(text: str, begin: float, times: list[float], error: str) -> Streamed:
    gaps = [b - a for a, b in itertools.pairwise([begin, *times])]
    return Streamed(text, len(times), time.monotonic() - begin, max(gaps, default=0.0), error)
