"""A mesh on a Redis of its own: with TLS, client certificates, a password, and sentinels that name another master."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

import cluster_certificates
from cluster_load import Load
from cluster_mesh import SCRIPTS, Cluster, Release, until

NAMESPACE, FILES = "redis-outside", "/etc/specrouter/redis-tls"
SENTINELS = ",".join(f"sentinel-{i}.sentinel.{NAMESPACE}.svc:26379" for i in range(3))
PASSWORD = "p%2Fw-3"  # as in a URL
URL = (
    f"rediss+sentinel://:{PASSWORD}@{SENTINELS}/mesh/0"
    f"?ssl_ca_certs={FILES}/ca.crt&ssl_certfile={FILES}/tls.crt&ssl_keyfile={FILES}/tls.key"
)
SETTINGS = (
    *("redis.bundled.enabled=false", "redis.existingSecret.name=redis-url", "redis.tls.secretName=redis-tls"),
    *("redis.tls.clientCertificate=true", "gateway.rest.hostname=rest.redis.test"),
    *("gateway.grpc.hostname=grpc.redis.test", "family.spec.levels[2].replicas.min=1", "tls.mode=none"),
)


def secret(release: Release, name: str, **data: str) -> None:
    found = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
    release.kubectl("apply", "-f", "-", given=json.dumps(found))


@pytest.fixture(scope="module")
def release(real_cluster: Cluster) -> Iterator[Release]:
    if "specrouter" not in real_cluster.kubectl("get", "nodes", "-o", "name"):
        pytest.skip("the image of its Redis is on the throwaway cluster only")
    hosts = {"rest_host": "rest.redis.test", "grpc_host": "grpc.redis.test"}
    made = Release(real_cluster, SCRIPTS / "stub-values.yaml", namespace=NAMESPACE, **hosts)
    made.prepare()
    names = f"*.redis.{NAMESPACE}.svc,*.sentinel.{NAMESPACE}.svc"
    for one in cluster_certificates.secrets({"redis-tls": names}):
        made.kubectl("apply", "-f", "-", given=one)
    secret(made, "redis-password", password=PASSWORD.replace("%2F", "/"))
    secret(made, "redis-url", url=URL)
    made.kubectl("apply", "-f", SCRIPTS / "redis.yaml")
    made.install(*(part for setting in SETTINGS for part in ("--set", setting)))
    yield made
    made.uninstall()
    made.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def edited(release: Release, weight: int) -> None:
    """The operator writes to Redis, routers read from it."""
    change = json.dumps({"spec": {"weights": {"pins": {"mid": weight}}}})
    release.kubectl("patch", "rpol", "stub", "--type=merge", "-p", change)
    until(lambda: set(release.weights("mid")) == {weight}, 60)


def master(release: Release) -> str:
    """As a sentinel says: the name of a pod."""
    tls = ("--tls", "--cacert", "/tls/ca.crt", "--cert", "/tls/tls.crt", "--key", "/tls/tls.key")
    ask = ("redis-cli", *tls, "-p", "26379", "sentinel", "get-master-addr-by-name", "mesh")
    return release.kubectl("exec", "sentinel-2", "--", *ask).split(".")[0]


async def test_a_mesh_goes_on_when_sentinels_name_another_master(release: Release) -> None:
    until(lambda: release.ask("Name three rivers.", 1), 240)
    until(release.settled, 120)
    edited(release, 40)
    load = Load(release, "stub")
    await load.learn()
    assert master(release) == "redis-0"

    def lose() -> None:
        release.kubectl("delete", "pod", "redis-0", "--grace-period=0", "--force")
        until(lambda: master(release) == "redis-1", 60)
        edited(release, 50)

    async def losing() -> None:
        await asyncio.to_thread(lose)

    seen = await load.during(losing)
    assert seen.texts >= 8 and not seen.changed and not seen.failed, str(seen)
