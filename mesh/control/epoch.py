"""Since when a home's control epoch has been going on, and so for how long nobody may rely on acknowledgements alone.

Before a recovery the store had another history, whose members nobody knows any more. Each of them has surely lost its
authority once W of the longest span that the configuration allows has passed since the recovery began. The recovery
leaves a mark in the store; its age is told by this admin's own clocks, from when it first saw the mark.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from mesh.control.records import FIRST_EPOCH, Trust
from mesh.control.store import KeyValue
from mesh.policy.authority import wait_s
from mesh.ports import Instant
from mesh.v1 import control_pb2 as pb


class EpochStart:
    """The beginning of one home's control epoch, as one admin knows it.

    Attributes:
        published: Whether this home's policy was published in the epoch. In the first one there is nothing to publish.
    """

    def __init__(self, trust: Trust) -> None:
        self.published = trust.epoch == FIRST_EPOCH
        self._trust = trust
        self._wait_s = 0.0 if trust.epoch == FIRST_EPOCH else wait_s(trust.cap_s)
        self._began: Instant | None = None

    def take(self, mark: KeyValue | None, received: Instant) -> None:
        """Takes in what stands at the mark's key."""
        found = decode_recovery(mark.value) if mark is not None else None
        if found is not None and found.epoch == self._trust.epoch:
            self._began = self._began or received
            self.published = self.published or found.complete

    def left_s(self, now: Instant) -> float:
        """For how long a member of the lost history may still have authority; all of W where no mark was seen."""
        if self._began is None:
            return self._wait_s
        return max(0.0, self._wait_s - now.least_since(self._began))


def encode_recovery(epoch: int, *, complete: bool) -> bytes:
    """The mark of a recovery."""
    return pb.RecoveryRecord(epoch=epoch, complete=complete).SerializeToString(deterministic=True)


def decode_recovery(value: bytes) -> pb.RecoveryRecord | None:
    """The mark, or None if it is not one."""
    try:
        return pb.RecoveryRecord.FromString(value)
    except DecodeError:
        return None
