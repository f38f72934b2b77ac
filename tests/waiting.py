"""Waits for what real programs come to by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(holds: Callable[[], bool]) -> None:
    """Waits for a condition that nothing tells of; the test's own time limit is the only one."""
    while not holds():
        await asyncio.sleep(0.01)
