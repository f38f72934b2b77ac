"""An OpenAI JSON body as a plain document, strictly: what two parsers could read differently is refused.

The gateway skips through the same bytes with a faster parser that takes the last of duplicate keys and bytes that are
not UTF-8. This one refuses both, so that nothing is served that the gateway saw as something else.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

from mesh.errors import Code, MeshError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _RefusedError(ValueError):
    """Says nothing of what was refused."""


def decode(body: bytes | bytearray) -> dict[str, object]:
    """One JSON object in UTF-8, without duplicate keys, NaN, infinities or halves of surrogate pairs.

    Raises:
        MeshError: MALFORMED_BODY.
    """
    try:
        value = _decode(body)
    except (ValueError, RecursionError):
        # Left before raising: the exception holds the body.
        value = None
    if isinstance(value, dict):
        return cast("dict[str, object]", value)
    raise MeshError(Code.MALFORMED_BODY)


def _decode(body: bytes | bytearray) -> object:
    text = body.decode("utf-8")
    value: object = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    if _SURROGATE.search(text):
        # A lone half cannot be written as UTF-8, and so can neither be tokenized nor sent on; encoding finds it.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _RefusedError
    return table


def _constant(name: str) -> object:
    del name
    raise _RefusedError
