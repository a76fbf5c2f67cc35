"""How levels are reached: in the clear, or over TLS with certificates from PEM files, read anew for each connection."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

log = logging.getLogger(__name__)
Options = Sequence[tuple[str, int | str]]


@dataclass(frozen=True, slots=True)
class Pems:
    """Paths of PEM files; ``cert`` and ``key`` for levels that ask for them."""

    ca: Path
    cert: Path | None
    key: Path | None

    def read(self) -> grpc.ChannelCredentials:
        """What is in them now. Raises ValueError that names the option."""
        pair = [
            None if path is None else _read(option, path) for option, path in (("key", self.key), ("cert", self.cert))
        ]
        return grpc.ssl_channel_credentials(_read("ca", self.ca), *pair)


@dataclass(slots=True)
class Dial:
    """``name``: what the levels' certificates are issued for, where that is not the address (several IPs, one name)."""

    pems: Pems | None = None
    name: str = ""
    _last: grpc.ChannelCredentials | None = field(default=None, repr=False)

    def channel(self, address: str, options: Options = ()) -> grpc.Channel:
        """For a thread."""
        if self.pems is None:
            return grpc.insecure_channel(address, options)
        return grpc.secure_channel(address, self._credentials(self.pems), self._named(options))

    def aio(self, address: str, options: Options = ()) -> grpc.aio.Channel:
        """For the running loop."""
        if self.pems is None:
            return grpc.aio.insecure_channel(address, options)
        return grpc.aio.secure_channel(address, self._credentials(self.pems), self._named(options))

    def _credentials(self, pems: Pems) -> grpc.ChannelCredentials:
        """Renewed certificates need no restart; files that can't be read now are as they were. Raises ValueError."""
        try:
            self._last = pems.read()
        except ValueError as problem:
            if self._last is None:
                raise
            log.warning("certificates stay as they were: %s", problem)
        return self._last

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
    pems = Pems(ca, cert, key)
    return Dial(pems, name, pems.read())


def _read(option: str, path: Path) -> bytes:
    try:
        found = path.read_bytes()
    except OSError as error:
        raise ValueError(f"level-tls-{option}: {path} can't be read ({error.strerror})") from error
    if b"-----BEGIN " not in found:
        raise ValueError(f"level-tls-{option}: {path} is no PEM file")
    return found
