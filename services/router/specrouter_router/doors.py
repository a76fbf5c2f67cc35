"""Routers whose port is closed: they are gone, which their leases would say seconds later.

When a process is killed, its machine refuses connections to its port at once. So whoever follows a sequence here knocks
at its owner's door: refused, and it can be taken up. That proves no more than that nobody listens there; if the
owner runs all the same, behind a firewall that refuses instead of dropping, the epochs (record_scripts.py) keep it from
committing anything, as after a lease that ran out too early. No answer at all proves nothing: then the lease decides.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterable
from typing import Any

from specrouter_router.lease import Lease

KNOCK_S = 0.2  # between two knocks at one door
ANSWER_S = 0.1  # for an answer; on the networks at hand a refusal takes a millisecond


class Doors:
    """See the module. One user at a time."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._knocked: dict[str, float] = {}  # router -> when
        self._closed: set[str] = set()  # of these, for good: an id belongs to one process

    async def closed(self, routers: Iterable[str]) -> set[str]:
        """Those of them that are gone for certain. Raises StoreError."""
        asked = set(routers) - {self._lease.id, ""}
        now = time.monotonic()
        due = [r for r in asked - self._closed if now - self._knocked.get(r, -KNOCK_S) >= KNOCK_S]
        if due:
            self._knocked = {router: at for router, at in self._knocked.items() if router in asked}
            self._knocked |= dict.fromkeys(due, now)
            known = await self._lease.routers()
            refused = await asyncio.gather(*(_refuses(known.get(router, {})) for router in due))
            self._closed &= asked
            self._closed |= {router for router, gone in zip(due, refused, strict=True) if gone}
        return self._closed & asked


async def _refuses(about: dict[str, Any]) -> bool:
    """Whether nobody listens at the address that a router gave."""
    host, _, port = str(about.get("address", "")).rpartition(":")
    if not host or not port.isdigit() or (_is_loopback(host) and about.get("host") != socket.gethostname()):
        return False  # a loopback address says something on its own machine only
    try:
        async with asyncio.timeout(ANSWER_S):
            _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
