"""What a gateway sees of replicas and of other regions: immutable rows with the moment they were seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mesh.types import Endpoint, Jurisdiction, ModelId, ModelKind, RegionId, ReplicaId, ReplicaState

LOAD_LIFETIME_S = 3.0
"""A region's load that is older says nothing any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One model in one replica process of this region.

    `running` and `queued` are sequences; `kv_used` is a share, 0 to 1; `address` is `host:port`.
    """

    id: ReplicaId
    address: str
    model: ModelId
    state: ReplicaState
    running: int
    queued: int
    slots: int
    queue_limit: int
    kv_used: float = 0.0
    pid: int = 0

    @property
    def room(self) -> int:
        """Sequences that it would still take."""
        return self.slots + self.queue_limit - self.running - self.queued


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """One model in another region, summed over its ready replicas (`ready`)."""

    ready: int
    slots: int
    running: int
    queued: int
    queue_limit: int

    @property
    def room(self) -> int:
        """Sequences that the region would still take."""
        return self.slots + self.queue_limit - self.running - self.queued


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionLoad:
    """Another region's load, and the round trip to it. `seen_s` is of this host's clock."""

    region: RegionId
    rtt_s: float
    models: Mapping[ModelId, ModelLoad]
    seen_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueModel:
    """A model, and the regions whose files say that they host it."""

    id: ModelId
    kind: ModelKind
    context: int
    regions: frozenset[RegionId]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A region of the mesh, as configured. `zone` is what stands behind the label in its tenants' names, or None."""

    region: RegionId
    jurisdiction: Jurisdiction
    endpoint: Endpoint
    zone: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """The configured mesh, seen from one region: what exists, loaded or not."""

    here: RegionId
    sites: Mapping[RegionId, Site]
    models: Mapping[ModelId, CatalogueModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What may serve now: this region's replicas, and the other regions' loads."""

    replicas: tuple[Replica, ...]
    regions: Mapping[RegionId, RegionLoad]
