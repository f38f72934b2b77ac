"""The little that a gateway reads of a body: the model, and whether it is to be streamed.

The rest is skipped, not decoded: text never becomes a Python string here. The replica parses in full and owns every
other rule; what the two parsers could see differently (duplicate keys), it refuses.
"""

from __future__ import annotations

import msgspec

from mesh.errors import Code, MeshError
from mesh.types import Facts


class _Fields(msgspec.Struct):
    model: str
    stream: bool | None = None


class _Raw(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"null")
    stream: msgspec.Raw = msgspec.Raw(b"null")


_FIELDS = msgspec.json.Decoder(_Fields)
_RAW = msgspec.json.Decoder(_Raw)
_TEXT = msgspec.json.Decoder(str)


def read_facts(body: bytes | bytearray) -> Facts:
    """Facts of an OpenAI JSON body.

    Raises:
        MeshError: MALFORMED_BODY; INVALID_PARAMETER for `model` and `stream`.
    """
    try:
        fields = _FIELDS.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # Left before raising: the exception holds pieces of the body.
        fields = None
    if fields is None:
        raise _fault(body)
    if not fields.model:
        raise MeshError(Code.INVALID_PARAMETER, param="model", hint="It must be the name of a model.")
    return Facts(model=fields.model, stream=fields.stream is True)


def _fault(body: bytes | bytearray) -> MeshError:
    """Which field it was. Only for bodies that are refused anyway."""
    try:
        raw = _RAW.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return MeshError(Code.MALFORMED_BODY)
    try:
        _TEXT.decode(raw.model)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return MeshError(Code.INVALID_PARAMETER, param="model", hint="It must be the name of a model.")
    return MeshError(Code.INVALID_PARAMETER, param="stream", hint="It must be true or false.")
