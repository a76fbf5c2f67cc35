"""Which step of the protocol a chunk of bytes makes, so that a fault can fall on it.

    admission    a client's request comes            record write   the tokens of a round go to Redis
    first call   a level is told of a sequence       record answer  Redis says that they are there
    call         it is called again, mid-round       tokens sent    they go to the client
    reply        it answers                          finish         the last write, with the end

Names of sequences are on the wire as they are (protobuf, RESP), which is all that is looked for. A step is told by the
link and by what was seen before; a chunk may make several, then the rarer one counts.
"""

from __future__ import annotations

import re
from typing import Literal

from proxy import Sort, Way

Step = Literal["admission", "first call", "call", "reply", "record write", "record answer", "tokens sent", "finish"]
STEPS: tuple[Step, ...] = (
    "admission", "first call", "call", "reply", "record write", "record answer", "tokens sent", "finish",
)  # fmt: skip
OF_CLIENTS: tuple[Step, ...] = ("admission", "tokens sent")
OF_RECORDS: tuple[Step, ...] = ("record write", "record answer", "finish")
WAYS_OF: dict[Step, Way] = {
    "admission": "up", "first call": "up", "call": "up", "reply": "down",
    "record write": "up", "record answer": "down", "tokens sent": "down", "finish": "up",
}  # fmt: skip

NAME = re.compile(rb"\d+\.\d+:\d+")
LAST = b"$4\r\n3600\r\n$0\r\n\r\n"  # of the arguments of a write: its TTL, and no next owner
DATA = 24  # bytes; what HTTP/2 sends to itself (settings, pings, windows) is shorter


def sorter(link: str) -> Sort:
    """For a link, "client>router-0", "router-0>mid-1" or "router-0>redis"."""
    if link.endswith(">redis"):
        return _Records()
    return _client if "client>" in link else _Calls()


def _client(way: Way, data: bytes) -> str:
    if way == "up":
        return "admission" if NAME.search(data) else ""
    return "tokens sent" if len(data) >= DATA else ""


class _Calls:
    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def __call__(self, way: Way, data: bytes) -> str:
        if way == "down":
            return "reply" if len(data) >= DATA else ""
        names = set(NAME.findall(data))
        first = names - self._known
        self._known |= first
        return "first call" if first else "call" if names else ""


class _Records:
    def __init__(self) -> None:
        self._asked = False

    def __call__(self, way: Way, data: bytes) -> str:
        if way == "down":
            answered, self._asked = self._asked, False
            return "record answer" if answered else ""
        if b"EVALSHA" not in data:
            return ""
        self._asked = True
        return "finish" if LAST in data else "record write"
