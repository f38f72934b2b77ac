"""The settings folder of each country, from the repository's regions and by the same code that an embedded mesh uses.

Doors listen on the public side, all that gateways and the control store say to each other on the border side, replicas
and Ray on the loopback device of their own country.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from border.namespaces import ADMIN, COUNTRIES, ETCD, ETCD_PEER, GRPC, HTTP, INTERNAL, OPERATOR, PEER, Country

from mesh.embedded.addresses import RayPorts, RegionAddresses
from mesh.embedded.authority import make_pki
from mesh.embedded.configuration import catalogue, embedded_settings, write_settings
from mesh.embedded.home import Home
from mesh.embedded.policy_keys import policy_keys
from mesh.settings import Address, Gateway, Settings
from mesh.types import GatewayId, RegionId

LOOPBACK = "127.0.0.1"
RAY_PORTS = RayPorts(20_000)
"""The same in every country: each has a loopback device of its own."""
MAX_BODY_BYTES = 1024 * 1024
NEXT_GATEWAY = 100
"""The ports of a country's second gateway are so much higher."""


@dataclass(frozen=True, slots=True)
class Places:
    """What `mesh.embedded` asks of the addresses of a mesh, for the mesh as one country sees it."""

    country: Country

    @property
    def etcd(self) -> Address:
        """Its own member of the control store."""
        return Address(self.country.border, ETCD)

    @property
    def etcd_peer(self) -> Address:
        """Where the other members reach it."""
        return Address(self.country.border, ETCD_PEER)

    def of(self, region: RegionId) -> RegionAddresses:
        """Where a region listens."""
        one = next(each for each in COUNTRIES.values() if each.region == region)
        return RegionAddresses(
            host=LOOPBACK,
            ray=RAY_PORTS,
            http=Address(one.public, HTTP),
            grpc=Address(one.public, GRPC),
            internal=Address(one.border, INTERNAL),
            admin=Address(one.border, ADMIN),
            peer=Address(one.border, PEER),
            operator=Address(LOOPBACK, OPERATOR),
        )


def make_settings(home: Home, models_dir: Path, gateways: Mapping[str, int]) -> dict[str, Settings]:
    """Certificates, and a settings folder for each country: its own member of the control store comes first in it."""
    hosts = {RegionId(one.region): [one.public, one.border, LOOPBACK] for one in COUNTRIES.values()}
    make_pki(home.pki, hosts, [one.border for one in COUNTRIES.values()])
    known, keys = catalogue(), policy_keys(home.pki, hosts)
    settings: dict[str, Settings] = {}
    for name, country in COUNTRIES.items():
        own = embedded_settings(known, tuple(hosts), home, Places(country), models_dir, "cpu", keys)  # pyright: ignore[reportArgumentType]
        others = [f"https://{Places(one).etcd}" for one in COUNTRIES.values() if one is not country]
        regions = {
            region.id: replace(region, gateways=_gateways(region.gateways[0], gateways.get(short, 1)))
            for short, region in zip(COUNTRIES, own.regions.values(), strict=True)
        }
        settings[name] = replace(own, etcd=(*own.etcd, *others), regions=regions, max_body_bytes=MAX_BODY_BYTES)
        write_settings(settings[name], config_of(home, name))
    return settings


def config_of(home: Home, country: str) -> Path:
    """A country's settings folder."""
    return home.path / f"config-{country}"


def _gateways(first: Gateway, number: int) -> tuple[Gateway, ...]:
    return tuple(
        replace(
            first,
            id=GatewayId(f"g{n + 1}"),
            **{
                port: Address(getattr(first, port).host, getattr(first, port).port + n * NEXT_GATEWAY)
                for port in ("http", "grpc", "internal", "peer", "operator")
            },
        )
        for n in range(number)
    )
