"""Deleting a family from outside the operator, and waiting until its levels are drained and it is gone.

For an uninstall, which must do this while there is still an operator to take the family's finalizer off.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from specrouter_operator.api import Api, ApiError
from specrouter_operator.resource import FAMILY

PAUSE_S = 1.0


def remove(
    api: Api,
    name: str,
    seconds: float,
    *,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Delete the family ``name``; whether it was gone within so many seconds. A request that fails is tried again until
    then. Raises ApiError when there are no rights to it."""
    until = clock() + seconds
    while True:
        try:
            family = api.get(FAMILY, name)
            if family is None:
                return True
            if not family["metadata"].get("deletionTimestamp"):
                api.delete(FAMILY, family)
        except ApiError as error:
            if error.status == 403:
                raise
        if clock() + PAUSE_S > until:
            return False
        pause(PAUSE_S)
