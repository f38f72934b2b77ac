"""Running calls, those together whose authority ends at the same moment, so that a timer looks at one of each."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from typing import Generic, TypeVar

from mesh.policy.bundle import Spans, TenantPolicy
from mesh.policy.shards import Shard
from mesh.policy.shrink import Rights
from mesh.types import Jurisdiction

Cover = tuple[Shard, Jurisdiction, Spans, Rights]
"""From this and the time alone follows what is left of authority: calls that have it in common have as much left."""
T = TypeVar("T", bound=Hashable)


def cover_of(policy: TenantPolicy, uses: Rights) -> Cover:
    """What a call's authority comes from."""
    return policy.shard, policy.home_jurisdiction, policy.authority, uses


class Alike(Generic[T]):
    """Each thing is in one group, or by itself."""

    def __init__(self) -> None:
        self._cover: dict[T, Cover | None] = {}
        self._groups: dict[Cover, dict[T, None]] = {}
        self._single: dict[T, None] = {}

    def put(self, one: T, cover: Cover | None) -> None:
        """Puts it where it belongs now; None: by itself."""
        if one in self._cover:
            if self._cover[one] == cover:
                return
            self.remove(one)
        self._cover[one] = cover
        (self._single if cover is None else self._groups.setdefault(cover, {}))[one] = None

    def remove(self, one: T) -> None:
        """Takes it out."""
        cover = self._cover.pop(one)
        if cover is None:
            del self._single[one]
            return
        group = self._groups[cover]
        del group[one]
        if not group:
            del self._groups[cover]

    def __contains__(self, one: T) -> bool:
        """Whether it was put."""
        return one in self._cover

    def groups(self) -> Iterator[Collection[T]]:
        """Of each group all members, in the order in which they came; who is by itself is one of its own."""
        for one in list(self._single):
            yield (one,)
        yield from list(self._groups.values())
