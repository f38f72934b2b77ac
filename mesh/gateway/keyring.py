"""Whose key is it? The tag in microseconds, then the record, then the hash, which is slow and therefore remembered.

What is remembered for a minute is only that a text matched a hash; whether the key and its tenant are good is read
from the policy book each time. The text itself is not kept: the memory is keyed by a MAC under a secret of this
process.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from mesh.errors import Code, MeshError
from mesh.policy.bundle import PolicyBook, TenantKey, TenantPolicy
from mesh.policy.decide import state_of
from mesh.policy.keys import MAX_KEY_BYTES, KeyText, read_key
from mesh.ports import Clock, Entropy
from mesh.types import KeyId

REMEMBER_S = 60.0
MOST_REMEMBERED = 100_000
MOST_WAITING = 256
"""Calls that may wait for a hash at once, over all keys."""


class Hasher(Protocol):
    """Compares a key with its hash at rest, off the event loop."""

    async def verify(self, text: str, hashed: str) -> bool:
        """Whether `hashed` is of `text`. Takes up to 0.2 s of a core."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """A key that is good, and its tenant's policy."""

    key: TenantKey
    policy: TenantPolicy


@dataclass(slots=True)
class _Match:
    hashed: str
    until_s: float


class Keyring:
    """Tells who a credential belongs to."""

    def __init__(self, *, book: PolicyBook, mac_secret: bytes, hasher: Hasher, clock: Clock, entropy: Entropy) -> None:
        self._book = book
        self._mac_secret = mac_secret
        self._hasher = hasher
        self._clock = clock
        self._process_secret = entropy.token(32)
        self._matches: OrderedDict[bytes, _Match] = OrderedDict()
        self._verifying: dict[KeyId, asyncio.Lock] = {}
        self._waiting = 0

    async def authenticate(self, credential: str | None) -> Caller:
        """The caller, whose tenant is served at all.

        Raises:
            MeshError: As `identify`; TENANT_SUSPENDED.
        """
        caller = await self.identify(credential)
        denied = state_of(caller.policy)
        if denied is not None:
            error = MeshError(denied.code)
            error.revision = caller.policy.revision
            raise error
        return caller

    async def identify(self, credential: str | None) -> Caller:
        """The caller, in whatever state its tenant is.

        Raises:
            MeshError: INVALID_API_KEY; POLICY_STALE while no policy was ever loaded; RATE_LIMITED when too many new
                keys arrive at once.
        """
        text = None
        if credential is not None and len(credential) <= MAX_KEY_BYTES:
            text = read_key(credential, self._mac_secret)
        if text is None:
            raise MeshError(Code.INVALID_API_KEY)
        if not self._book.loaded:
            raise MeshError(Code.POLICY_STALE)
        key = self._book.key(text.key_id)
        if key is None or key.revoked or not await self._matches_hash(text, key):
            raise MeshError(Code.INVALID_API_KEY)
        # Read after the wait: what counts is the policy of now.
        key, policy = self._book.key(text.key_id), self._book.tenant(key.tenant)
        if key is None or key.revoked or policy is None:
            raise MeshError(Code.INVALID_API_KEY)
        return Caller(key, policy)

    async def _matches_hash(self, text: KeyText, key: TenantKey) -> bool:
        digest = hmac.digest(self._process_secret, text.text.encode(), hashlib.sha256)
        if self._remembered(digest, key):
            return True
        if self._waiting >= MOST_WAITING:
            raise MeshError(Code.RATE_LIMITED, hint="Too many keys are being checked for the first time.")
        self._waiting += 1
        lock = self._verifying.setdefault(text.key_id, asyncio.Lock())
        try:
            # One check a key: a burst of calls with a new key costs one hash.
            async with lock:
                if self._remembered(digest, key):
                    return True
                if not await self._hasher.verify(text.text, key.hash):
                    return False
                self._remember(digest, key)
                return True
        finally:
            self._waiting -= 1
            if not lock.locked():
                self._verifying.pop(text.key_id, None)

    def _remembered(self, digest: bytes, key: TenantKey) -> bool:
        match = self._matches.get(digest)
        return match is not None and match.hashed == key.hash and self._clock.now_s() < match.until_s

    def _remember(self, digest: bytes, key: TenantKey) -> None:
        self._matches[digest] = _Match(key.hash, self._clock.now_s() + REMEMBER_S)
        self._matches.move_to_end(digest)
        if len(self._matches) > MOST_REMEMBERED:
            self._matches.popitem(last=False)
