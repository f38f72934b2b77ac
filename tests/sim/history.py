"""The history of an episode: what happened, in true time, one JSON object a line. `check.py` reads it and knows no more.

Append-only: a line is never changed, and none comes after the seal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from hashlib import sha256


class History:
    """The lines so far."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.lines: list[str] = []
        self._now = now
        self._sealed = False

    def note(self, host: str, do: str, **fields: object) -> None:
        """Adds a line. Times in it are rounded to a microsecond."""
        if not self._sealed:
            line = {"t": round(self._now(), 6), "host": host, "do": do}
            self.lines.append(json.dumps(line | fields, separators=(",", ":")))

    def seal(self) -> None:
        """What comes now is not part of it."""
        self._sealed = True

    def digest(self) -> str:
        """The same for the same history."""
        return sha256("\n".join(self.lines).encode()).hexdigest()

    # --- what the promise speaks of

    def committed(
        self,
        host: str,
        *,
        tenant: str,
        revision: int,
        permits: Iterable[str],
        key: str | None = None,
        epoch: int = 0,
        home: str = "",
    ) -> None:
        """A tenant's record was put.

        Args:
            host: Whose transaction it was.
            tenant: Whose record.
            revision: The tenant's own counter.
            permits: The jurisdictions in which it may be served from now on; none while suspended.
            key: The key that this change revoked.
            epoch: The control epoch; a later one comes after all revisions of an earlier one.
            home: Whose record it is.
        """
        self.note(
            host, "commit", tenant=tenant, revision=revision, permits=sorted(permits), revoked=key, epoch=epoch,
            home=home,
        )  # fmt: skip

    def moved(self, host: str, *, tenant: str, moves: int, home: str, new_home: str, revision: int) -> None:
        """A home has said that a tenant left it. `revision`: the last one of that home."""
        self.note(host, "moved", tenant=tenant, moves=moves, home=home, new_home=new_home, revision=revision)

    def settled(self, host: str, *, tenant: str, moves: int) -> None:
        """Whoever moved a tenant was told that it is over: nobody acts on the record of a home before that move."""
        self.note(host, "settled", tenant=tenant, moves=moves)

    def returned(
        self,
        host: str,
        *,
        tenant: str,
        revision: int,
        removed: Iterable[str],
        outcome: str,
        judged: float,
        key: str | None = None,
        epoch: int = 0,
        **more: object,
    ) -> None:
        """A shrink came back to who asked for it.

        Args:
            host: Which admin says so.
            tenant: Whose shrink.
            revision: As committed.
            removed: The jurisdictions that it removed; `*` for all, as by suspending.
            outcome: `done`: from now on the promise holds. `superseded` and anything else promise nothing.
            judged: When the read on which it was judged ran in the store.
            key: The key that it revoked.
            epoch: As committed.
            more: How each member was accounted for; not checked.
        """
        self.note(
            host, "returned", tenant=tenant, revision=revision, removed=sorted(removed), outcome=outcome,
            judged=round(judged, 6), revoked=key, epoch=epoch, **more,
        )  # fmt: skip

    def admitted(
        self, host: str, *, tenant: str, jurisdiction: str, request: str, key: str | None, arrived: float,
        moves: int | None = 0,
    ) -> None:  # fmt: skip
        """A door let a call in.

        Args:
            host: Whose door.
            tenant: Whose call.
            jurisdiction: Where.
            request: Its id.
            key: By which of the tenant's keys.
            arrived: When its headers came, in true time.
            moves: By a record after how many moves of the tenant's home; None where the gateway has none any more.
        """
        self.note(
            host, "admit", tenant=tenant, jurisdiction=jurisdiction, request=request, key=key,
            arrived=round(arrived, 6), **_unless_0(moves),
        )  # fmt: skip

    def refused(self, host: str, *, tenant: str, jurisdiction: str, request: str, code: str) -> None:
        """A door or a replica did not. Shows that a check looked at something."""
        self.note(host, "refuse", tenant=tenant, jurisdiction=jurisdiction, request=request, code=code)

    def forwarded(
        self, host: str, *, tenant: str, jurisdiction: str, request: str, key: str | None, moves: int | None = 0
    ) -> None:
        """Something of a call was handed to the net towards a jurisdiction. `moves`: as `admitted`."""
        self.note(
            host, "forward", tenant=tenant, jurisdiction=jurisdiction, request=request, key=key, **_unless_0(moves)
        )  # fmt: skip

    def received(
        self, host: str, *, tenant: str, jurisdiction: str, request: str, key: str | None, accepted: bool
    ) -> None:
        """What was sent towards a jurisdiction has arrived there, and was taken or refused."""
        self.note(
            host, "receive", tenant=tenant, jurisdiction=jurisdiction, request=request, key=key, accepted=accepted
        )  # fmt: skip

    def held(self, host: str, hold: str, *, what: str, tenant: str, jurisdiction: str, key: str | None) -> None:
        """Work of a tenant takes a `slot`, a place in a `queue` or a `stream`, until `freed` or its host died."""
        self.note(host, "hold", hold=hold, what=what, tenant=tenant, jurisdiction=jurisdiction, key=key)

    def freed(self, host: str, hold: str) -> None:
        """It does not any more."""
        self.note(host, "free", hold=hold)

    def stepped(
        self, host: str, *, tenant: str, jurisdiction: str, request: str, key: str | None, takes_s: float
    ) -> None:
        """An engine step began. It ends after `takes_s` whatever happens to the program, unless its host dies."""
        self.note(
            host, "step", tenant=tenant, jurisdiction=jurisdiction, request=request, key=key, takes=round(takes_s, 6)
        )  # fmt: skip


def _unless_0(moves: int | None) -> dict[str, int | None]:
    return {} if moves == 0 else {"moves": moves}
