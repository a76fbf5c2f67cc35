"""What a level holds of one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specrouter_core.prefix import Text
from specrouter_level.engine import Params

if TYPE_CHECKING:
    from specrouter_level.call import Call
    from specrouter_level.stream import Stream


@dataclass(slots=True, eq=False)
class Held:
    """A sequence in a slot of the engine.

    ``text`` is what the level knows of it: the last prefix it was given and, after that, its own
    draws. The slot's leading ``valid`` positions hold the KV of ``text[:valid]``; the last draw is
    never among them, for it has not been fed.
    """

    sequence: str
    slot: int
    epoch: int
    params: Params
    text: Text = field(default_factory=Text)
    valid: int = 0
    stream: Stream | None = None  # whose calls it takes: the last one that sent any
    call: Call | None = None
    fed: Sequence[int] | None = None  # what the slot will hold after the step that runs now; None = in no step
    released: bool = False  # ended while in a step: free the slot when the step ends

    @property
    def idle(self) -> bool:
        """Whether it may be evicted."""
        return self.call is None and self.fed is None

    def adopt(self, base: int, suffix: Sequence[int]) -> None:
        """Make ``text[:base] + suffix`` the text, keeping the KV of what both share."""
        tokens = self.text.tokens
        tail = tokens[base : base + len(suffix)]
        if tail == suffix:
            shared = len(suffix)
        else:
            shared = next((i for i, token in enumerate(tail) if token != suffix[i]), len(tail))
        self.text.truncate(base + shared)
        self.text.extend(suffix[shared:])
        self.valid = min(self.valid, base + shared)

    def settle(self) -> None:
        """After a step whose call is gone: keep the KV of what the step fed and the text still shares."""
        self.valid = self.text.shared(self.fed or ())
        self.fed = None
