"""TLS on a level's gRPC port, with certificates of a throwaway authority, and a router that reaches it."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import httpx
import pytest
from test_level_process import START_SECONDS, Level, running

from authority import Authority, Party
from processes import until
from specrouter.v1 import level_pb2 as pb
from specrouter.v1.level_pb2_grpc import LevelServiceStub
from specrouter_family import tls
from specrouter_router import dial
from specrouter_router.flight import Flight
from specrouter_router.link import Link

SECONDS = 10.0
NAME = "levels.test"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "trusted")


def options(server: Party, client_ca: Path | None = None) -> list[str]:
    argv = ["--name", "low", "--engine", "stub", "--tls-cert", str(server.cert), "--tls-key", str(server.key)]
    return argv + (["--tls-client-ca", str(client_ca)] if client_ca else [])


def described(level: Level, door: dial.Dial) -> pb.DescribeResponse:
    with door.channel(f"127.0.0.1:{level.grpc}") as channel:
        return LevelServiceStub(channel).Describe(pb.DescribeRequest(), timeout=SECONDS)


class Listener:
    """Notes that a link has opened, or what it says."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    def accept(self, info: pb.DescribeResponse) -> str:
        return ""

    def opened(self, link: Link) -> None:
        self.open.set()

    def lost(self, link: Link, flights: list[Flight], why: str) -> None: ...
    def asked(self, link: Link, well: bool) -> None: ...
    def turned(self, link: Link) -> None: ...
    def replied(self, flight: Flight, reply: pb.ExtendReply) -> None: ...


async def test_a_routers_link_over_mutual_tls(authority: Authority, tmp_path: Path) -> None:
    server, router = authority.issue(NAME), authority.issue("router")
    level = await asyncio.to_thread(Level, tmp_path / "log", *options(server, authority.own.cert))
    try:
        await asyncio.to_thread(level.wait)
        listener = Listener()
        link = Link(
            "low", f"127.0.0.1:{level.grpc}", listener, dial.of(authority.own.cert, router.cert, router.key, NAME)
        )
        link.start()
        await asyncio.wait_for(listener.open.wait(), SECONDS)
        assert link.info is not None and link.info.name == "low"
        await link.close()
    finally:
        level.process.kill()
        level.process.wait()


def test_who_is_let_in(authority: Authority, tmp_path: Path) -> None:
    server, router = authority.issue(NAME, ip="127.0.0.1"), authority.issue("router")
    stranger = Authority(tmp_path, "stranger")
    other = stranger.issue("router")
    ca = authority.own.cert
    with running(tmp_path / "log", *options(server, ca)) as level:
        assert described(level, dial.of(ca, router.cert, router.key, "")).name == "low"  # by its IP
        assert described(level, dial.of(ca, router.cert, router.key, NAME)).name == "low"
        doors: dict[str, Callable[[], dial.Dial]] = {
            "in the clear": lambda: dial.PLAIN,
            "without a certificate": lambda: dial.of(ca, None, None, ""),
            "with another authority's": lambda: dial.of(ca, other.cert, other.key, ""),
            "trusting another authority": lambda: dial.of(stranger.own.cert, router.cert, router.key, ""),
            "expecting another name": lambda: dial.of(ca, router.cert, router.key, "elsewhere"),
        }
        for what, door in doors.items():
            with pytest.raises(grpc.RpcError):
                described(level, door())
                pytest.fail(what)
        assert described(level, dial.of(ca, router.cert, router.key, "")).name == "low"
        assert "with mTLS" in level.log.read_text()


def test_without_a_client_authority_any_client_is_served(authority: Authority, tmp_path: Path) -> None:
    with running(tmp_path / "log", *options(authority.issue(NAME))) as level:
        assert described(level, dial.of(authority.own.cert, None, None, NAME)).name == "low"


def test_renewed_certificates_need_no_restart(authority: Authority, tmp_path: Path) -> None:
    """Even of another authority: connections that are open stay, new ones find what is in the files by then."""
    server, router = authority.issue(NAME), authority.issue("router")
    other = Authority(tmp_path, "other")
    new_server, new_router = other.issue(NAME), other.issue("router")
    door = dial.of(authority.own.cert, router.cert, router.key, NAME)
    with running(tmp_path / "log", *options(server, authority.own.cert)) as level:
        with door.channel(f"127.0.0.1:{level.grpc}") as channel:
            stub = LevelServiceStub(channel)
            assert stub.Describe(pb.DescribeRequest(), timeout=SECONDS).name == "low"
            server.cert.write_bytes(b"half")
            assert described(level, door).name == "low"
            for old, new in ((authority.own, other.own), (server, new_server), (router, new_router)):
                old.cert.write_bytes(new.cert.read_bytes())
                old.key.write_bytes(new.key.read_bytes())
            assert stub.Describe(pb.DescribeRequest(), timeout=SECONDS).name == "low"
        assert described(level, door).name == "low"
        assert described(level, dial.of(other.own.cert, new_router.cert, new_router.key, NAME)).name == "low"
        router.cert.unlink()
        assert described(level, door).name == "low"


def got(level: Level, ca: Path, client: Party | None = None) -> int:
    """The status of its health over HTTPS; 0 when it does not talk to us."""
    context = ssl.create_default_context(cafile=str(ca))
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    try:
        return httpx.get(f"https://127.0.0.1:{level.http}/v2/health/ready", verify=context, trust_env=False).status_code
    except (httpx.TransportError, ssl.SSLError):
        return 0


def test_the_http_port_with_and_without_clients_certificates(authority: Authority, tmp_path: Path) -> None:
    server, client = authority.issue(NAME, ip="127.0.0.1"), authority.issue("prometheus")
    ca, other = authority.own.cert, Authority(tmp_path, "stranger").issue("prometheus")

    def up(level: Level) -> bool:
        return got(level, ca, client) == 200

    for mode, lets_in in (("server", {None, client.cert, other.cert}), ("mutual", {client.cert})):
        level = Level(tmp_path / mode, *options(server, ca), "--http-tls", mode)
        try:
            assert until(partial(up, level), START_SECONDS), level.log.read_text()
            for party in (None, client, other):
                name = party.cert if party else None
                assert (got(level, ca, party) == 200) == (name in lets_in), (mode, name)
            assert level.get("/v2/health/ready")[0] == 0, "in the clear"
            assert described(level, dial.of(ca, client.cert, client.key, "")).name == "low"
            assert level.stop(signal.SIGTERM) == 0 and "Traceback" not in level.log.read_text()
        finally:
            level.process.kill()
            level.process.wait()


def test_what_http_tls_needs_is_named(authority: Authority, tmp_path: Path) -> None:
    server = options(authority.issue(NAME))
    for argv, said in (
        (["--name", "low", "--engine", "stub", "--http-tls", "server"], "tls-cert: needed with http-tls"),
        ([*server, "--http-tls", "mutual"], "tls-client-ca: needed with http-tls mutual"),
    ):
        level = Level(tmp_path / "log", *argv)
        assert level.process.wait(START_SECONDS) == 2 and said in level.log.read_text()


def test_what_is_wrong_with_files_is_said_at_once(authority: Authority, tmp_path: Path) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    level = Level(tmp_path / "log", *options(Party(one.cert, two.key)))
    assert level.process.wait(START_SECONDS) == 2
    said = level.log.read_text()
    assert "tls-cert: " in said and "Traceback" not in said
    for arguments, word in (((one.cert, None, None), "tls-key"), ((None, None, one.cert), "tls-cert")):
        with pytest.raises(ValueError, match=f"^{word}: "):
            tls.of(*arguments)
    for wrong, word in (
        ((one.cert, two.cert, None, ""), "level-tls-key"),
        ((None, one.cert, one.key, ""), "level-tls-ca"),
        ((None, None, None, "name"), "level-tls-name"),
        ((tmp_path / "none", None, None, ""), "level-tls-ca"),
        ((tmp_path / "log", None, None, ""), "level-tls-ca"),
    ):
        with pytest.raises(ValueError, match=f"^{word}: "):
            dial.of(*wrong)
    assert dial.of(None, None, None, "") is dial.PLAIN
