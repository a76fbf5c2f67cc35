"""A tokenizer's files, fetched from the target: in a cluster the router has no storage of its own.

A family file says so with ``tokenizer: target``. The files come over LevelService.Tokenizer, once, when the router
starts.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from specrouter.v1 import level_pb2 as pb
from specrouter.v1 import level_pb2_grpc
from specrouter_router.dial import PLAIN, Dial
from specrouter_router.tokenizer import TokenizerError

log = logging.getLogger(__name__)

WAIT_S = 540.0  # for a target that is not there yet: it may have its weights to fetch and to load
PAUSE_S = 2.0  # between two tries
CALL_S = 30.0  # for one transfer
MAX_BYTES = 128 << 20  # of all files; the largest known are about 40 MB
MAX_FILES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # no separators: a file of the directory, nothing else
REFUSED = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)  # another try would be answered the same


def fetch(addresses: Sequence[str], directory: Path, wait: float = WAIT_S, dial: Dial = PLAIN) -> None:
    """Write the target's tokenizer files to ``directory``.

    addresses: of the target's replicas, host:port. wait: seconds in all until it must have worked.
    Raises TokenizerError when it has not, or the target has no tokenizer.
    """
    until = time.monotonic() + wait
    told = False
    while True:
        why = []
        for address in addresses:
            try:
                count = _take(address, directory, dial)
            except ConnectionError as error:
                why.append(f"{address}: {error}")
            else:
                log.info("tokenizer: %d files from the target at %s", count, address)
                return
        if time.monotonic() + PAUSE_S > until:
            raise TokenizerError(f"tokenizer: the target did not give it within {wait:.0f} s: {'; '.join(why)}")
        if not told:
            log.info("tokenizer: waiting for the target: %s", "; ".join(why))
            told = True
        time.sleep(PAUSE_S)


def _take(address: str, directory: Path, dial: Dial) -> int:
    """The number of files. Raises ConnectionError where another try may help, else TokenizerError."""
    with dial.channel(address) as channel:
        call = level_pb2_grpc.LevelServiceStub(channel).Tokenizer(pb.TokenizerRequest(), timeout=CALL_S)
        names: list[str] = []
        try:
            for name, content in _files(call):
                if not NAME.fullmatch(name) or name in names or len(names) == MAX_FILES:
                    raise TokenizerError(
                        f"tokenizer: the target at {address} sent a file that it may not: {name[:99]!r}"
                    )
                (directory / name).write_bytes(content)
                names.append(name)
        except grpc.RpcError as error:
            why = f"{call.code().name} {call.details() or ''}".strip()
            if call.code() in REFUSED:
                raise TokenizerError(f"tokenizer: the target at {address} has none to give: {why}") from error
            raise ConnectionError(why) from error
    return len(names)


def _files(parts: Iterator[pb.TokenizerFile]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, from its parts. Raises TokenizerError when they are too many bytes."""
    name, content, size = "", bytearray(), 0
    for part in parts:
        size += len(part.chunk)
        if size > MAX_BYTES:
            raise TokenizerError(f"tokenizer: the target sent more than {MAX_BYTES} bytes")
        if part.name != name and name:
            yield name, bytes(content)
            content = bytearray()
        name = part.name
        content += part.chunk
    if name:
        yield name, bytes(content)
