"""How levels are reached: in the clear, or over TLS with certificates from PEM files, read once at the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

Options = Sequence[tuple[str, int | str]]


@dataclass(frozen=True, slots=True)
class Dial:
    """``name``: what the levels' certificates are issued for, where that is not the address (several IPs, one name)."""

    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)
    name: str = ""

    def channel(self, address: str, options: Options = ()) -> grpc.Channel:
        """For a thread."""
        if self.credentials is None:
            return grpc.insecure_channel(address, options)
        return grpc.secure_channel(address, self.credentials, self._named(options))

    def aio(self, address: str, options: Options = ()) -> grpc.aio.Channel:
        """For the running loop."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(address, options)
        return grpc.aio.secure_channel(address, self.credentials, self._named(options))

    def _named(self, options: Options) -> Options:
        return [*options, ("grpc.ssl_target_name_override", self.name)] if self.name else options


PLAIN = Dial()


def of(ca: Path | None, cert: Path | None, key: Path | None, name: str) -> Dial:
    """What the options say; PLAIN without any. Raises ValueError that names the option."""
    if ca is None and cert is None and key is None:
        if name:
            raise ValueError("level-tls-name: needs level-tls-ca")
        return PLAIN
    if ca is None:
        raise ValueError("level-tls-ca: needed with the other level-tls options")
    if (cert is None) != (key is None):
        raise ValueError(f"{'level-tls-cert' if cert is None else 'level-tls-key'}: needed with the other of the two")
    pair = [None if path is None else _read(option, path) for option, path in (("key", key), ("cert", cert))]
    return Dial(grpc.ssl_channel_credentials(_read("ca", ca), *pair), name)


def _read(option: str, path: Path) -> bytes:
    try:
        found = path.read_bytes()
    except OSError as error:
        raise ValueError(f"level-tls-{option}: {path} can't be read ({error.strerror})") from error
    if b"-----BEGIN " not in found:
        raise ValueError(f"level-tls-{option}: {path} is no PEM file")
    return found
