"""Classes of traffic: how easy the texts of each have been."""

from __future__ import annotations

from collections import OrderedDict

MAX_CLASSES = 64
LEARN = 0.2  # weight of one whole sequence in its class
WHOLE = 20  # rounds from which a sequence counts as a whole one


class Classes:
    """Per class, the log-odds by which its sequences agree more or less than is common. Old ones are forgotten."""

    def __init__(self) -> None:
        self._eases: OrderedDict[str, float] = OrderedDict()

    def ease(self, name: str) -> float:
        """Where a new sequence of the class begins; 0 for one that is not known."""
        return self._eases.get(name, 0.0)

    def saw(self, name: str, ease: float, rounds: int) -> None:
        """A sequence of the class ended with this shift after so many rounds."""
        before = self._eases.pop(name, 0.0)
        self._eases[name] = before + LEARN * min(rounds / WHOLE, 1.0) * (ease - before)
        if len(self._eases) > MAX_CLASSES:
            self._eases.popitem(last=False)

    def known(self) -> dict[str, float]:
        """All of them, for people."""
        return dict(self._eases)
