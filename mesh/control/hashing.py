"""Keys at rest: made and checked off the event loop, by two threads and a short queue.

bcrypt of cost 12 takes 0.2 s of a core; it lets other threads run meanwhile. SHA-256 is enough for keys of 190 random
bits and is what some profiles ask for.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import bcrypt

from mesh.errors import Code, MeshError

COST = 12
THREADS = 2
QUEUE = 32
"""Hashes that may be under way or waiting: about 3 s of work."""
_SHA256 = "sha256$"
_Result = TypeVar("_Result")


class KeyHasher:
    """Hashes keys one way and checks them any way. Open it with `key_hasher`."""

    def __init__(self, kind: str, pool: ThreadPoolExecutor) -> None:
        self._kind = kind
        self._pool = pool
        self._free = threading.BoundedSemaphore(QUEUE)

    async def hash(self, text: str) -> str:
        """What is kept of a key (at most 72 bytes): bcrypt's own format, or `sha256$` and hex.

        Raises:
            MeshError: `rate_limited` when too much is waiting.
        """
        if self._kind == "sha256":
            return _sha256(text)
        return await self._in_pool(lambda: bcrypt.hashpw(text.encode(), bcrypt.gensalt(COST)).decode("ascii"))

    async def verify(self, text: str, hashed: str) -> bool:
        """Whether a key is the one that was hashed, whichever way. A hash that is none fits no key.

        Raises:
            MeshError: `rate_limited` when too much is waiting.
        """
        if hashed.startswith(_SHA256):
            return hmac.compare_digest(_sha256(text), hashed)
        return await self._in_pool(lambda: _check(text.encode(), hashed.encode()))

    async def _in_pool(self, work: Callable[[], _Result]) -> _Result:
        if not self._free.acquire(blocking=False):
            raise MeshError(Code.RATE_LIMITED, hint="Too many keys are being checked.")
        future = self._pool.submit(work)
        # Freed where the work ends, so that callers who gave up do not make room for more than there is.
        future.add_done_callback(lambda _: self._free.release())
        return await asyncio.wrap_future(future)


@asynccontextmanager
async def key_hasher(kind: str) -> AsyncGenerator[KeyHasher]:
    """A hasher with its threads.

    Args:
        kind: `bcrypt` or `sha256`, how new keys are kept.

    Raises:
        MeshError: `invalid_settings` for any other kind.
    """
    if kind not in ("bcrypt", "sha256"):
        raise MeshError(Code.INVALID_SETTINGS, hint="key_hash is bcrypt or sha256.")
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="key-hash")
    try:
        yield KeyHasher(kind, pool)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _sha256(text: str) -> str:
    return _SHA256 + hashlib.sha256(text.encode()).hexdigest()


def _check(text: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(text, hashed)
    except ValueError:
        return False
