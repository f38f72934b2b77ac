"""The ledger: sums, accounts, migrations, a full disk, a kill."""

from __future__ import annotations

import asyncio
import io
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import Code, MeshError
from mesh.ledger import Account, AccountExistsError, Disclosure, Ledger, UsageRecord, UsageSum, open_ledger
from mesh.ledger import ledger as ledger_module
from mesh.ledger.accounts import LeftError
from mesh.ledger.database import Database
from mesh.ledger.records import SignedRecord
from mesh.ledger.tables import METADATA
from mesh.runtime import SystemClock, TaskGroupTasks
from mesh.telemetry import Log
from mesh.types import Jurisdiction, Operation, RegionId, RequestId, Revision, TenantId

VN = RegionId("vn-1")
ACME, GLOBEX = TenantId("t_" + "a" * 16), TenantId("t_" + "b" * 16)


def opened(folder: Path, out: io.StringIO | None = None) -> AbstractAsyncContextManager[Ledger]:
    log = Log("gateway", VN, out or io.StringIO(), strict=True)
    url = f"sqlite:///{folder}/ledger-{{region}}.db"
    return open_ledger(url, VN, clock=SystemClock(), tasks=TaskGroupTasks, log=log)


def record(
    number: int, *, at_s: float = 1000.0, code: str = "ok", model: str = "smol", tokens: tuple[int, int] = (3, 5)
) -> UsageRecord:
    return UsageRecord(
        request_id=RequestId(f"req_{number:016x}"),
        at_s=at_s,
        region=VN,
        tenant=ACME,
        key_id="A" * 12,
        operation=Operation.CHAT,
        model=model,
        door="http",
        code=code,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        duration_ms=7,
        first_byte_ms=None,
        entry_region=VN,
    )


async def eventually(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


async def test_usage_is_summed_by_model_and_what_waits_is_written_at_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        records = [
            record(1),
            record(2, code="cancelled", tokens=(4, 1)),
            record(3, code=Code.REPLICA_FAILED, tokens=(0, 0)),
            record(4, code="cancelled", tokens=(0, 0)),
            record(5, code=Code.NO_CAPACITY, tokens=(0, 0)),
            record(6, code=Code.RESIDENCY_REFUSED, model="", tokens=(0, 0)),
            record(7, at_s=1999.999),
            record(8, at_s=999.999),
            record(9, at_s=2000.0),
        ]
        for one in records:
            ledger.record(one)
        ledger.record(records[0])  # the same request again
    async with opened(tmp_path) as ledger:
        assert await ledger.usage(ACME, 1000, 2000) == [
            UsageSum(region=VN, model="", requests=0, refused=1, prompt_tokens=0, completion_tokens=0),
            UsageSum(region=VN, model="smol", requests=5, refused=1, prompt_tokens=10, completion_tokens=11),
        ]
        assert await ledger.usage(GLOBEX, 0, 3000) == []
        assert ledger.dropped == 0


def disclosure(number: int, *, at_ms: int, tenant: TenantId = ACME) -> Disclosure:
    return Disclosure(
        request_id=RequestId(f"req_{number:016x}"),
        at_ms=at_ms,
        region=VN,
        jurisdiction=Jurisdiction("VN"),
        tenant=tenant,
        key_id="A" * 12,
        door="grpc",
    )


async def test_disclosures_are_listed_in_order_and_page_by_page(tmp_path: Path) -> None:
    early, late = disclosure(9, at_ms=1_000_000), disclosure(1, at_ms=1_999_999)
    together = [disclosure(number, at_ms=1_500_001) for number in (2, 3, 4)]
    outside = [disclosure(10, at_ms=999_999), disclosure(11, at_ms=2_000_000), disclosure(12, at_ms=1_500_000)]
    outside[2] = disclosure(12, at_ms=1_500_000, tenant=GLOBEX)
    async with opened(tmp_path) as ledger:
        for one in (late, *reversed(together), *outside, early, early):
            ledger.record(one)
        ledger.record(record(9, at_s=1000.0, code=Code.RESIDENCY_REFUSED, model="", tokens=(0, 0)))
    wanted = [early, *together, late]
    async with opened(tmp_path) as ledger:
        assert await ledger.disclosures(ACME, 1000, 2000, limit=100) == wanted
        got: list[Disclosure] = []
        while page := await ledger.disclosures(
            ACME, 1000, 2000, after=(got[-1].at_ms, got[-1].request_id) if got else None, limit=2
        ):
            got += page
        assert got == wanted
        assert [used.refused for used in await ledger.usage(ACME, 1000, 2000)] == [1]


async def test_a_ledger_of_the_first_version_is_migrated_with_what_it_holds(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        ledger.record(record(1))
    database = sqlite3.connect(tmp_path / "ledger-vn-1.db")
    database.executescript(
        "drop table disclosures; drop table policy_records; update alembic_version set version_num = '0001'"
    )
    database.close()
    async with opened(tmp_path) as ledger:
        ledger.record(disclosure(1, at_ms=1))
    async with opened(tmp_path) as ledger:
        assert len(await ledger.disclosures(ACME, 0, 1, limit=9)) == 1
        assert [used.requests for used in await ledger.usage(ACME, 0, 2000)] == [1]


async def test_a_name_is_one_tenants(tmp_path: Path) -> None:
    def account(tenant: TenantId, name: str, home: RegionId = VN) -> Account:
        return Account(tenant=tenant, home=home, name=name, nonce=bytes(16), created_s=1, ready=False)

    async with opened(tmp_path) as ledger:
        await ledger.add_account(account(ACME, "acme"))
        with pytest.raises(AccountExistsError):
            await ledger.add_account(account(GLOBEX, "acme"))
        await ledger.add_account(account(GLOBEX, "acme", RegionId("sg-1")))
        await ledger.set_ready(ACME)
        assert [(found.tenant, found.ready) for found in await ledger.accounts()] == [(ACME, True)]
        found = await ledger.account_named("acme")
        assert found is not None
        assert found == await ledger.account(ACME)
        assert "acme" not in repr(found)
        assert await ledger.account_named("nobody") is None


async def test_programs_that_start_together_migrate_once(tmp_path: Path) -> None:
    async def start() -> None:
        async with opened(tmp_path) as ledger:
            assert await ledger.accounts() == []

    await asyncio.gather(*(start() for _ in range(6)))


async def test_the_tables_are_what_the_migrations_make(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    engine = sa.create_engine(f"sqlite:///{tmp_path}/ledger-vn-1.db")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()
    assert (tmp_path / "ledger-vn-1.db").stat().st_mode & 0o777 == 0o600


async def test_a_full_disk_costs_no_request_and_is_told_by_class(tmp_path: Path) -> None:
    out = io.StringIO()
    async with opened(tmp_path, out) as ledger:
        ledger.record(record(0))
        while not await ledger.usage(ACME, 0, 2000):
            pass
        files = [path.stat().st_size for path in tmp_path.glob("ledger-vn-1.db*")]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(files), hard))
        try:
            for number in range(1, 2000):
                ledger.record(record(number))
            await eventually(lambda: ledger.faults > 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    async with opened(tmp_path) as ledger:
        (found,) = await ledger.usage(ACME, 0, 2000)
        assert found.requests == 2000
    assert '"ledger.unavailable"' in out.getvalue()
    assert "OperationalError" in out.getvalue()
    assert "smol" not in out.getvalue()


async def test_on_a_full_disk_nothing_is_signed_and_an_operator_is_told_why(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(MeshError) as refused:
                await ledger.signed("/mesh/policy/vn-1/3/t", b"x" * 65_536, 1, Revision(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert refused.value.code is Code.INTERNAL_ERROR
        assert "disk full" in refused.value.hint
        assert await ledger.signed_since_made() == []
        await ledger.signed("/mesh/policy/vn-1/3/t", b"x", 1, Revision(2))  # there is space again
        assert [one.revision for one in await ledger.signed_since_made()] == [2]


async def test_beyond_the_queue_records_are_dropped_and_counted(tmp_path: Path) -> None:
    out = io.StringIO()
    async with opened(tmp_path, out) as ledger:
        for number in range(ledger_module.QUEUE + 10):  # no await: nothing can be written in between
            ledger.record(record(number))
        assert ledger.dropped == 10
    assert '"ledger.dropped"' in out.getvalue()
    database = sqlite3.connect(tmp_path / "ledger-vn-1.db")
    assert database.execute("select count(*) from usage").fetchone() == (ledger_module.QUEUE,)
    database.close()


async def test_a_ledger_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "ledger-vn-1.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(MeshError) as failed:
        async with opened(tmp_path):
            pass
    assert failed.value.code is Code.START_FAILED


CHILD = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_ledger import ACME, opened, record
async def main():
    async with opened(Path(sys.argv[1])) as ledger:
        for number in range(700):
            ledger.record(record(number))
        while sum(found.requests for found in await ledger.usage(ACME, 0, 2000)) < 700:
            pass
        print("written", flush=True)
        number = 700
        while True:
            ledger.record(record(number))
            number += 1
            await asyncio.sleep(0)
asyncio.run(main())
"""


async def test_kill_loses_only_what_was_not_yet_committed(tmp_path: Path) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(here)]
    child = await asyncio.to_thread(
        lambda: subprocess.Popen(command, stdout=subprocess.PIPE, cwd=here.parent.parent, env=dict(os.environ))
    )
    assert child.stdout is not None
    assert await asyncio.to_thread(child.stdout.readline) == b"written\n"
    child.kill()
    await asyncio.to_thread(child.wait)
    child.stdout.close()
    async with opened(tmp_path) as ledger:
        (found,) = await ledger.usage(ACME, 0, 2000)
        assert found.requests >= 700


async def test_signed_policy_is_kept_from_what_was_surely_made_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        await ledger.signed("/a", b"a1", 1, Revision(1))
        made = [await ledger.signed("/a", b"a2", 1, Revision(2)), await ledger.signed("/b", b"b3", 2, Revision(3))]
        unmade = await ledger.signed("/a", b"a3", 1, Revision(3))
        await ledger.signed("/a", b"other a2", 1, Revision(2))
        await ledger.signed("/b", b"b9", 1, Revision(9))
        for at, number in (("c1", 1), ("c2", 2)):
            await ledger.signed("/c", at.encode(), 1, Revision(number))
        await ledger.unmade(unmade)
    async with opened(tmp_path) as ledger:
        everything = ["a1", "a2", "other a2", "b9", "b3", "c1", "c2"]
        assert [one.value.decode() for one in await ledger.signed_since_made()] == everything
        await ledger.made(made)
        await ledger.signed("/b", b"b1", 3, Revision(1))
        kept = await ledger.signed_since_made()
        assert [(one.at, one.value, one.epoch, one.revision, one.made) for one in kept] == [
            ("/a", b"a2", 1, 2, True),
            ("/a", b"other a2", 1, 2, False),
            ("/b", b"b3", 2, 3, True),
            ("/b", b"b1", 3, 1, False),
            ("/c", b"c1", 1, 1, False),
            ("/c", b"c2", 1, 2, False),
        ]


signings = st.lists(
    st.tuples(
        st.sampled_from(["signed", "signed", "made", "made", "unmade", "first", "last"]),
        st.integers(0, 1),
        st.integers(1, 2),
        st.integers(1, 5),
        st.integers(0, 30),
    ),
    min_size=1,
    max_size=25,
)


def test_what_is_forgotten_is_never_asked_for(tmp_path: Path) -> None:
    """For any order of signing and of what becomes of it: the answers are those of a ledger that forgets nothing."""
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    round_ = count()

    @settings(max_examples=60)
    @given(signings)
    def check(taken: list[tuple[str, int, int, int, int]]) -> None:
        example = next(round_)
        everything: dict[int, SignedRecord] = {}
        waiting: list[tuple[int, int]] = []
        for step, (kind, key, epoch, revision, which) in enumerate(taken):
            at = f"/{example}/{key}"
            match kind:
                case "made" | "unmade":
                    number, signed = waiting.pop(which % len(waiting)) if waiting else (0, 0)
                    if signed and kind == "made":
                        database.mark_made([number])
                        everything[signed] = replace(everything[signed], made=True)
                    elif signed:
                        database.drop_signed(number)
                        del everything[signed]
                case _:
                    record = SignedRecord(at=at, value=b"%d" % step, epoch=epoch, revision=Revision(revision))
                    try:
                        number = database.add_signed(record, "" if kind == "signed" else kind)
                    except LeftError:
                        continue
                    # Whoever still has a number would tell of another record by it.
                    assert number not in [known for known, _ in waiting]
                    everything[step + 1] = record
                    waiting.append((number, step + 1))
        answer = [one for one in database.signed_since_made() if one.at.startswith(f"/{example}/")]
        assert answer == since_made(everything)

    try:
        check()
    finally:
        database.close()


def since_made(everything: dict[int, SignedRecord]) -> list[SignedRecord]:
    """`signed_since_made`, of all that was ever signed."""
    kept: list[tuple[tuple[str, int, int, int], SignedRecord]] = []
    for signed, one in everything.items():
        made = [(other.epoch, other.revision) for other in everything.values() if other.at == one.at and other.made]
        if not made or (one.epoch, one.revision) >= max(made):
            kept.append(((one.at, one.epoch, one.revision, signed), one))
    return [one for _, one in sorted(kept, key=lambda pair: pair[0])]


def test_what_a_tenant_was_before_does_not_fill_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    database = Database(f"sqlite:///{path}")
    lost = database.add_signed(SignedRecord(at="/a", value=b"?", epoch=1, revision=Revision(1)))
    for revision in range(2, 50):
        tenant = SignedRecord(at="/a", value=b"a", epoch=1, revision=Revision(revision))
        key = SignedRecord(at="/a/key/k", value=b"k", epoch=1, revision=Revision(revision))
        database.mark_made([database.add_signed(tenant), database.add_signed(key)])
    database.close()
    rows = sqlite3.connect(path)
    found = rows.execute("select number, at, revision from policy_records order by number").fetchall()
    rows.close()
    # The newest of each key, and one of which nobody has told what became of it.
    assert [row[1:] for row in found] == [("/a", 1), ("/a", 49), ("/a/key/k", 49)]
    assert found[0][0] == lost


def test_a_tenant_that_came_back_stays_back_whatever_is_forgotten(tmp_path: Path) -> None:
    """Nobody has told what became of the last word; what began after it outlives what came since."""
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    for revision, move in enumerate(("", "last", "first", "", "", ""), start=1):
        number = database.add_signed(SignedRecord(at="/a", value=b"a", epoch=1, revision=Revision(revision)), move)
        if move != "last":
            database.mark_made([number])
    assert database.last_words("/a") == []
    assert [one.revision for one in database.signed_since_made()] == [6]
    database.close()


async def test_after_a_last_word_nothing_else_of_the_tenant_is_kept_until_it_may_come_back(tmp_path: Path) -> None:
    at, other = f"/mesh/policy/{VN}/3/{ACME}", f"/mesh/policy/{VN}/4/{GLOBEX}"

    async def refused(work: object) -> None:
        with pytest.raises(MeshError) as caught:
            await work  # pyright: ignore[reportGeneralTypeIssues]
        assert caught.value.code is Code.MOVE_UNFINISHED

    async with opened(tmp_path) as ledger:
        await ledger.made([await ledger.signed(at, b"1", 1, Revision(1))])
        number = await ledger.signed_move(at, b"left", 1, Revision(2), last=True)
        assert await ledger.last_words(at) == [(number, b"left")]
    async with opened(tmp_path) as ledger:  # also in another process
        before = [one.value for one in await ledger.signed_since_made()]
        for epoch in (1, 2):
            await refused(ledger.signed(at, b"2", epoch, Revision(9)))
            await refused(ledger.signed(f"{at}/key/K", b"3", epoch, Revision(9)))
        await refused(ledger.signed_move(at, b"left for elsewhere", 1, Revision(2), last=True))
        assert [one.value for one in await ledger.signed_since_made()] == before, "nothing of it stays"
        await ledger.signed(other, b"4", 1, Revision(1))
        again = await ledger.signed_move(at, b"left", 1, Revision(2), last=True)
        await ledger.made([again])
        assert await ledger.last_words(at) == [(number, b"left")]
        await ledger.signed_move(at, b"left, anew", 2, Revision(2), last=True)
        first = await ledger.signed_move(at, b"first", 2, Revision(5), last=False)
        assert await ledger.last_words(at) == []
        await ledger.signed(f"{at}/key/K", b"5", 2, Revision(5))
        await ledger.unmade(first)
        await refused(ledger.signed(at, b"6", 2, Revision(6)))


async def test_a_surely_void_last_word_is_forgotten(tmp_path: Path) -> None:
    at = f"/mesh/policy/{VN}/3/{ACME}"
    async with opened(tmp_path) as ledger:
        number = await ledger.signed_move(at, b"left", 1, Revision(2), last=True)
        await ledger.unmade(number)
        await ledger.signed(at, b"2", 1, Revision(2))
        await ledger.signed_move(at, b"left for elsewhere", 1, Revision(3), last=True)


async def test_a_last_word_that_something_else_was_made_in_the_place_of_stands_in_nobodys_way(tmp_path: Path) -> None:
    """Its answer was lost, so it stays; but of two that replace the same record one is made."""
    at = f"/mesh/policy/{VN}/3/{ACME}"
    async with opened(tmp_path) as ledger:
        removal = await ledger.signed(at, b"narrower", 1, Revision(2))
        await ledger.signed_move(at, b"left", 1, Revision(2), last=True)
        with pytest.raises(MeshError):
            await ledger.signed(at, b"3", 1, Revision(3))
        await ledger.made([removal])
        await ledger.signed(at, b"3", 1, Revision(3))
        await ledger.signed(f"{at}/key/K", b"4", 2, Revision(3))
        await ledger.signed_move(at, b"left for elsewhere", 1, Revision(3), last=True)
        with pytest.raises(MeshError):
            await ledger.signed(at, b"3", 1, Revision(4))


def test_the_number_of_a_record_that_another_has_forgotten_is_not_given_again(tmp_path: Path) -> None:
    """Two calls leave with one last word; the second finds it void, and the first one still has its number."""
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    word = SignedRecord(at="/a", value=b"left", epoch=1, revision=Revision(2), made=False)
    number = database.add_signed(word, "last")
    database.drop_signed(number)  # the second call
    removal = replace(word, value=b"narrower")
    database.add_signed(removal)
    database.drop_signed(number)  # the first
    assert database.signed_since_made() == [removal]
    database.close()


async def test_the_name_of_a_tenant_that_left_is_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        account = Account(tenant=ACME, home=VN, name="acme", nonce=bytes(16), created_s=1, ready=True)
        await ledger.add_account(account)
        await ledger.drop_account(ACME)
        await ledger.drop_account(GLOBEX)
        assert await ledger.account_named("acme") is None
        await ledger.add_account(replace(account, tenant=GLOBEX))
