"""A host's three clocks, moved by hand, and a replica's leases on them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from mesh.ports import Instant
from mesh.serving.leases import Leases, Source, Stay
from mesh.types import KeyId, ReplicaId, TenantId

REPLICA = ReplicaId("0123456789abcdef")
T, OTHER = TenantId("t_aaaaaaaaaaaaaaaa"), TenantId("t_bbbbbbbbbbbbbbbb")


class HandClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.boot_s = self.raw_s = 1000.0
        self.wall_s_ = 1_000_000.0

    def go(self, seconds: float, *, boot: float = 1.0, raw: float = 1.0) -> None:
        """So many true seconds pass; `boot` and `raw` are the rates of the two clocks."""
        self.boot_s += seconds * boot
        self.raw_s += seconds * raw
        self.wall_s_ += seconds * boot

    def instant(self) -> Instant:
        return Instant(boot_s=self.boot_s, raw_s=self.raw_s, wall_s=self.wall_s_)

    def now_s(self) -> float:
        return self.boot_s

    def wall_s(self) -> float:
        return self.wall_s_

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        raise NotImplementedError


class Bench:
    """One replica's leases, and its one gateway `gateway` whose first stream has begun."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.leases = Leases(REPLICA, self.clock)
        self.gateway = self.another()

    def another(self) -> Source:
        source = self.leases.source()
        source.begin()
        return source

    def admit(
        self,
        ping: int,
        left_s: float,
        *,
        message: int = 1,
        number: int = 1,
        moves: int = 0,
        tenant: TenantId = T,
        key: str | None = "k_1",
        replica: str = REPLICA,
    ) -> Stay:
        text = f"{replica}.{ping}.{message}.{int(left_s * 1000)}.{moves}.{number}".encode()
        return self.leases.admit(text, tenant, None if key is None else KeyId(key))
