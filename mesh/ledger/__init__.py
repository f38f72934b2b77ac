"""A region's database of metadata. It never leaves the region, and never holds content."""

from mesh.ledger.accounts import Account, AccountExistsError
from mesh.ledger.ledger import Ledger, open_ledger
from mesh.ledger.records import OK, Disclosure, SignedRecord, UsageRecord, UsageSum

__all__ = [
    "OK",
    "Account",
    "AccountExistsError",
    "Disclosure",
    "Ledger",
    "SignedRecord",
    "UsageRecord",
    "UsageSum",
    "open_ledger",
]
