"""Receipts: what a tenant can show an auditor of a change that took something away, signed by the tenant's home.

A receipt is one JSON object, `{"statement": {...}, "signed_by": key id, "signature": base64}`. The signature is the
home's policy key's, over `mesh.receipt.v1`, a zero byte, and the statement as JSON with sorted keys, without spaces and
in UTF-8. Whoever has the home's region file can check it without the mesh.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import datetime
from typing import cast

from mesh.control.records import HomeTrust
from mesh.control.signing import Signer, verify
from mesh.errors import Code, MeshError
from mesh.types import RegionId

_DOMAIN = b"mesh.receipt.v1\0"
_MOST_BYTES = 1 << 20


def make_receipt(statement: Mapping[str, object], signer: Signer) -> str:
    """The receipt of a statement, as JSON. `statement["home"]` must be the signer's."""
    signature = signer.sign(_signed(statement))
    receipt = {
        "statement": statement,
        "signed_by": signer.key_id,
        "signature": base64.b64encode(signature).decode("ascii"),
    }
    return json.dumps(receipt, ensure_ascii=False, indent=2)


def verify_receipt(text: str, homes: Mapping[RegionId, HomeTrust]) -> dict[str, object]:
    """The statement of a receipt that its home has signed, with a key that was good when it says that it was made.

    Raises:
        MeshError: INVALID_RECEIPT.
    """
    try:
        receipt = cast("object", json.loads(text)) if len(text) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        receipt = None
    if isinstance(receipt, dict):
        fields = cast("dict[str, object]", receipt)
        statement, signed_by, signature = (fields.get(name) for name in ("statement", "signed_by", "signature"))
        if isinstance(statement, dict) and isinstance(signed_by, str) and isinstance(signature, str):
            said = cast("dict[str, object]", statement)
            try:
                raw = base64.b64decode(signature, validate=True)
            except (binascii.Error, ValueError):
                raw = b""
            home, made_s = homes.get(RegionId(str(said.get("home")))), _made_s(said)
            if home is not None and made_s is not None and verify(home.keys, signed_by, raw, _signed(said), made_s):
                return said
    raise MeshError(Code.INVALID_RECEIPT)


def _made_s(statement: Mapping[str, object]) -> float | None:
    try:
        made = datetime.fromisoformat(str(statement.get("returned_at")))
    except ValueError:
        return None
    return made.timestamp() if made.tzinfo is not None else None


def _signed(statement: Mapping[str, object]) -> bytes:
    return _DOMAIN + json.dumps(statement, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
