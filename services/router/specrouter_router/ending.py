"""The end of a task, for certain."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_S = 0.2


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel it until it has ended: once is not enough where what it awaits swallows a cancellation.

    (asyncio.wait_for of Python 3.11 does when its future is done by then, and so do other libraries' clean-ups.)
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=AGAIN_S)
    if not task.cancelled():
        task.exception()  # whoever ends it does not care
