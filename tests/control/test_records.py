"""Ids, codecs, layout, ops: what is written is read again, and nothing else is."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore
from trust_lab import HOMES, signer_of, trust_in

from mesh.control import layout, records
from mesh.control.ops import KEPT_S, made_at_s, new_op_id, sweep
from mesh.control.records import KeyRecord, RecordError, TenantRecord, tenant_id
from mesh.control.store import Put, Range, prefix_end
from mesh.policy.bundle import Spans, TenantKey, TenantPolicy
from mesh.policy.shards import SHARDS, Shard, shard_of
from mesh.runtime import SystemClock, SystemEntropy
from mesh.settings import JURISDICTIONS
from mesh.types import KeyId, RegionId, Revision, TenantId, TenantState, Transfer

homes = st.sampled_from([RegionId("vn-1"), RegionId("vn-10"), RegionId("ap-southeast-1")])

TRUST = trust_in()


@st.composite
def tenant_records(draw: st.DrawFn) -> TenantRecord:
    home, nonce = draw(homes), draw(st.binary(min_size=16, max_size=16))
    revision = draw(st.integers(1, 2**63))
    codes = sorted(JURISDICTIONS)
    allowed = draw(st.frozensets(st.sampled_from(codes), min_size=1))
    out = draw(st.dictionaries(st.sampled_from(codes), st.integers(1, revision).map(Revision)))
    spans = st.integers(1, 86_400_000).map(lambda ms: ms / 1000)
    policy = TenantPolicy(
        tenant=tenant_id(home, nonce),
        home=home,
        home_jurisdiction=HOMES[home],
        revision=Revision(revision),
        state=draw(st.sampled_from(TenantState)),
        allowed=allowed,
        transfer=draw(st.sampled_from(Transfer)),
        authority=Spans(home_s=draw(spans), foreign_s=draw(spans)),
        authority_before=draw(st.dictionaries(st.sampled_from(codes), spans)),
        out_since={place: since for place, since in out.items() if place not in allowed},
        drain_s=draw(spans),
    )
    return TenantRecord(policy=policy, genesis=home, nonce=nonce)


def place(record: TenantRecord) -> layout.PolicyKey:
    at = layout.parse(layout.policy_key(record.policy.home, record.policy.tenant))
    assert isinstance(at, layout.PolicyKey)
    return at


@given(tenant_records(), st.binary(max_size=40))
def test_tenants_are_read_as_they_were_written(record: TenantRecord, junk: bytes) -> None:
    value = records.encode_tenant(record, signer_of(record.policy.home), 1)
    assert records.decode_tenant(place(record), value, TRUST) == record
    try:
        records.decode_tenant(place(record), junk, TRUST)
    except RecordError:
        pass
    else:
        raise AssertionError("junk is no record")


@given(tenant_records(), homes)
def test_a_record_counts_at_its_own_place_only(record: TenantRecord, other: RegionId) -> None:
    value = records.encode_tenant(record, signer_of(record.policy.home), 1)
    at = place(record)
    wrong = [dataclasses.replace(at, shard=Shard(at.shard.home, (at.shard.index + 1) % SHARDS))]
    if other != record.policy.home:
        wrong.append(dataclasses.replace(at, shard=Shard(other, at.shard.index)))
        # Taken over: the same tenant, said to be at home elsewhere.
        stolen = dataclasses.replace(record, policy=dataclasses.replace(record.policy, home=other))
        with pytest.raises(RecordError):
            records.decode_tenant(place(stolen), records.encode_tenant(stolen, signer_of(other), 1), TRUST)
    wrong.append(dataclasses.replace(at, tenant=TenantId("t_" + "a" * 16)))
    for elsewhere in wrong:
        with pytest.raises(RecordError):
            records.decode_tenant(elsewhere, value, TRUST)


@given(tenant_records(), st.booleans())
def test_keys_are_read_as_they_were_written(tenant: TenantRecord, revoked: bool) -> None:
    policy = tenant.policy
    key = TenantKey(key_id=KeyId("K" * 12), tenant=policy.tenant, hash="sha256$00", revoked=revoked)
    record = KeyRecord(
        key=key,
        home=policy.home,
        created_revision=Revision(3),
        revision=Revision(7),
        created_s=5,
        revoked_s=9 if revoked else None,
    )
    at = layout.parse(layout.key_key(policy.home, policy.tenant, key.key_id))
    assert isinstance(at, layout.KeyKey)
    value = records.encode_key(record, signer_of(policy.home), 1)
    assert records.decode_key(at, value, TRUST) == record
    with pytest.raises(RecordError):
        records.decode_key(dataclasses.replace(at, key_id=KeyId("L" * 12)), value, TRUST)


def test_lengths_keep_ids_apart() -> None:
    # Without them, "vn-1" + "0..." and "vn-10" + "..." would be hashed alike.
    assert tenant_id(RegionId("vn-1"), b"0" * 16) != tenant_id(RegionId("vn-10"), b"0" * 15)
    assert tenant_id(RegionId("vn-1"), bytes(16)) == "t_yse5bsdswl54qp4g"


@given(homes, homes)
def test_no_home_holds_another(one: RegionId, other: RegionId) -> None:
    if one == other:
        return
    for prefix in (layout.home_prefix, layout.head_prefix, layout.op_prefix, layout.grant_prefix, layout.ack_prefix):
        start, end = prefix(one), prefix_end(prefix(one))
        assert not start <= prefix(other) < end


def test_the_feed_covers_heads_and_policies_and_neither_grants_nor_acks() -> None:
    home, tenant = RegionId("vn-1"), TenantId("t_" + "a" * 16)
    start, end = layout.FEED
    inside = [layout.policy_key(home, tenant), layout.head_key(shard_of(home, tenant))]
    assert all(start <= key < end for key in inside)
    assert not any(start <= key < end for key in (layout.grant_prefix(home), layout.ack_prefix(home)))


def test_ops_older_than_a_week_are_swept() -> None:
    async def main() -> None:
        store, clock, home = MemoryStore(), SystemClock(), RegionId("vn-1")
        tenant = TenantId("t_" + "a" * 16)
        ours = [layout.op_key(home, tenant, new_op_id(clock, SystemEntropy())) for _ in range(250)]
        made_s = made_at_s(ours[0])
        assert made_s is not None
        assert abs(made_s - clock.wall_s()) < 3600
        others = [layout.op_key(home, tenant, "not-a-uuid"), layout.op_key(RegionId("vn-10"), tenant, ours[0][-36:])]
        for key in (*ours, *others):
            await store.txn((), [Put(key, b"")], timeout_s=1)
        assert await sweep(store, home, clock.wall_s() + KEPT_S - 3600) == 0
        assert await sweep(store, home, clock.wall_s() + KEPT_S + 3600) == len(ours)
        left = await store.range(Range("/mesh/op/", "/mesh/op0"), timeout_s=1)
        assert {item.key for item in left.items} == set(others)

    asyncio.run(main())
