"""A key as text: `mk_<cc>_<key id>_<secret><tag>`, base62, at most 72 bytes.

`cc` is the jurisdiction of the tenant's home, in lower case. `tag` is a MAC under one mesh-wide secret: a forged key is
refused in microseconds, before any hash is computed. It proves nothing else; the secret is what the hash at rest is of.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from mesh.types import Jurisdiction, KeyId

KEY_ID_CHARS = 12
SECRET_CHARS = 32
TAG_CHARS = 10
MAX_KEY_BYTES = 72
"""bcrypt takes no more."""
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BASE62 = frozenset(_ALPHABET)
_LENGTH = 3 + 2 + 1 + KEY_ID_CHARS + 1 + SECRET_CHARS + TAG_CHARS


@dataclass(frozen=True, slots=True)
class KeyText:
    """A key whose tag is right. `text` is the whole of it: never log it."""

    key_id: KeyId
    jurisdiction: Jurisdiction
    text: str

    def __repr__(self) -> str:
        return f"KeyText({self.key_id})"


def base62(data: bytes, chars: int) -> str:
    """`chars` base62 characters of `data`, the lowest digits first."""
    number, text = int.from_bytes(data, "big"), ""
    for _ in range(chars):
        number, digit = divmod(number, 62)
        text += _ALPHABET[digit]
    return text


def make_key(jurisdiction: Jurisdiction, randomness: bytes, mac_secret: bytes) -> KeyText:
    """A new key.

    Args:
        jurisdiction: Of the tenant's home.
        randomness: 48 unguessable bytes.
        mac_secret: The mesh-wide secret.
    """
    if len(randomness) != 48:
        raise ValueError("a key takes 48 random bytes")
    key_id = base62(randomness[:16], KEY_ID_CHARS)
    body = f"mk_{jurisdiction.lower()}_{key_id}_{base62(randomness[16:], SECRET_CHARS)}"
    return KeyText(KeyId(key_id), jurisdiction, body + _tag(body, mac_secret))


def read_key(text: str, mac_secret: bytes) -> KeyText | None:
    """The key, or None if it is not one of this mesh. Takes the same time wherever the tag differs."""
    if len(text) != _LENGTH or text[:3] != "mk_" or text[5] != "_" or text[6 + KEY_ID_CHARS] != "_":
        return None
    key_id, secret = text[6 : 6 + KEY_ID_CHARS], text[7 + KEY_ID_CHARS :]
    if not _BASE62.issuperset(key_id + secret) or not (text[3:5].isascii() and text[3:5].islower()):
        return None
    if not hmac.compare_digest(_tag(text[:-TAG_CHARS], mac_secret), text[-TAG_CHARS:]):
        return None
    return KeyText(KeyId(key_id), Jurisdiction(text[3:5].upper()), text)


def _tag(body: str, mac_secret: bytes) -> str:
    return base62(hmac.digest(mac_secret, body.encode(), hashlib.sha256), TAG_CHARS)
