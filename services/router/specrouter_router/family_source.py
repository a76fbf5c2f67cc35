"""The family file of a router in a cluster, which the operator writes and may be late with.

When a level is added to a family or leaves it, new routers are started. A router's copy of the file follows the
operator's by up to a minute or so; until it has the levels that the router was started for, the router waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from specrouter_family import family as families
from specrouter_family.family import Family, FamilyError

log = logging.getLogger(__name__)

WAIT_S = 240.0
PAUSE_S = 1.0


def load(path: Path, levels: Sequence[str] = (), wait: float = WAIT_S) -> Family:
    """The family of the file, with an address for each level. ``levels``: names that it must have, lowest first; they
    are waited for, for so many seconds. Raises FamilyError."""
    until = time.monotonic() + wait
    told = False
    while True:
        loaded = families.load(path)
        names = [level.name for level in loaded.levels]
        if not levels or names == list(levels):
            break
        if time.monotonic() + PAUSE_S > until:
            raise FamilyError(f"{path}: levels: are {', '.join(names)} after {wait:g} s, not {', '.join(levels)}")
        if not told:
            log.info("waiting for the levels %s in %s", ", ".join(levels), path)
            told = True
        time.sleep(PAUSE_S)
    for i, level in enumerate(loaded.levels):
        if not level.endpoints:
            raise FamilyError(f"{path}: levels.{i}.address: required by the router")
    return loaded
