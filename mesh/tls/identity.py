"""Who a certificate speaks for: the one URI `mesh://<region>/<role>/<id>` among its alternative names.

Only a verified certificate of the mesh's internal CA may be asked; verifying is the context's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self, cast

from mesh.types import RegionId, Role

OPERATOR_REGION = RegionId("-")
"""An operator belongs to no region."""

_URI = re.compile(rf"mesh://(-|[a-z0-9]+(?:-[a-z0-9]+)*)/({'|'.join(Role)})/([A-Za-z0-9_-]{{1,64}})")


@dataclass(frozen=True, slots=True)
class Identity:
    """A program or a person of the mesh, as its certificate says."""

    region: RegionId
    role: Role
    id: str

    @classmethod
    def parse(cls, uri: str) -> Self | None:
        """Reads `mesh://vn-1/gateway/g1`; None if it is anything else."""
        match = _URI.fullmatch(uri)
        if match is None:
            return None
        role = Role(match[2])
        if (match[1] == OPERATOR_REGION) is not (role is Role.OPERATOR):
            return None
        return cls(RegionId(match[1]), role, match[3])

    def __str__(self) -> str:
        return f"mesh://{self.region}/{self.role}/{self.id}"


def identity_of(certificate: Mapping[str, object] | None) -> Identity | None:
    """Reads what `SSLObject.getpeercert()` returned; None where it names nobody, or more than one."""
    names = cast("Iterable[tuple[str, str]]", (certificate or {}).get("subjectAltName", ()))
    return _only(value for kind, value in names if kind == "URI")


def identity_of_grpc(auth_context: Mapping[str, Iterable[bytes]]) -> Identity | None:
    """Reads `ServicerContext.auth_context()` of grpc; None where it names nobody, or more than one."""
    return _only(uri.decode("ascii", "replace") for uri in auth_context.get("peer_uri", ()))


def internal_name(role: Role, region: RegionId) -> str:
    """The DNS name in an internal certificate, such as `replica.vn-1.mesh`: what a client verifies."""
    return f"{role}.{region}.mesh"


def door_name(region: RegionId) -> str:
    """The DNS name that every certificate of a region's doors has, such as `door.vn-1.mesh`."""
    return f"door.{region}.mesh"


def _only(uris: Iterable[str]) -> Identity | None:
    identities = [Identity.parse(uri) for uri in uris]
    return identities[0] if len(identities) == 1 else None
