"""The chart's tls.mode certManager with a real cert-manager: what it issues, and its renewal under streams."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Iterator

import pytest
import pytest_asyncio

from cluster_load import Load
from cluster_mesh import SCRIPTS, Cluster, Object, Release, until

LEVEL = "specrouter.dev/level=target"
SIDES = ("level", "router")
# the certificate that each of these shows, as base64 of its DER form; who shows none is not asked further
SHOWN = """
import base64, socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
with context.wrap_socket(socket.create_connection((sys.argv[1], 9000), 5)) as connection:
    print(base64.b64encode(connection.getpeercert(binary_form=True)).decode())
"""


def authority(namespace: str) -> list[Object]:
    """An authority of the namespace's own: it signs itself, and then what the chart asks for."""
    meta = {"namespace": namespace}
    spec = {
        "isCA": True,
        "commonName": "mesh",
        "secretName": "authority",
        "privateKey": {"algorithm": "ECDSA", "size": 256},
        "issuerRef": {"name": "itself"},
    }
    issuers = {"itself": {"selfSigned": {}}, "authority": {"ca": {"secretName": "authority"}}}
    kind = {"apiVersion": "cert-manager.io/v1", "kind": "Issuer"}
    made = [kind | {"metadata": meta | {"name": name}, "spec": how} for name, how in issuers.items()]
    return [*made, kind | {"kind": "Certificate", "metadata": meta | {"name": "authority"}, "spec": spec}]


@pytest.fixture(scope="module")
def release(real_cluster: Cluster) -> Iterator[Release]:
    if "certificates.cert-manager.io" not in real_cluster.kubectl("get", "crd", "-o", "name"):
        pytest.skip("the cluster has no cert-manager: tests/cluster/build.sh certificates, then up.sh certificates")
    hosts = {"rest_host": "rest.certs.test", "grpc_host": "grpc.certs.test"}
    made = Release(real_cluster, SCRIPTS / "stub-values.yaml", namespace="net-certs", **hosts)
    made.prepare()
    for one in authority(made.namespace):
        made.kubectl("apply", "-f", "-", given=json.dumps(one))
    settings = [f"gateway.rest.hostname={made.rest_host}", f"gateway.grpc.hostname={made.grpc_host}"]
    settings += ["tls.mode=certManager", "tls.issuerRef.name=authority", "router.replicas=1", "operator.replicas=1"]
    made.install(*(part for setting in settings for part in ("--set", setting)))
    try:
        until(lambda: made.ask("Name three rivers.", 1), 240)
        yield made
    finally:
        made.uninstall()
        real_cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(release: Release) -> Load:
    made = Load(release, "stub")
    await made.learn()
    return made


def issued(release: Release, side: str) -> str:
    """The certificate in a side's Secret, as base64 of its DER form."""
    pem = base64.b64decode(release.get("secret", f"mesh-specrouter-{side}-tls")["data"]["tls.crt"]).decode()
    first = pem[: pem.index("-----END CERTIFICATE-----")] + "-----END CERTIFICATE-----\n"
    return base64.b64encode(ssl.PEM_cert_to_DER_cert(first)).decode()


def shown(release: Release) -> set[str]:
    """The certificates that the target's replicas show."""
    router = release.pods("app.kubernetes.io/component=router")[0]
    addresses = [pod["status"]["podIP"] for pod in release.get("pods", "-l", LEVEL)["items"]]
    asked = [release.kubectl("exec", router, "--", "python", "-c", SHOWN, address) for address in addresses]
    return {answer.strip() for answer in asked}


def test_what_is_issued_is_in_use(release: Release) -> None:
    release.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "certificates", "--all")
    assert shown(release) == {issued(release, "level")}
    chain = {"chain": ["target"]}
    alone = release.ask("Name three rivers.", 40, seed=1, temperature=0.8, specrouter=chain)
    assert release.ask("Name three rivers.", 40, seed=1, temperature=0.8) == alone


async def test_renewal_is_picked_up_and_breaks_no_stream(release: Release, load: Load) -> None:
    await asyncio.to_thread(until, release.settled, 120)
    before = {side: issued(release, side) for side in SIDES}
    pods = pod_births(release)

    def renew() -> None:
        for side in SIDES:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            why = {"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "lastTransitionTime": now}
            change = json.dumps({"status": {"conditions": [why | {"message": "by a test"}]}})
            name = f"certificate/mesh-specrouter-{side}"
            release.kubectl("patch", name, "--subresource=status", "--type=merge", "-p", change)
        until(lambda: all(issued(release, side) != before[side] for side in SIDES), 60)
        # the kubelet looks at a pod that has changed at once, else within a minute or so
        release.kubectl("annotate", "pods", "--all", "--overwrite", "renewed=yes")
        until(lambda: shown(release) == {issued(release, "level")}, 120, 1.0)
        # a new connection of the router, with its own new certificate
        release.kubectl("delete", "pod", release.pods(LEVEL)[0], "--grace-period=0", "--force")
        until(release.settled, 120)

    seen = await load.during(lambda: asyncio.to_thread(renew))
    assert seen.texts >= 8 and not seen.changed and not seen.failed and not seen.breaks, str(seen)
    assert len(pods & pod_births(release)) == len(pods) - 1, "renewal restarted something"


def pod_births(release: Release) -> set[tuple[str, int]]:
    """Each pod and how often its containers were restarted."""
    items = release.get("pods", "-l", "specrouter.dev/family=stub")["items"]
    items += release.get("pods", "-l", "app.kubernetes.io/component=router")["items"]
    return {
        (item["metadata"]["uid"], sum(status["restartCount"] for status in item["status"]["containerStatuses"]))
        for item in items
        if "deletionTimestamp" not in item["metadata"]
    }
