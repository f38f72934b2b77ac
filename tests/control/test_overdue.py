"""A watch that is up and tells nothing: what grants say of a shard is read, so that authority does not run out."""

from __future__ import annotations

import pytest
from member_lab import ABROAD, HOME, SG, VN, Gateway, World

from mesh.control import layout
from mesh.control.store import Range, RangeResult, StoreUnavailableError
from mesh.policy.bundle import Spans
from mesh.types import KeyId, TenantId, Transfer


def silence(gateway: Gateway) -> None:
    """From now on the watch stays up and tells nothing."""
    gateway.link._open.clear()


def hear(gateway: Gateway) -> None:
    """It tells all that it was silent of."""
    gateway.link._open.set()


def number(world: World, gateway: Gateway, tenant: TenantId) -> tuple[int, int]:
    """What the gateway has applied of a tenant's shard, and where that is."""
    policy = gateway.book.tenant(tenant)
    assert policy is not None
    head = world.store.value(layout.head_key(policy.shard))
    assert head is not None
    return gateway.authority.number(policy.shard), head.version


async def test_authority_does_not_wait_for_a_silent_watch_to_break() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0.5)
        silence(gateway)
        for at in range(40):
            if at % 3 == 0:
                await world.pin(tenant, *((VN, SG) if at % 2 else (VN,)))
            await world.clock.advance(1)
            # Without a read there is none after 6 s, though each grant is answered.
            policy = gateway.book.tenant(tenant)
            assert policy is not None
            assert gateway.authority.left_s(policy, SG, world.clock.instant()) > 0
        await world.pin(tenant, VN)
        await world.clock.advance(4)
        applied, head = number(world, gateway, tenant)
        assert applied == head
        policy = gateway.book.tenant(tenant)
        assert policy is not None
        assert policy.allowed == {VN}
        assert gateway.overdue.reads > 0
        before = gateway.feed.gaps
        hear(gateway)
        await world.clock.advance(0)
        # What it tells late was read before, and the next change follows on that.
        assert gateway.feed.gaps == before == 0
        await world.pin(tenant, VN, SG)
        await world.clock.advance(0)
        assert gateway.feed.gaps == 0
        assert gateway.left_s(tenant, SG) > 0
        assert not gateway.feed.invalid


async def test_once_it_is_known_to_be_silent_nothing_is_waited_for() -> None:
    """The shortest span there is holds out from one grant to the next, and not to the one after that."""
    async with World().running() as world:
        tenant = await world.tenant()
        await world.changes.set_authority(tenant, Spans(home_s=3.0, foreign_s=3.0))
        gateway = world.gateway()
        await world.clock.advance(0.5)
        silence(gateway)
        for at in range(20):
            await world.changes.set_transfer(tenant, (Transfer.NEVER, Transfer.WITHIN_ALLOWED)[at % 2])
            await world.clock.advance(0.9)
            assert at < 6 or gateway.left_s(tenant, SG) > 0


async def test_a_shard_that_was_never_written_to_is_read_as_well() -> None:
    async with World().running() as world:
        gateway = world.gateway()
        await world.clock.advance(0.5)
        silence(gateway)
        tenant = await world.tenant()
        await world.clock.advance(6)
        assert gateway.left_s(tenant, SG) > 0


async def test_nothing_is_read_while_the_watch_tells() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0.5)
        reads = gateway.link.reads
        for at in range(20):
            await world.pin(tenant, *((VN, SG) if at % 2 else (VN,)))
            await world.clock.advance(1)
        assert gateway.link.reads == reads
        assert gateway.overdue.reads == 0


class _HalfWay:
    """A shard's second page does not come, `times` times."""

    def __init__(self, gateway: Gateway, times: int) -> None:
        self.times = times
        self.inner = gateway.link.range

    async def range(self, request: Range, *, timeout_s: float) -> RangeResult:
        if self.times and request.end is not None and not request.key.endswith("/"):
            self.times -= 1
            raise StoreUnavailableError("UNAVAILABLE")
        return await self.inner(request, timeout_s=timeout_s)


@pytest.mark.parametrize("heals", [True, False], ids=["read again", "told"])
async def test_a_read_that_failed_half_way_is_no_ground_for_older_events(heals: bool) -> None:
    """It has put newer records into the book: what the watch tells of the older ones must not take those away."""
    async with World().running() as world:
        tenant = await world.tenant()
        for name in "abcdef":
            await world.changes.create_key(tenant, KeyId(name * 8), "sha256$00")
        gateway = world.gateway()
        await world.clock.advance(0.5)
        silence(gateway)
        await world.pin(tenant, VN)
        await world.changes.set_transfer(tenant, Transfer.NEVER)
        broken = _HalfWay(gateway, 1 if heals else 2)
        gateway.link.range = broken.range  # pyright: ignore[reportAttributeAccessIssue]
        await world.clock.advance(4)
        assert broken.times < 2
        applied, head = number(world, gateway, tenant)
        assert applied < head
        if heals:
            await world.clock.advance(4)
            assert gateway.overdue.reads == 1
        hear(gateway)
        await world.clock.advance(5)
        policy = gateway.book.tenant(tenant)
        assert policy is not None
        assert (policy.allowed, policy.transfer) == ({VN}, Transfer.NEVER)
        applied, head = number(world, gateway, tenant)
        assert applied == head
        assert not gateway.feed.invalid
        assert gateway.left_s(tenant, VN) > 0


async def test_a_read_that_finds_another_history_drops_authority_and_begins_anew() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway(HOME)
        await world.clock.advance(1)
        silence(gateway)
        backup = world.store.revision
        await world.pin(tenant, VN)
        await world.clock.advance(4)
        assert gateway.overdue.reads == 1
        policy = gateway.book.tenant(tenant)
        assert policy is not None
        world.store.restore(backup)
        assert await gateway.feed.catch_up(policy.shard, 1000)
        assert gateway.feed.backs == 1
        assert gateway.membership.went_back_once
        assert gateway.left_s(tenant, VN) == 0
        hear(gateway)
        await world.clock.advance(5)
        # What the watch tells is of another history: all is read anew, and what is older than was seen is refused.
        assert gateway.feed.applied == world.store.revision
        assert gateway.book.tenant(tenant) is None
        assert gateway.feed.backs == 1


async def test_a_gateway_elsewhere_is_not_held_up() -> None:
    """What one gateway does not hear of costs no other anything."""
    async with World().running() as world:
        tenant = await world.tenant()
        deaf, hears = world.gateway(ABROAD, "gw1"), world.gateway(HOME, "gw2")
        await world.clock.advance(0.5)
        silence(deaf)
        await world.pin(tenant, VN)
        await world.clock.advance(0)
        assert number(world, hears, tenant)[0] > number(world, deaf, tenant)[0]
        await world.clock.advance(4)
        assert number(world, hears, tenant) == number(world, deaf, tenant)
