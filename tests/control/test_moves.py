"""A tenant's move from home to home: in its steps, against the faults between them, and as gateways see it."""

from __future__ import annotations

from pathlib import Path

import pytest
from etcd_lab import running_etcd
from move_lab import BOTH, K1, K2, SG, VN, A, B, Homes, in_memory

from mesh.errors import Code, MeshError
from mesh.policy.bundle import Spans
from mesh.types import Role, TenantState, Transfer


async def refused(work: object) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await work  # pyright: ignore[reportGeneralTypeIssues]
    return caught.value


async def the_story_of_a_move(homes: Homes) -> None:
    tenant, (a, b) = homes.tenant, (homes.admins[A], homes.admins[B])
    await a.set_authority(tenant, Spans(home_s=300, foreign_s=5))
    before = await a.tenant(tenant)
    first = await b.moves.prepare(tenant, A)
    assert await homes.home() == A, "prepared, and nothing moved"
    assert (await refused(b.tenant(tenant))).code is Code.TENANT_NOT_FOUND
    assert await b.tenants() == ()
    left = await a.moves.leave(tenant, B)
    assert (left.changed, left.revision) == (True, before.policy.revision + 1)
    assert left.shrink is not None
    assert (left.shrink.removed, left.shrink.span_s) == (frozenset(), 900), "what was before 300 s counts as well"
    policy = (await homes.book()).tenant(tenant)
    assert policy is not None
    assert policy == first.policy
    assert (policy.home, policy.home_jurisdiction, policy.moves) == (B, SG, 1)
    assert (policy.allowed, policy.transfer, policy.state) == (BOTH, Transfer.NEVER, TenantState.ACTIVE)
    assert policy.authority == Spans(home_s=300, foreign_s=5)
    assert policy.authority_before == {VN: 900}, "Hanoi's time, and what it was before"
    book = await homes.book()
    assert [(key.key_id, key.revoked) for key in book.all_keys()] == [(K1, False)]
    assert await a.tenants() == ()
    for work in (a.tenant(tenant), a.set_allowed(tenant, frozenset({VN})), a.create_key(tenant, K2, "sha256$1")):
        assert (await refused(work)).code is Code.TENANT_NOT_FOUND
    assert (await refused(a.revoke_key(K1))).code is Code.KEY_NOT_FOUND
    assert (await refused(a.key(K1))).code is Code.KEY_NOT_FOUND
    # Not finished, and yet the new home's.
    assert (await b.tenant(tenant)).policy == first.policy
    assert [record.policy for record in await b.tenants()] == [first.policy]
    assert (await b.key(K1)).key.key_id == K1
    waited, stands = await b.moves.finish(tenant)
    assert len(stands.chain) == 1
    assert (waited.tenant.policy.home, waited.revision, waited.shrink) == (A, left.revision, left.shrink)
    assert waited.number >= left.number
    settled = await b.settle_authority(tenant, stands.policy.revision)
    assert settled.tenant.policy.authority_before == {}
    # The old jurisdiction can leave the pin now, and the change carries the move.
    pinned = await b.set_allowed(tenant, frozenset({SG}))
    assert len(pinned.tenant.chain) == 1
    await b.revoke_key(K1)
    book = await homes.book()
    policy = book.tenant(tenant)
    assert policy == (await b.tenant(tenant)).policy
    assert policy is not None
    assert policy.allowed == {SG}
    key = book.key(K1)
    assert key is not None
    assert key.revoked


async def test_the_story_of_a_move() -> None:
    await the_story_of_a_move(await in_memory()[0].begin())


async def test_the_story_of_a_move_on_etcd_with_each_admins_own_rights(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, (A, B)) as lab:
        homes = Homes({home: await lab.store(home, Role.ADMIN) for home in (A, B)})
        await the_story_of_a_move(await homes.begin())
