"""A body that is carried and not looked at.

It shows its size and nothing else: not in `repr`, not in a traceback, and it refuses to be pickled or copied, so that
it cannot slip into a log, an object store or a queue. Doors and replicas open it; nobody else may import this module.
"""

from __future__ import annotations

from typing import NoReturn


class Sealed:
    """Bytes as a client sent them, and their content type."""

    __slots__ = ("_body", "content_type", "size_bytes")

    def __init__(self, body: bytes | bytearray, content_type: str) -> None:
        self._body: bytes | bytearray | None = body
        self.content_type = content_type
        self.size_bytes = len(body)

    def open(self) -> bytes | bytearray:
        """The bytes, to be moved on or parsed at once; do not keep them.

        Raises:
            RuntimeError: It was wiped.
        """
        if self._body is None:
            raise RuntimeError("the parcel was wiped")
        return self._body

    def wipe(self) -> None:
        """Forgets the bytes, and overwrites them where Python lets us (`bytearray`). Idempotent."""
        body, self._body = self._body, None
        if isinstance(body, bytearray):
            # Of the same length: a view that a socket still holds forbids to resize it.
            body[:] = bytes(len(body))

    def __repr__(self) -> str:
        return f"Sealed({self.size_bytes} bytes)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a sealed parcel is neither pickled nor copied")
