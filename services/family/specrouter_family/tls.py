"""A server's certificates, from PEM files, looked at again at each handshake: renewing needs no restart."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files. ``client_ca``: only clients with a certificate of this authority are served (mTLS)."""

    cert: Path
    key: Path
    client_ca: Path | None

    def context(self) -> ssl.SSLContext:
        """For an HTTP port. Raises ValueError that names the file that can't be used."""
        served, age = self._loaded(), self._age()

        def newest(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            """For a handshake: the context that listens hands each on to the newest."""
            nonlocal served, age
            try:
                found = self._age()
                if found != age:
                    served, age = self._loaded(), found
                    log.info("renewed certificates are in use")
            except (ValueError, OSError) as problem:  # half written: the next handshake looks again
                log.warning("certificates stay as they were: %s", problem)
            connection.context = served

        listening = self._loaded()
        listening.sni_callback = newest
        return listening

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC port. Raises ValueError that names the file that can't be used."""
        now, age = self._read(), self._age()

        def newest() -> grpc.ServerCertificateConfiguration:
            """For a handshake."""
            nonlocal now, age
            try:
                found = self._age()
                if found != age:
                    now, age = self._read(), found
                    log.info("renewed certificates are in use")
            except (ValueError, OSError) as problem:  # half written: the next handshake looks again
                log.warning("certificates stay as they were: %s", problem)
            return now

        mutual = self.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(now, newest, require_client_authentication=mutual)

    def _age(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in (self.cert, self.key, self.client_ca) if path is not None]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._loaded()  # gRPC would only say that it can't listen
        pair = _read("tls-key", self.key), _read("tls-cert", self.cert)
        authority = None if self.client_ca is None else _read("tls-client-ca", self.client_ca)
        return grpc.ssl_server_certificate_configuration([pair], authority)

    def _loaded(self) -> ssl.SSLContext:
        for option, path in (("tls-key", self.key), ("tls-cert", self.cert)):
            _read(option, path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key)
        except (ssl.SSLError, OSError) as error:
            raise ValueError(
                f"tls-cert: {self.cert} with tls-key {self.key} is no pair that works ({error})"
            ) from error
        if self.client_ca is not None:
            _read("tls-client-ca", self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca)
            except (ssl.SSLError, OSError) as error:
                raise ValueError(f"tls-client-ca: {self.client_ca} holds no certificate ({error})") from error
        return context


def of(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """What the options say; None without any. Raises ValueError when one is missing."""
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise ValueError(f"{'tls-cert' if cert is None else 'tls-key'}: needed with the other tls options")
    return Tls(cert, key, client_ca)


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{option}: {path} can't be read ({error.strerror})") from error
