"""The control store as the mesh uses it: typed values, and the interface a simulated store fulfils too.

Knows nothing of etcd's wire format (`etcd.py`) or of what is stored (`layout.py`, `records.py`).

    StoreError
    ├── StoreUnavailableError       no answer, or none that counts; a transaction may have run, or may run yet
    ├── StoreDeniedError            this certificate may not do this
    ├── StoreRefusedError           against the store's own rules, such as a user that exists
    └── CompactedError              the history that was asked for is gone: read again
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol


class StoreError(Exception):
    """The control store did not do what was asked."""


class StoreUnavailableError(StoreError):
    """No member answered in time, or none that has a quorum.

    Attributes:
        reason: A gRPC status's name; never a text.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StoreRefusedError(StoreError):
    """Against the store's own rules. The message is one of its fixed phrases."""


class StoreDeniedError(StoreError):
    """The store knows this certificate, and refuses it this."""


class CompactedError(StoreError):
    """The history below `revision` is gone; 0 where the store did not say."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"compacted at {revision}")
        self.revision = revision


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as it stands, or stood. `version` counts its puts since it was made; both revisions are the store's."""

    key: str
    value: bytes
    mod_revision: int
    version: int


@dataclass(frozen=True, slots=True)
class Range:
    """Reads one key, or with `end` the keys [key, end).

    Attributes:
        limit: At most so many keys; 0 is all.
        revision: As the store stood then; 0 is now, linearizably.
        serializable: What the member that is asked has, which may be behind, and costs no round trip to others. Of a
            transaction's reads all are, or none.
    """

    key: str
    end: str | None = None
    limit: int = 0
    revision: int = 0
    serializable: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """Sets a key."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes one key, or with `end` the keys [key, end)."""

    key: str
    end: str | None = None


Op = Range | Put | Delete


@dataclass(frozen=True, slots=True)
class Compare:
    """Holds if the key was last changed at exactly `mod_revision`; 0: if it does not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Keys in order, as of `revision`; `more` when the limit cut them off."""

    revision: int
    items: tuple[KeyValue, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Which branch ran. `ranges` are the answers to its reads, in order; `cluster` is who answered, 0 if not known."""

    revision: int
    succeeded: bool
    ranges: tuple[RangeResult, ...] = ()
    cluster: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A key was put, or deleted (`value` is None then).

    Attributes:
        before: The key as it stood just before, or None where it did not exist or the store no longer knows.
    """

    key: str
    mod_revision: int
    version: int
    value: bytes | None
    before: KeyValue | None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Whole revisions: every event of each one in the range, in order."""

    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class WatchUp:
    """A member follows from where the watch had come to. No evidence of what was written since."""


@dataclass(frozen=True, slots=True)
class WatchDown:
    """The connection is lost, and is being made again; nothing is skipped. `reason` is a gRPC status's name."""

    reason: str


WatchNews = WatchBatch | WatchUp | WatchDown


class Store(Protocol):
    """A linearizable key-value store with history."""

    async def range(self, request: Range, *, timeout_s: float) -> RangeResult:
        """Reads.

        Raises:
            CompactedError: `request.revision` is gone.
            StoreUnavailableError: No answer within `timeout_s`.
        """
        ...

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = (), *, timeout_s: float
    ) -> TxnResult:
        """Runs `then` if all compares hold, else `otherwise`: at one revision, once or never.

        Raises:
            StoreUnavailableError: No answer within `timeout_s`. It may have run, or may run yet.
        """
        ...

    def watch(self, key: str, end: str, start: int) -> AsyncGenerator[WatchNews]:
        """Every event of [key, end) from revision `start` on, each once and in order, whatever the network does.

        Never ends by itself; close it (`contextlib.aclosing`).

        Raises:
            CompactedError: Events were forgotten before they could be told. Read the range again.
        """
        ...


def prefix_end(prefix: str) -> str:
    """The end of the range of all keys that begin with `prefix` (ASCII, not empty)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
