"""Every change that Redis made to the recovery records, in order, out of its append-only file.

The file holds the commands that had an effect, also those made by scripts, between MULTI and EXEC; so it is a witness
that no router can talk to. Only the commands that the records' scripts use are understood; any other one that touches a
record is an error, so that a new kind of write can't go unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from specrouter_core.record import unpack

KEY = re.compile(rb"specrouter:\{([^}]+)\}:(state|tokens|spec)")
GONE = (b"DEL", b"UNLINK")
HARMLESS = {b"EXPIRE", b"PEXPIRE", b"PEXPIREAT", b"EXPIREAT", b"SELECT"}


@dataclass(frozen=True)
class Commit:
    """What a record was after one transaction."""

    sequence: str
    epoch: int
    round: int
    owner: str
    finish: int
    tokens: tuple[int, ...]
    life: int = 0  # how often before a part of the record had expired


@dataclass
class _Record:
    state: dict[str, bytes] = field(default_factory=dict)
    tokens: bytes = b""
    life: int = 0
    owner: str = ""  # the last one; an ended record has none


def commands(data: bytes, start: int = 0) -> Iterator[tuple[list[bytes], int]]:
    """The whole commands of the file from ``start`` on, and where each ends. A torn last one is left out."""
    at = start
    while at < len(data):
        parts: list[bytes] = []
        try:
            end = data.index(b"\r\n", at)
            count, at = int(data[at + 1 : end]), end + 2
            for _ in range(count):
                end = data.index(b"\r\n", at)
                size = int(data[at + 1 : end])
                parts.append(data[end + 2 : end + 2 + size])
                at = end + 2 + size + 2
        except ValueError:
            return
        if at > len(data):
            return
        yield parts, at


class Records:
    """The records as the file's commands make them. ``ended``: sequences that have ended, and their last owners."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}
        self._records: dict[str, _Record] = {}

    def apply(self, transaction: list[list[bytes]]) -> list[Commit]:
        """Make the changes; returns the records that they touched, as they are then. Raises ValueError."""
        touched: dict[str, None] = {}
        expired = all(command[0].upper() in GONE for command in transaction)  # no script only deletes
        for command in transaction:
            name, *arguments = command
            found = [match for argument in arguments[:1] if (match := KEY.fullmatch(argument))]
            if name.upper() in GONE:
                found = [match for argument in arguments if (match := KEY.fullmatch(argument))]
            for match in found:
                sequence, part = match[1].decode(), match[2].decode()
                if self._change(sequence, part, name.upper(), arguments):
                    touched[sequence] = None
                    self._records[sequence].life += expired
        return [commit for sequence in touched if (commit := self._commit(sequence)) is not None]

    def _change(self, sequence: str, part: str, name: bytes, arguments: list[bytes]) -> bool:
        """Returns whether state or tokens were changed."""
        if name in HARMLESS or part == "spec":
            return False
        record = self._records.setdefault(sequence, _Record())
        match part, name:
            case "state", (b"HSET" | b"HMSET"):
                fields = [argument.decode() for argument in arguments[1::2]]
                record.state.update(zip(fields, arguments[2::2], strict=True))
            case "state", (b"DEL" | b"UNLINK"):
                record.state.clear()
            case "tokens", b"APPEND":
                record.tokens += arguments[1]
            case "tokens", b"SET":
                record.tokens = arguments[1]
            case "tokens", (b"DEL" | b"UNLINK"):
                record.tokens = b""
            case _:
                raise ValueError(f"{name.decode()} of {sequence}'s {part}: how does that change a record?")
        return True

    def _commit(self, sequence: str) -> Commit | None:
        record = self._records[sequence]
        state = record.state
        if "epoch" not in state:
            return None
        commit = Commit(
            sequence,
            int(state["epoch"]),
            int(state.get("round", b"0")),
            state.get("owner", b"").decode(),
            int(state.get("finish", b"0")),
            tuple(unpack(record.tokens)),
            record.life,
        )
        record.owner = commit.owner or record.owner
        if commit.finish:
            self.ended[sequence] = record.owner
        return commit


def transactions(data: bytes, start: int = 0) -> Iterator[tuple[list[list[bytes]], int]]:
    """Commands that happened together, and where each lot ends."""
    together: list[list[bytes]] | None = None
    for command, end in commands(data, start):
        match command[0].upper():
            case b"MULTI":
                together = []
            case b"EXEC":
                yield together or [], end
                together = None
            case _ if together is not None:
                together.append(command)
            case _:
                yield [command], end
