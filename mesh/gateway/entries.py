"""What the region's ledger keeps of a call that has ended."""

from __future__ import annotations

from mesh.gateway.ports import Settled
from mesh.ledger import Disclosure, UsageRecord
from mesh.types import Here


def usage_of(settled: Settled, here: Here) -> UsageRecord | None:
    """What was used, where it was served or refused; None where another region keeps that, or the key was nobody's."""
    if settled.tenant is None or settled.served_elsewhere:
        return None
    first_byte_s = settled.first_byte_s
    return UsageRecord(
        request_id=settled.request_id,
        at_s=settled.at_s,
        region=here.region,
        tenant=settled.tenant,
        key_id=settled.key_id,
        operation=settled.operation,
        model=settled.model,
        door=settled.door,
        code=settled.code,
        prompt_tokens=settled.usage.prompt_tokens,
        completion_tokens=settled.usage.completion_tokens,
        duration_ms=int(settled.duration_s * 1000),
        first_byte_ms=None if first_byte_s is None else int(first_byte_s * 1000),
        entry_region=settled.entry,
    )


def disclosure_of(settled: Settled, here: Here) -> Disclosure | None:
    """That a client has shown here what its tenant's pin keeps out; None where it has not."""
    if settled.tenant is None or not settled.outside_pin:
        return None
    return Disclosure(
        request_id=settled.request_id,
        at_ms=int(settled.at_s * 1000),
        region=here.region,
        jurisdiction=here.jurisdiction,
        tenant=settled.tenant,
        key_id=settled.key_id,
        door=settled.door,
    )
