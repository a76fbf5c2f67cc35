"""What a client may fix of how its text is made. The text is the same whatever it fixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from specrouter_core.chain import Plan
from specrouter_router.refusal import InvalidError

FIELDS = frozenset({"chain", "windows", "lookahead", "mode", "least"})
Mode = Literal["overlapped", "lockstep"]


@dataclass(frozen=True, slots=True)
class Pin:
    """The chain, or the mode, or all of a plan. What is left empty the router chooses.

    ``windows``, ``lookahead`` and ``least`` are as in ``Plan``; they are one per level of ``chain`` (lookahead: one).
    """

    chain: tuple[str, ...] = ()
    windows: tuple[int, ...] = ()
    lookahead: int | None = None
    mode: Mode | None = None
    least: tuple[int, ...] = ()

    def check(self, names: Sequence[str], chains: Sequence[Sequence[str]] = ()) -> None:
        """Raises InvalidError, naming the field.

        ``names`` are the family's levels, lowest first; ``chains`` are those that may be used, all when empty.
        """
        self._check_chain(names)
        if self.chain and chains and self.chain not in map(tuple, chains):
            raise InvalidError("chain", "the family allows only " + ", ".join("+".join(chain) for chain in chains))
        if self.windows and not self.chain:
            raise InvalidError("windows", "only with chain")
        if self.windows:
            self._check_plan()
        elif self.lookahead is not None:
            raise InvalidError("lookahead", "only with windows")
        elif self.least:
            raise InvalidError("least", "only with windows")

    def plan(self, overlapped: bool) -> Plan | None:
        """The plan, when all of it is fixed; ``overlapped`` unless a mode is given. Raises ValueError."""
        if not self.windows:
            return None
        mode = overlapped if self.mode is None else self.mode == "overlapped"
        lookahead = min(2 * self.windows[-1], 256) if self.lookahead is None else self.lookahead
        return Plan(self.chain, self.windows, lookahead, mode, self.least)

    def _check_plan(self) -> None:
        try:
            self.plan(True)
        except ValueError as error:
            field, _, what = str(error).partition(": ")
            raise InvalidError(field, what) from error

    def _check_chain(self, names: Sequence[str]) -> None:
        if not self.chain:
            return
        for name in self.chain:
            if name not in names:
                raise InvalidError("chain", f"no level is named {name[:80]!r} (levels: {', '.join(names)})")
        places = [names.index(name) for name in self.chain]
        if places != sorted(set(places)):
            raise InvalidError("chain", f"levels must differ and stand in the family's order: {', '.join(names)}")
        if self.chain[-1] != names[-1]:
            raise InvalidError("chain", f"must end in the target, {names[-1]!r}")
