"""The admins of three homes between which a tenant moves."""

from __future__ import annotations

from memory_store import MemoryStore
from trust_lab import Notebook, changes_in, trust_in

from mesh.control.changes import Changes
from mesh.control.feed import PolicyFeed
from mesh.control.store import Store
from mesh.policy.bundle import PolicyBook
from mesh.runtime import SystemClock
from mesh.types import Jurisdiction, KeyId, RegionId, TenantId, Transfer

A, B, C = RegionId("vn-1"), RegionId("sg-1"), RegionId("vn-10")
VN, SG = Jurisdiction("VN"), Jurisdiction("SG")
BOTH = frozenset({VN, SG})
K1, K2 = KeyId("K" * 12), KeyId("L" * 12)
CLOCK = SystemClock()


class Homes:
    """The admins of three homes, on stores of one cluster, each with its ledger."""

    def __init__(self, stores: dict[RegionId, Store]) -> None:
        self.stores = stores
        self.ledgers = {home: Notebook() for home in stores}
        self.admins: dict[RegionId, Changes] = {}
        for home in stores:
            self.restart(home)
        self.tenant = TenantId("")

    def restart(self, home: RegionId) -> Changes:
        """Another process, of the same ledger."""
        self.admins[home] = changes_in(self.stores[home], home, CLOCK, journal=self.ledgers[home])
        return self.admins[home]

    async def begin(self, *, keys: int = 1) -> Homes:
        made = await self.admins[A].create_tenant(bytes(16), BOTH, Transfer.NEVER)
        self.tenant = made.tenant.policy.tenant
        for key_id in (K1, K2)[:keys]:
            await self.admins[A].create_key(self.tenant, key_id, f"sha256${key_id}")
        return self

    async def move(self, old: RegionId, new: RegionId) -> None:
        await self.admins[new].moves.prepare(self.tenant, old)
        await self.admins[old].moves.leave(self.tenant, new)
        await self.admins[new].moves.finish(self.tenant)

    async def book(self, store: Store | None = None) -> PolicyBook:
        """What a gateway that starts now reads."""
        book = PolicyBook()
        feed = PolicyFeed(store or self.stores[A], book, CLOCK, trust_in())
        await feed._load()
        assert not feed.invalid, "nothing of a move is an alarm"
        return book

    async def home(self) -> RegionId | None:
        policy = (await self.book()).tenant(self.tenant)
        return None if policy is None else policy.home


def in_memory() -> tuple[Homes, MemoryStore]:
    store = MemoryStore()
    return Homes(dict.fromkeys((A, B, C), store)), store
