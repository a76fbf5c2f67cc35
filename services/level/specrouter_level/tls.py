"""The gRPC port's certificates, from PEM files that are read once, at the start."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files. ``client_ca``: only clients with a certificate of this authority are served (mTLS)."""

    cert: Path
    key: Path
    client_ca: Path | None

    def credentials(self) -> grpc.ServerCredentials:
        """For the port. Raises ValueError that names the file that can't be used."""
        pair = _read("tls-key", self.key), _read("tls-cert", self.cert)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:  # gRPC would only say that it can't listen
            context.load_cert_chain(self.cert, self.key)
        except (ssl.SSLError, OSError) as error:
            raise ValueError(
                f"tls-cert: {self.cert} with tls-key {self.key} is no pair that works ({error})"
            ) from error
        if self.client_ca is None:
            return grpc.ssl_server_credentials([pair])
        try:
            context.load_verify_locations(self.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise ValueError(f"tls-client-ca: {self.client_ca} holds no certificate ({error})") from error
        return grpc.ssl_server_credentials([pair], _read("tls-client-ca", self.client_ca), require_client_auth=True)


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
