"""Tenant hostnames, `<label>.<region>.<domain>`: who has which, and whom a client asked for. Pure.

A name keeps a client's software in one region even where its configuration is wrong: the name of a region's tenant
resolves to that region only, and no certificate holds names of two regions. The name says nothing of who calls: that is
the key's business, and the two must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mesh.errors import Code, MeshError
from mesh.types import Endpoint, TenantId

_PORT = re.compile(r":[0-9]{1,5}$")
_OF_AN_ID = re.compile(r"t-[a-z2-7]{16}")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def label_of(tenant: TenantId) -> str:
    """A tenant's label: its id with a hyphen, since a hostname holds no underscore. `t_abc…` is `t-abc…`."""
    return tenant.replace("_", "-")


def is_public_label(text: str) -> bool:
    """Whether a tenant may choose this label: one that a hostname can have, and not of the form of any tenant's id.

    Nor one whose third and fourth characters are hyphens: those are reserved, for names in other scripts.
    """
    return _LABEL.fullmatch(text) is not None and _OF_AN_ID.fullmatch(text) is None and text[2:4] != "--"


def check_label(label: str | None, tenant: TenantId, chosen: str = "") -> None:
    """Returns where a client called by no tenant's name, or by one of the names of its key's tenant.

    Args:
        label: Of the name that was called; None where it was no tenant's.
        tenant: The key's.
        chosen: The public label of that tenant; empty where it has none.

    Raises:
        MeshError: MISDIRECTED_REQUEST.
    """
    if label is not None and label != label_of(tenant) and (not chosen or label != chosen):
        raise MeshError(Code.MISDIRECTED_REQUEST)


def tenant_endpoint(endpoint: Endpoint, zone: str | None, tenant: TenantId, chosen: str = "") -> Endpoint:
    """A region's doors by the tenant's own name there, at the same ports; by the region's where it has no zone.

    The name has the public label that the tenant has chosen, if it has.
    """
    if zone is None:
        return endpoint
    name = f"{chosen or label_of(tenant)}.{zone}"
    return replace(endpoint, http=f"https://{name}{_port_of(endpoint.http)}", grpc=f"{name}{_port_of(endpoint.grpc)}")


def host_name(text: str) -> str:
    """The host of `host` or `host:port` as names are compared: lower case, without port and final dot."""
    return _PORT.sub("", text).lower().removesuffix(".")


def labels_under(names: Iterable[str], zone: str) -> frozenset[str]:
    """The labels that stand before a zone in some names, hosts with or without a port: no tenant can have them."""
    hosts = (host_name(name).removeprefix("https://") for name in names)
    return frozenset(host.removesuffix(f".{zone}") for host in hosts if host.endswith(f".{zone}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorNames:
    """The names by which one gateway's doors are called.

    Attributes:
        plain: The doors' own names and addresses, as `host_name` gives them.
        zone: `<region>.<domain>`: each label under it is a tenant's. None where tenants have no names.
        zones: Those of all regions, this one's included.
    """

    plain: frozenset[str]
    zone: str | None = None
    zones: frozenset[str] = frozenset()

    def label(self, server_name: str | None, host: str | None) -> str | None:
        """The label of the tenant whose name was called; None where the door was called by its own name or address.

        Args:
            server_name: From the TLS handshake (SNI), or None: then the listener's own address was called.
            host: The host asked for inside, with or without a port; None where the door cannot tell.

        Raises:
            MeshError: MISDIRECTED_REQUEST: the two differ, or the name is not one of this region.
        """
        wanted = None if host is None else host_name(host)
        if server_name is None:
            # A tenant's name is served to those only who show it in the handshake, by which the way was chosen.
            if wanted is not None and wanted not in self.plain and _is_within(wanted, self.zones):
                raise MeshError(Code.MISDIRECTED_REQUEST)
            return None
        name = host_name(server_name)
        if wanted is not None and wanted != name:
            raise MeshError(Code.MISDIRECTED_REQUEST)
        if name in self.plain:
            return None
        label, _, rest = name.partition(".")
        if self.zone is None or rest != self.zone or not _LABEL.fullmatch(label):
            raise MeshError(Code.MISDIRECTED_REQUEST)
        return label


def _is_within(name: str, zones: frozenset[str]) -> bool:
    return any(name.endswith(f".{zone}") for zone in zones)


def _port_of(address: str) -> str:
    found = _PORT.search(address)
    return found[0] if found else ""
