"""Accounts: the one place where a tenant has a name."""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.types import RegionId, TenantId


class AccountExistsError(Exception):
    """An account of this name, or of this tenant, is in the ledger."""


class LeftError(Exception):
    """A tenant has left this home, or may have: nothing else about it is signed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A name and the tenant that it stands for.

    Attributes:
        nonce: What the tenant's id commits to, beside its first region.
        created_s: Seconds since 1970, UTC.
        ready: Whether the tenant's record is known to be in the control store: until then it is half made.
    """

    tenant: TenantId
    home: RegionId
    name: str = field(repr=False)
    nonce: bytes
    created_s: int
    ready: bool
