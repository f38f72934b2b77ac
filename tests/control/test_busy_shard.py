"""A shard that is written to without a pause, on a real etcd: what its other tenants have of their authority.

How much of it is left, and what a change costs, is measured by `scripts/bench changes`; here is what holds on any machine.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from bench.changes import ABROAD, BOTH, HOME, SHARD, Writer, admin_of, nonces
from etcd_lab import running_etcd
from member_lab import SG, VN, Gateway
from waiting import eventually

from mesh.control.store import StoreUnavailableError
from mesh.ports import Instant
from mesh.runtime import SystemClock
from mesh.types import Role, Transfer

ANSWERS = 12


async def renewed(gateway: Gateway, clock: SystemClock) -> Instant:
    """Waits for a grant, and tells when it was asked for. A store that is busy may have to be asked again."""
    while True:
        asked = clock.instant()
        with suppress(StoreUnavailableError):
            await gateway.membership.renew()
            return asked


async def test_a_gateway_catches_up_with_every_grant_of_a_shard_that_is_never_quiet(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, (HOME, ABROAD)) as lab, admin_of(lab, tmp_path) as changes:
        made = nonces(SHARD)
        other, *busy = [
            (await changes.create_tenant(next(made), BOTH, Transfer.WITHIN_ALLOWED)).tenant.policy.tenant
            for _ in range(5)
        ]
        gateway = Gateway(await lab.store(ABROAD, Role.GATEWAY), lab.clock, ABROAD)
        authority, membership = gateway.authority, gateway.membership
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(gateway.run())
            while gateway.left_s(other, SG) <= 0:
                await renewed(gateway, lab.clock)
            writer = Writer(changes, busy)
            writing = tasks.create_task(writer.write(None, 600))
            for _ in range(ANSWERS):
                before = writer.made
                asked = await renewed(gateway, lab.clock)
                assert membership._seen.heads is not None
                head = membership._seen.heads[SHARD].version
                await eventually(
                    lambda head=head, before=before: authority.number(SHARD) >= head and writer.made > before
                )
                # What it was answered counts from when it was asked for, however far the shard has got since.
                since = authority.since(SHARD)
                assert since is not None
                assert since.boot_s >= asked.boot_s
                assert gateway.left_s(other, VN) > 0
            assert not writing.done()
            writing.cancel()
            running.cancel()
        assert gateway.feed.gaps == 0
