"""Which levels a sequence uses. The place of the planner: today the family's fixed chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specrouter_core.chain import Plan
from specrouter_router.family import Family
from specrouter_router.refusal import InvalidError


@dataclass(frozen=True, slots=True)
class LevelState:
    """What a planner may know of one level now."""

    ready: bool  # its stream is open
    max_length: int  # tokens of one sequence at most


@dataclass(frozen=True, slots=True)
class Choice:
    """The chain of one sequence: what is used now, and what would be used if every level were up."""

    now: Plan
    wanted: Plan


class FixedPlanner:
    """The chain section of the family file, less what was not asked for, is down or is too short."""

    def __init__(self, family: Family) -> None:
        self._names = tuple(level.name for level in family.levels)
        self._chain = family.chain

    def plan(self, asked: Sequence[str], length: int, states: Mapping[str, LevelState]) -> Choice:
        """The chain for a text of at most ``length`` tokens.

        ``asked`` names the levels the client wants, lowest first; empty = all. Raises InvalidError when it is no part
        of the family in its order that ends in the target.
        """
        self._check(asked)
        target = self._names[-1]
        wanted = [name for name in asked or self._names if name == target or states[name].max_length >= length]
        ready = [name for name in wanted if name == target or states[name].ready]
        return Choice(now=self._of(ready), wanted=self._of(wanted))

    def _check(self, asked: Sequence[str]) -> None:
        if not asked:
            return
        for name in asked:
            if name not in self._names:
                raise InvalidError("chain", f"no level is named {name!r} (levels: {', '.join(self._names)})")
        places = [self._names.index(name) for name in asked]
        if places != sorted(set(places)):
            raise InvalidError("chain", f"levels must differ and stand in the family's order: {', '.join(self._names)}")
        if asked[-1] != self._names[-1]:
            raise InvalidError("chain", f"must end in the target, {self._names[-1]!r}")

    def _of(self, names: Sequence[str]) -> Plan:
        return Plan(
            levels=tuple(names),
            windows=tuple(self._chain.windows[name] for name in names),
            lookahead=self._chain.lookahead,
            overlapped=self._chain.mode == "overlapped",
        )
