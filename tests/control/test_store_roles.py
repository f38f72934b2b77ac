"""The real store: who may do what, what a wire error means, and no TLS below 1.3."""

from __future__ import annotations

from pathlib import Path

import pytest
from etcd_lab import running_etcd
from ports import HOST
from trust_lab import changes_in

from mesh.control.roles import set_up
from mesh.control.store import (
    CompactedError,
    Compare,
    Delete,
    Put,
    Range,
    StoreDeniedError,
    StoreUnavailableError,
)
from mesh.errors import Code, MeshError
from mesh.tls import check_tls13
from mesh.types import Jurisdiction, RegionId, Role, Transfer

VN = frozenset({Jurisdiction("VN")})


async def test_a_transaction_runs_one_branch_at_one_revision(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        store = await lab.root()
        made = await store.txn([Compare("/a", 0)], [Put("/a", b"1"), Range("/a")], timeout_s=30)
        assert made.succeeded
        (seen,) = made.ranges
        assert (seen.items[0].value, seen.items[0].version, seen.items[0].mod_revision) == (b"1", 1, made.revision)
        again = await store.txn([Compare("/a", 0)], [Put("/a", b"2")], [Range("/a")], timeout_s=30)
        assert not again.succeeded
        assert again.ranges[0].items[0].value == b"1"
        for name in "bcd":
            await store.txn([], [Put(f"/p/{name}", name.encode())], timeout_s=30)
        page = await store.range(Range("/p/", "/p0", limit=2), timeout_s=30)
        assert page.more
        assert [item.key for item in page.items] == ["/p/b", "/p/c"]
        await store.txn([], [Delete("/p/", "/p0")], timeout_s=30)
        assert (await store.range(Range("/p/", "/p0"), timeout_s=30)).items == ()
        old = await store.range(Range("/p/", "/p0", revision=page.revision), timeout_s=30)
        assert len(old.items) == 3
        await store.compact(page.revision + 1, timeout_s=30)
        with pytest.raises(CompactedError):
            await store.range(Range("/p/", "/p0", revision=page.revision), timeout_s=30)
        (status,) = await store.status(timeout_s=30)
        assert status is not None
        assert status.has_leader


async def test_each_certificate_may_write_only_what_is_its_own(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, ("vn-1", "vn-10")) as lab:
        gateway = await lab.store("vn-1", Role.GATEWAY)
        admin = await lab.store("vn-1", Role.ADMIN)
        other = await lab.store("vn-10", Role.ADMIN)
        replica = await lab.store("vn-1", Role.REPLICA)
        allowed = [
            (gateway, "/mesh/grant/vn-1/u"),
            (gateway, "/mesh/ack/vn-1/u"),
            (admin, "/mesh/policy/vn-1/0/t"),
            (admin, "/mesh/head/vn-1/0"),
            (admin, "/mesh/op/vn-1/t/o"),
            (admin, "/mesh/grant/vn-1/u"),
            (other, "/mesh/policy/vn-10/0/t"),
        ]
        refused = [
            (gateway, "/mesh/policy/vn-1/0/t"),
            (gateway, "/mesh/head/vn-1/0"),
            (gateway, "/mesh/op/vn-1/t/o"),
            (gateway, "/mesh/grant/vn-10/u"),
            (admin, "/mesh/policy/vn-10/0/t"),
            (admin, "/mesh/head/vn-10/0"),
            (admin, "/mesh/op/vn-10/t/o"),
            (other, "/mesh/policy/vn-1/0/t"),
            (other, "/mesh/ack/vn-1/u"),
            (admin, "/elsewhere"),
            (replica, "/mesh/grant/vn-1/u"),
        ]
        for store, key in allowed:
            assert (await store.txn([], [Put(key, b"x")], timeout_s=30)).succeeded, key
        for store, key in refused:
            with pytest.raises(StoreDeniedError):
                await store.txn([], [Put(key, b"x")], timeout_s=30)
        for store in (gateway, admin, other):
            assert len((await store.range(Range("/mesh/head/", "/mesh/policy0"), timeout_s=30)).items) == 4
        with pytest.raises(StoreDeniedError):
            await replica.range(Range("/mesh/head/", "/mesh/policy0"), timeout_s=30)
        watch = replica.watch("/mesh/head/", "/mesh/policy0", 1)
        with pytest.raises(StoreDeniedError):
            await anext(watch)


async def test_rights_are_put_right_again(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        root = await lab.root()
        await set_up(root, [RegionId("vn-1"), RegionId("sg-9")])
        await set_up(root, [RegionId("vn-1"), RegionId("sg-9")])
        admin = await lab.store("vn-1", Role.ADMIN)
        assert (await admin.txn([], [Put("/mesh/policy/vn-1/0/t", b"x")], timeout_s=30)).succeeded


async def test_tls_below_1_3_is_refused(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        await check_tls13(HOST, lab.etcd.port)


async def test_a_store_that_is_away_says_so_in_time(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        admin = await lab.store("vn-1", Role.ADMIN)
        await admin.range(Range("/mesh/head/", "/mesh/head0"), timeout_s=30)
        lab.etcd.kill()
        with pytest.raises(StoreUnavailableError):
            await admin.range(Range("/mesh/head/", "/mesh/head0"), timeout_s=0.5)
        changes = changes_in(admin, RegionId("vn-1"), lab.clock)
        with pytest.raises(MeshError) as refused:
            await changes.create_tenant(bytes(16), VN, Transfer.NEVER)
        assert refused.value.code is Code.POLICY_STORE_UNAVAILABLE
        lab.etcd.start()
        root = await lab.root()
        await root.range(Range("/ready"), timeout_s=30)
        assert (await admin.range(Range("/mesh/head/", "/mesh/policy0"), timeout_s=30)).items == ()
        assert (await changes.create_tenant(bytes(16), VN, Transfer.NEVER)).changed


async def test_a_dead_member_is_left_for_a_live_one(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        admin = await lab.store("vn-1", Role.ADMIN, "https://127.0.0.1:1", lab.etcd.endpoint)
        await admin.range(Range("/mesh/head/", "/mesh/head0"), timeout_s=10)
        assert (await admin.txn([], [Put("/mesh/head/vn-1/0", b"x")], timeout_s=30)).succeeded
