"""What one admin has seen of the control store's history: a store that shows less than that went back in time.

Only an answer whose request was sent after something was seen can show that it is gone: answers overtake each other.
"""

from __future__ import annotations

from typing import NamedTuple

from mesh.control.store import TxnResult
from mesh.errors import Code, MeshError
from mesh.telemetry.log import Log


class Seen(NamedTuple):
    """The newest revision that was answered, and by which cluster; 0 where nothing was yet."""

    revision: int = 0
    cluster: int = 0


class StoreHistory:
    """Shared by all of an admin's readers and writers of the store.

    Attributes:
        went_back: Whether the store was seen to have gone back. It stays so: what was lost, and who the members of the
            lost history were, cannot be known from here. It ends with a new control epoch, in another process.
    """

    def __init__(self, log: Log | None = None) -> None:
        self.went_back = False
        self._log = log
        self._seen = Seen()

    def seen(self) -> Seen:
        """What was seen so far: to be asked for before a request is sent."""
        return self._seen

    def take(self, answer: TxnResult, before: Seen) -> None:
        """Takes in a linearizable answer to what was sent after `before`.

        Raises:
            MeshError: `policy_store_unavailable`: the store went back in time, now or earlier.
        """
        if not self.fits(answer, before):
            self.went_back_at(answer.revision)
        elif answer.revision >= self._seen.revision:
            self._seen = Seen(answer.revision, answer.cluster or self._seen.cluster)
        self.check()

    def fits(self, answer: TxnResult, before: Seen) -> bool:
        """Whether what one member has is all that was seen; where not, it is behind, or the store went back."""
        return answer.revision >= before.revision and (
            not answer.cluster or not before.cluster or answer.cluster == before.cluster
        )

    def went_back_at(self, revision: int) -> None:
        """The store is older than it was, as its revision of now shows or what it lacks."""
        if not self.went_back and self._log is not None:
            self._log.error("policy.store_went_back", revision=revision, applied=self._seen.revision)
        self.went_back = True

    def check(self) -> None:
        """Raises MeshError, `policy_store_unavailable`, once the store went back in time."""
        if self.went_back:
            hint = (
                "It shows an older state than before: it was restored. Nothing is changed until 'mesh control recover'."
            )
            raise MeshError(Code.POLICY_STORE_UNAVAILABLE, hint=hint)
