"""What a level holds of one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specrouter_core.prefix import Text, step
from specrouter_level.engine import Drawn, Params

if TYPE_CHECKING:
    from specrouter_level.call import Call
    from specrouter_level.checkpoint import Restore
    from specrouter_level.stream import Stream

BLOCK = 64  # positions; checkpoints are made of these, a multiple of the chunk in which a bitwise level reads prompts
MAX_KNOWN = 256  # draws remembered of one sequence


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
    stream: Stream | None = None  # whose calls it takes: the last one that sent any; None = it broke
    call: Call | None = None
    seconds: float = 0.0  # of the steps it took part in, under this epoch
    used: float = 0.0  # time.perf_counter() when its last call came or ended
    fed: Sequence[int] | None = None  # what the slot will hold after the step that runs now; None = in no step
    known: dict[int, tuple[int, float]] = field(default_factory=dict)  # hash of a prefix -> its draw and confidence
    released: bool = False  # ended while in a step: free the slot when the step ends
    restoring: Restore | None = None  # what ``fed`` comes from, if it comes from checkpoints and not from a step
    offered: int = 0  # leading blocks that were offered to the checkpoints

    @property
    def idle(self) -> bool:
        """Whether it may be evicted."""
        return self.call is None and self.fed is None

    def owned(self, epoch: int) -> None:
        """A call of this epoch came; for a new owner it is counted anew what the sequence takes."""
        if epoch > self.epoch:
            self.epoch, self.seconds = epoch, 0.0

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
        self.keep(base + shared)

    def keep(self, length: int) -> None:
        """Count no more than the first ``length`` positions of the slot."""
        self.valid = min(self.valid, length)
        self.offered = min(self.offered, length // BLOCK)

    def remember(self, value: int, fed: Sequence[int], drawn: Drawn) -> None:
        """Keep the draws of a step: the first after the prefix of hash ``value``, each next after one token of ``fed``.

        A draw depends on its prefix alone, so it answers any later call that comes to the same place. That
        is what makes superseding cheap: the newer call takes up what the older one's last step found.
        """
        for i, token in enumerate(drawn.tokens):
            self.known[value] = token, drawn.confidence[i]
            value = step(value, fed[i] if i < len(fed) else token)
        while len(self.known) > MAX_KNOWN:
            del self.known[next(iter(self.known))]

    def settle(self) -> None:
        """After a step whose call is gone: keep the KV of what the step fed and the text still shares."""
        self.valid = self.text.shared(self.fed or ())
        self.offered = min(self.offered, self.valid // BLOCK)
        self.fed = None
