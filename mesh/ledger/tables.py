"""The ledger's tables, as the newest migration leaves them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table, false

METADATA = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s"}
)

USAGE = Table(
    "usage",
    METADATA,
    # Days since 1970. In the key, so that a day can become a partition, and deleting one is dropping it.
    Column("day", Integer, primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("region", String(64), nullable=False),
    Column("tenant", String(18), nullable=False),
    Column("key_id", String(12), nullable=False),
    Column("operation", String(16), nullable=False),
    Column("model", String(64), nullable=False),
    Column("door", String(8), nullable=False),
    Column("code", String(32), nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Column("first_byte_ms", BigInteger),
    Column("entry_region", String(64), nullable=False),
    Index("ix_usage_tenant", "tenant", "at_ms"),
)

DISCLOSURES = Table(
    "disclosures",
    METADATA,
    Column("day", Integer, primary_key=True),  # as in `usage`
    Column("request_id", String(64), primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("region", String(64), nullable=False),
    # As it was then: a region's file may be corrected later.
    Column("jurisdiction", String(2), nullable=False),
    Column("tenant", String(18), nullable=False),
    Column("key_id", String(12), nullable=False),
    Column("door", String(8), nullable=False),
    Index("ix_disclosures_tenant", "tenant", "at_ms", "request_id"),
)

POLICY_RECORDS = Table(
    "policy_records",
    METADATA,
    # The order in which they were signed. SQLite numbers rows of its own integer type only.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", String(256), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("value", LargeBinary, nullable=False),
    # Whether it is known to have come into the control store.
    Column("made", Boolean, nullable=False, server_default=false()),
    # Of a tenant's move, "last" for what ends it here and "first" for what may begin it; empty for all else.
    Column("move", String(5), nullable=False, server_default=""),
    Index("ix_policy_records_at", "at", "epoch", "revision", "number"),
    # A number is never given twice: whoever signed a record tells by it what became of that, also of one that another
    # has found void, and has forgotten, meanwhile.
    sqlite_autoincrement=True,
)

ACCOUNTS = Table(
    "accounts",
    METADATA,
    Column("tenant", String(18), primary_key=True),
    Column("home", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("nonce", LargeBinary(16), nullable=False),
    Column("created_s", BigInteger, nullable=False),
    # Whether the tenant's record is known to be in the control store.
    Column("ready", Boolean, nullable=False),
    Index("uq_accounts_name", "home", "name", unique=True),
)
