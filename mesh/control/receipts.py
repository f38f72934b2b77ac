"""Receipts: what a tenant can show an auditor of a change that took something away, signed by the tenant's home.

A receipt is one JSON object, `{"statement": {...}, "signed_by": key id, "signature": base64}`. The signature is the
home's policy key's, over `mesh.receipt.v1`, a zero byte, and the statement as JSON with sorted keys, without spaces and
in UTF-8. Whoever has the home's region file can check it without the mesh.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import cast

from mesh.control.records import HomeTrust
from mesh.control.signing import Signer, verify
from mesh.errors import Code, MeshError
from mesh.types import RegionId

_DOMAIN = b"mesh.receipt.v1\0"
MOST_BYTES = 1 << 20
"""A longer one is none: nobody makes it."""
_FIELDS = ("statement", "signed_by", "signature")


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
    said: dict[str, object] | None = None
    # Whatever somebody made of one is no receipt: also what cannot be written in UTF-8, or nests too deep.
    with suppress(ValueError, OverflowError, RecursionError):
        said = _read(text, homes) if len(text) <= MOST_BYTES else None
    if said is None:
        raise MeshError(Code.INVALID_RECEIPT)
    return said


def _read(text: str, homes: Mapping[RegionId, HomeTrust]) -> dict[str, object] | None:
    receipt = cast("object", json.loads(text, object_pairs_hook=_once))
    if not isinstance(receipt, dict):
        return None
    fields = cast("dict[str, object]", receipt)
    statement, signed_by, signature = (fields.get(name) for name in _FIELDS)
    # Nothing stands beside what was signed: whoever reads the file would take it for part of it.
    if fields.keys() != set(_FIELDS) or not isinstance(statement, dict):
        return None
    if not isinstance(signed_by, str) or not isinstance(signature, str):
        return None
    said, raw = cast("dict[str, object]", statement), base64.b64decode(signature, validate=True)
    home, made = homes.get(RegionId(str(said.get("home")))), datetime.fromisoformat(str(said.get("returned_at")))
    if home is None or made.tzinfo is None:
        return None
    return said if verify(home.keys, signed_by, raw, _signed(said), made.timestamp()) else None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose fields stand there once each: readers differ in which of two they take."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError
    return fields


def _signed(statement: Mapping[str, object]) -> bytes:
    return _DOMAIN + json.dumps(statement, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
