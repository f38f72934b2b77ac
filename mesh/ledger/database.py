"""The database itself: SQLite with one machine, PostgreSQL in production. Blocks; `ledger.py` keeps it off the loop."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import IntegrityError

from mesh.ledger.accounts import Account, AccountExistsError, LeftError
from mesh.ledger.records import FAILED_AFTER_ROUTING, OK, Disclosure, SignedRecord, UsageRecord, UsageSum
from mesh.ledger.tables import ACCOUNTS, DISCLOSURES, POLICY_RECORDS, USAGE
from mesh.types import Jurisdiction, RegionId, RequestId, Revision, TenantId

_BUSY_MS = 5_000
_MIGRATION_LOCK = 0x6D657368  # "mesh", for PostgreSQL's advisory locks
_SIGNING_LOCK = 0x7369676E  # "sign", likewise
_PRAGMAS = (
    f"busy_timeout = {_BUSY_MS}",
    "journal_mode = WAL",
    # An account whose tenant is in the control store must not be lost with the power.
    "synchronous = FULL",
    "secure_delete = ON",
    "foreign_keys = ON",
)
_DAY_S = 86_400


class Database:
    """One region's ledger, open and at the newest migration."""

    def __init__(self, url: str) -> None:
        """Opens it, makes it where it is missing, and migrates it.

        Raises:
            sqlalchemy.exc.SQLAlchemyError, OSError: It cannot be.
        """
        self._engine = _engine(sa.make_url(url))
        with _migration_lock(self._engine) as connection:
            config = Config()
            scripts = str(Path(__file__).parent / "migrations")
            config.set_main_option("script_location", scripts.replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def add(self, records: Sequence[UsageRecord | Disclosure]) -> None:
        """Writes records in one transaction; one that is there already stays as it is."""
        used = [_row(record) for record in records if isinstance(record, UsageRecord)]
        disclosed = [_disclosure_row(record) for record in records if isinstance(record, Disclosure)]
        with self._engine.begin() as connection:
            if used:
                connection.execute(self._insert(USAGE), used)
            if disclosed:
                connection.execute(self._insert(DISCLOSURES), disclosed)

    def usage(self, tenant: TenantId, from_s: int, to_s: int) -> list[UsageSum]:
        """Sums of [from_s, to_s) by region and model."""
        tokens = USAGE.c.prompt_tokens + USAGE.c.completion_tokens
        served = sa.or_(USAGE.c.code == OK, tokens > 0, USAGE.c.code.in_([str(code) for code in FAILED_AFTER_ROUTING]))
        requests = sa.func.sum(sa.case((served, 1), else_=0))
        query = (
            sa.select(
                USAGE.c.region,
                USAGE.c.model,
                requests,
                sa.func.count() - requests,
                sa.func.sum(USAGE.c.prompt_tokens),
                sa.func.sum(USAGE.c.completion_tokens),
            )
            .where(USAGE.c.tenant == tenant, USAGE.c.at_ms >= from_s * 1000, USAGE.c.at_ms < to_s * 1000)
            .group_by(USAGE.c.region, USAGE.c.model)
            .order_by(USAGE.c.region, USAGE.c.model)
        )
        with self._engine.connect() as connection:
            return [
                UsageSum(
                    region=RegionId(region),
                    model=model,
                    requests=int(requests),
                    refused=int(refused),
                    prompt_tokens=int(prompt_tokens),
                    completion_tokens=int(completion_tokens),
                )
                for region, model, requests, refused, prompt_tokens, completion_tokens in connection.execute(query)
            ]

    def disclosures(
        self, tenant: TenantId, from_s: int, to_s: int, after: tuple[int, RequestId] | None, limit: int
    ) -> list[Disclosure]:
        """Those of [from_s, to_s) in the order of time, and of ids within a millisecond; those behind `after` only."""
        table = DISCLOSURES.c
        place = sa.tuple_(table.at_ms, table.request_id)
        query = (
            sa.select(
                table.request_id, table.at_ms, table.region, table.jurisdiction, table.tenant, table.key_id, table.door
            )
            .where(table.tenant == tenant, table.at_ms >= from_s * 1000, table.at_ms < to_s * 1000)
            .order_by(table.at_ms, table.request_id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(place > after)
        with self._engine.connect() as connection:
            return [
                Disclosure(
                    request_id=RequestId(request_id),
                    at_ms=at_ms,
                    region=RegionId(region),
                    jurisdiction=Jurisdiction(jurisdiction),
                    tenant=TenantId(of),
                    key_id=key_id,
                    door=door,
                )
                for request_id, at_ms, region, jurisdiction, of, key_id, door in connection.execute(query)
            ]

    def add_signed(self, record: SignedRecord, move: str = "") -> int:
        """Writes a signed record down, and numbers it.

        Args:
            record: It.
            move: As in the table: `last`, `first`, or empty.

        Raises:
            LeftError: The tenant has left this home, or may have: only what says so again is signed, and the first
                record of its coming back.
        """
        values = {"at": record.at, "epoch": record.epoch, "revision": record.revision, "value": record.value}
        tenant_at, table = record.at.partition("/key/")[0], POLICY_RECORDS.c
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                # Of two that are signed at once each must see the other; SQLite has one writer at a time.
                lock = sa.func.pg_advisory_xact_lock(_SIGNING_LOCK, crc32(tenant_at.encode()) & 0x7FFF_FFFF)
                connection.execute(sa.select(lock))
            # Written before it is looked at: a transaction that begins with a read may not be able to write any more.
            inserted = connection.execute(POLICY_RECORDS.insert().values({**values, "move": move}))
            (number,) = inserted.inserted_primary_key or (0,)
            query = (
                sa.select(table.move, table.epoch, table.value)
                .where(table.at == tenant_at, table.move != "", table.number != number, ~_is_void())
                .order_by(table.number.desc())
            )
            before = connection.execute(query).first()
            if before is not None and before.move == "last" and move != "first":
                same = move == "last" and (before.epoch < record.epoch or before.value == record.value)
                if not same:
                    raise LeftError
            return int(number)

    def last_words(self, at: str) -> list[tuple[int, bytes]]:
        """The last words at a key that are not known to have been made, and their numbers."""
        table = POLICY_RECORDS.c
        first = sa.select(sa.func.max(table.number)).where(table.at == at, table.move == "first").scalar_subquery()
        query = (
            sa.select(table.number, table.value)
            .where(table.at == at, table.move == "last", table.made.is_(False))
            .where(table.number > sa.func.coalesce(first, 0))
            .order_by(table.number)
        )
        with self._engine.connect() as connection:
            return [(int(number), value) for number, value in connection.execute(query)]

    def drop_signed(self, number: int) -> None:
        """Forgets a signed record."""
        with self._engine.begin() as connection:
            connection.execute(POLICY_RECORDS.delete().where(POLICY_RECORDS.c.number == number))

    def mark_made(self, numbers: Sequence[int]) -> None:
        """Notes that signed records are in the control store, and forgets those that they have taken the place of.

        What is older than a record of its key that was surely made is never asked for again (`signed_since_made`). It
        stays where it is a move's, which is asked for whatever came since, and where its outcome is not known: whoever
        signed it may yet tell, by its number, which the database must not have given to another record meanwhile.
        """
        table, newer = POLICY_RECORDS.c, POLICY_RECORDS.alias("newer").c
        with self._engine.begin() as connection:
            connection.execute(POLICY_RECORDS.update().where(table.number.in_(numbers)).values(made=True))
            later = sa.or_(
                newer.epoch > table.epoch, sa.and_(newer.epoch == table.epoch, newer.revision > table.revision)
            )
            replaced = sa.exists().where(newer.at == table.at, newer.made, newer.number.in_(numbers), later)
            connection.execute(POLICY_RECORDS.delete().where(table.made, table.move == "", replaced))

    def signed_since_made(self) -> list[SignedRecord]:
        """Of each key the newest record that was surely made and all that are not older, in their order."""
        table = POLICY_RECORDS.c
        order = (table.epoch.desc(), table.revision.desc(), table.number.desc())
        place = sa.func.row_number().over(partition_by=table.at, order_by=order).label("place")
        ranked = sa.select(table.at, table.epoch, table.revision, place).where(table.made).subquery()
        last = sa.select(ranked.c.at, ranked.c.epoch, ranked.c.revision).where(ranked.c.place == 1).subquery()
        query = (
            sa.select(table.at, table.value, table.epoch, table.revision, table.made)
            .select_from(POLICY_RECORDS.outerjoin(last, table.at == last.c.at))
            .where(
                sa.or_(
                    last.c.at.is_(None),
                    table.epoch > last.c.epoch,
                    sa.and_(table.epoch == last.c.epoch, table.revision >= last.c.revision),
                )
            )
            .order_by(table.at, table.epoch, table.revision, table.number)
        )
        with self._engine.connect() as connection:
            return [
                SignedRecord(at=at, value=value, epoch=epoch, revision=Revision(revision), made=bool(made))
                for at, value, epoch, revision, made in connection.execute(query)
            ]

    def add_account(self, account: Account) -> None:
        """Adds an account.

        Raises:
            AccountExistsError: The home has one of this name.
        """
        values = {
            "tenant": account.tenant,
            "home": account.home,
            "name": account.name,
            "nonce": account.nonce,
            "created_s": account.created_s,
            "ready": account.ready,
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(ACCOUNTS.insert().values(values))
        except IntegrityError:
            raise AccountExistsError from None

    def set_ready(self, tenant: TenantId) -> None:
        """Notes that a tenant's record is in the control store."""
        with self._engine.begin() as connection:
            connection.execute(ACCOUNTS.update().where(ACCOUNTS.c.tenant == tenant).values(ready=True))

    def drop_account(self, tenant: TenantId) -> None:
        """Forgets an account."""
        with self._engine.begin() as connection:
            connection.execute(ACCOUNTS.delete().where(ACCOUNTS.c.tenant == tenant))

    def accounts(self, home: RegionId) -> list[Account]:
        """All accounts of a home, by name."""
        return self._accounts(ACCOUNTS.c.home == home)

    def account(self, tenant: TenantId) -> Account | None:
        """The account of a tenant."""
        return next(iter(self._accounts(ACCOUNTS.c.tenant == tenant)), None)

    def account_named(self, home: RegionId, name: str) -> Account | None:
        """The account of a name."""
        return next(iter(self._accounts(sa.and_(ACCOUNTS.c.home == home, ACCOUNTS.c.name == name))), None)

    def _accounts(self, where: sa.ColumnElement[bool]) -> list[Account]:
        columns = (ACCOUNTS.c.tenant, ACCOUNTS.c.home, ACCOUNTS.c.name)
        more = (ACCOUNTS.c.nonce, ACCOUNTS.c.created_s, ACCOUNTS.c.ready)
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(*columns, *more).where(where).order_by(ACCOUNTS.c.name)).all()
        return [
            Account(
                tenant=TenantId(tenant), home=RegionId(home), name=name, nonce=nonce, created_s=created_s, ready=ready
            )
            for tenant, home, name, nonce, created_s, ready in rows
        ]

    def _insert(self, table: sa.Table) -> sa.Executable:
        if self._engine.dialect.name == "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        return sqlite.insert(table).on_conflict_do_nothing()


def _is_void() -> sa.ColumnElement[bool]:
    """Whether a row is a last word that surely never was made: something else was, in its place or after that."""
    table, other = POLICY_RECORDS.c, POLICY_RECORDS.alias("other").c
    later = sa.or_(other.epoch > table.epoch, sa.and_(other.epoch == table.epoch, other.revision >= table.revision))
    made = sa.exists().where(other.at == table.at, other.made, other.move == "", later)
    return sa.and_(table.move == "last", table.made.is_(False), made)


def _row(record: UsageRecord) -> dict[str, object]:
    return {
        "day": int(record.at_s // _DAY_S),
        "request_id": record.request_id,
        "at_ms": int(record.at_s * 1000),
        "region": record.region,
        "tenant": record.tenant,
        "key_id": record.key_id,
        "operation": str(record.operation),
        "model": record.model,
        "door": record.door,
        "code": str(record.code),
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "duration_ms": record.duration_ms,
        "first_byte_ms": record.first_byte_ms,
        "entry_region": record.entry_region,
    }


def _disclosure_row(record: Disclosure) -> dict[str, object]:
    return {
        "day": record.at_ms // (_DAY_S * 1000),
        "request_id": record.request_id,
        "at_ms": record.at_ms,
        "region": record.region,
        "jurisdiction": record.jurisdiction,
        "tenant": record.tenant,
        "key_id": record.key_id,
        "door": record.door,
    }


def _engine(url: URL) -> Engine:
    # Values are metadata and names: an error must not carry them either.
    engine = sa.create_engine(url, hide_parameters=True, pool_pre_ping=url.get_backend_name() != "sqlite")
    if url.get_backend_name() != "sqlite":
        return engine
    if url.database:
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))

    def connected(connection: Any, _: object) -> None:  # noqa: ANN401 - the driver's own
        # The driver begins transactions late and not at all around DDL: we begin them ourselves.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begin)
    return engine


@contextmanager
def _migration_lock(engine: Engine) -> Generator[Connection]:
    """Programs of a region start together, and one of them migrates. Yields a connection in a transaction."""
    database = engine.url.database
    if engine.dialect.name == "sqlite" and database:
        with Path(database + ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with engine.begin() as connection:
                yield connection
    else:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            yield connection
