"""TLS on a router's own ports, with certificates of a throwaway authority: who is served, and who is not."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import openai
import pytest

from authority import Authority, Party
from processes import until
from specrouter.v1 import router_pb2 as pb
from specrouter.v1.router_pb2_grpc import RouterServiceStub
from stub_mesh import Mesh, Router

SECONDS = 10.0
STRANGERS = (httpx.TransportError, ssl.SSLError)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "trusted")


def trusting(ca: Path, client: Party | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    return context


def ready(router: Router, context: ssl.SSLContext) -> bool:
    try:
        return httpx.get(secure(router, "/readyz"), verify=context, trust_env=False).status_code == 200
    except STRANGERS:
        return False


def secure(router: Router, path: str) -> str:
    return f"https://127.0.0.1:{router.ports[0]}{path}"


def started(mesh: Mesh, server: Party, client_ca: Path | None, context: ssl.SSLContext) -> Router:
    env = {"SPECROUTER_TLS_CERT": str(server.cert), "SPECROUTER_TLS_KEY": str(server.key)}
    env |= {"SPECROUTER_TLS_CLIENT_CA": str(client_ca)} if client_ca else {}
    router = mesh.router(wait=False, env=env)
    assert until(lambda: ready(router, context), 60), router.log.read_text()
    return router


def generated(router: Router, credentials: grpc.ChannelCredentials) -> str:
    with grpc.secure_channel(router.grpc, credentials) as channel:
        asked = pb.GenerateRequest(model="test", text="once upon", max_tokens=12)
        return "".join(part.text for part in RouterServiceStub(channel).Generate(asked, timeout=SECONDS))


def test_only_clients_with_a_certificate_are_served(mesh: Mesh, authority: Authority, tmp_path: Path) -> None:
    server, client = authority.issue("router", ip="127.0.0.1"), authority.issue("client")
    other = Authority(tmp_path, "stranger").issue("client")
    ca = authority.own.cert
    router = started(mesh, server, ca, trusting(ca, client))
    with openai.DefaultHttpxClient(verify=trusting(ca, client), trust_env=False) as http:
        api = openai.OpenAI(base_url=secure(router, "/v1"), api_key="none", http_client=http, max_retries=0)
        by_rest = api.completions.create(model="test", prompt="once upon", max_tokens=12, temperature=0)
        parts = api.completions.create(model="test", prompt="once upon", max_tokens=12, temperature=0, stream=True)
        text = "".join(part.choices[0].text for part in parts)
    assert text == by_rest.choices[0].text and len(text) > 3
    strangers: dict[str, Callable[[], ssl.SSLContext]] = {
        "without a certificate": lambda: trusting(ca),
        "with another authority's": lambda: trusting(ca, other),
    }
    for what, context in strangers.items():
        with pytest.raises(STRANGERS):
            httpx.get(secure(router, "/v1/models"), verify=context(), trust_env=False)
            pytest.fail(what)
    with pytest.raises(STRANGERS):
        httpx.get(router.url + "/v1/models", trust_env=False)

    pair = client.key.read_bytes(), client.cert.read_bytes()
    good = grpc.ssl_channel_credentials(ca.read_bytes(), *pair)
    assert len(generated(router, good)) > 3
    for bad in (
        grpc.ssl_channel_credentials(ca.read_bytes()),
        grpc.ssl_channel_credentials(ca.read_bytes(), other.key.read_bytes(), other.cert.read_bytes()),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            generated(router, bad)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_without_a_client_authority_anybody_is_served_and_renewals_need_no_restart(
    mesh: Mesh, authority: Authority, tmp_path: Path
) -> None:
    server, ca = authority.issue("router", ip="127.0.0.1"), authority.own.cert
    router = started(mesh, server, None, trusting(ca))
    assert len(generated(router, grpc.ssl_channel_credentials(ca.read_bytes()))) > 3
    other = Authority(tmp_path, "other")
    new = other.issue("router", ip="127.0.0.1")
    server.cert.write_bytes(new.cert.read_bytes())
    assert ready(router, trusting(ca))  # half renewed: as before
    server.key.write_bytes(new.key.read_bytes())
    assert ready(router, trusting(other.own.cert)) and not ready(router, trusting(ca))
    assert len(generated(router, grpc.ssl_channel_credentials(other.own.cert.read_bytes()))) > 3


def test_what_is_wrong_with_the_files_is_said_at_once(mesh: Mesh, authority: Authority) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    for cert, key, said in ((one.cert, two.key, "no pair that works"), (one.cert, "", "tls-key: needed")):
        router = mesh.router(wait=False, env={"SPECROUTER_TLS_CERT": str(cert), "SPECROUTER_TLS_KEY": str(key)})
        assert router.process is not None and router.process.wait(60) == 1
        text = router.log.read_text()
        assert said in text and "Traceback" not in text
