"""The addresses of one home: a /16 of 127/8 for what is served, a block of ports on 127.0.0.1 for Ray.

They are picked once and kept, so that clients, certificates and the control store find them again. A registry in the
cache keeps a user's homes apart, also those that do not run now.

    127.N.0.9:2379        etcd (2380 its peers)
    127.N.i.1             region i: http 8443, grpc 8444, internal 8445, admin 8446, peer 8447, operator 9090
    127.N.i.2             region i's front, where there is a domain: http 8443, grpc 8444, to 127.N.i.1:8453 and 8444
    127.0.0.1:B+50(i-1)   region i: Ray; 9 fixed ports, 40 of workers

Never 127.0.0.1:2379: a packaged etcd listens there in clear text.
"""

from __future__ import annotations

import errno
import fcntl
import json
import socket
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mesh.embedded.home import Home, read_json, starting, write_private
from mesh.errors import Code, MeshError
from mesh.settings import Address
from mesh.types import RegionId

_NETWORKS = range(1, 255)
_RAY_HOST = "127.0.0.1"
_RAY_BASES = range(20_000, 32_400, 400)
"""Below the ports that the kernel hands out to clients (32768 on)."""
_RAY_BLOCK = 50
_RAY_WORKERS = range(10, 50)


@dataclass(frozen=True, slots=True)
class RayPorts:
    """One Ray cluster's ports on 127.0.0.1, by `ray start`'s names."""

    base: int

    @property
    def gcs(self) -> Address:
        """What drivers connect to."""
        return Address(_RAY_HOST, self.base)

    def fixed(self) -> dict[str, int]:
        """Each port that `ray start` is told, by option."""
        names = (
            "port",
            "dashboard-port",
            "dashboard-agent-listen-port",
            "dashboard-agent-grpc-port",
            "runtime-env-agent-port",
            "metrics-export-port",
            "node-manager-port",
            "object-manager-port",
            "ray-client-server-port",
        )
        return {name: self.base + i for i, name in enumerate(names)}

    def options(self) -> list[str]:
        """The options of `ray start`."""
        ports = self.fixed() | {
            "min-worker-port": self.base + _RAY_WORKERS.start,
            "max-worker-port": self.base + _RAY_WORKERS.stop - 1,
        }
        return [f"--{name}={port}" for name, port in ports.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontAddresses:
    """What a region's front listens on, and the gateway for it."""

    http: Address
    grpc: Address
    proxied: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionAddresses:
    """What one region listens on; `front` where it can have one."""

    host: str
    ray: RayPorts
    http: Address
    grpc: Address
    internal: Address
    admin: Address
    peer: Address
    operator: Address
    front: FrontAddresses | None = None

    def listeners(self) -> list[Address]:
        """Every fixed address of the region."""
        served = [self.http, self.grpc, self.internal, self.admin, self.peer, self.operator]
        if self.front is not None:
            served += [self.front.http, self.front.grpc, self.front.proxied]
        return served + [Address(_RAY_HOST, port) for port in self.ray.fixed().values()]


@dataclass(frozen=True, slots=True)
class Addresses:
    """One home's places.

    Attributes:
        instance: Marks every process of this home.
        network: The second byte of its addresses.
        ray_base: The first of its Ray ports.
        order: The regions that may be run, in the order of their places.
    """

    instance: str
    network: int
    ray_base: int
    order: tuple[RegionId, ...]

    @property
    def etcd(self) -> Address:
        """Where the control store's clients connect."""
        return Address(f"127.{self.network}.0.9", 2379)

    @property
    def etcd_peer(self) -> Address:
        """Where other members would connect, if there were any."""
        return Address(self.etcd.host, 2380)

    @property
    def temp(self) -> Path:
        """Ray's folder: short, since a socket's path may have 107 bytes."""
        return Path("/tmp") / f"mesh-{self.instance[:8]}"  # noqa: S108 - made with mode 700, checked for its owner

    def ray_temp(self, region: RegionId) -> Path:
        """One cluster's folder in it."""
        return self.temp / str(self.order.index(region) + 1)

    def of(self, region: RegionId) -> RegionAddresses:
        """One region's places."""
        place = self.order.index(region) + 1
        host, front = f"127.{self.network}.{place}.1", f"127.{self.network}.{place}.2"
        return RegionAddresses(
            host=host,
            ray=RayPorts(self.ray_base + (place - 1) * _RAY_BLOCK),
            http=Address(host, 8443),
            grpc=Address(host, 8444),
            internal=Address(host, 8445),
            admin=Address(host, 8446),
            peer=Address(host, 8447),
            operator=Address(host, 9090),
            front=FrontAddresses(http=Address(front, 8443), grpc=Address(front, 8444), proxied=Address(host, 8453)),
        )

    def listeners(self, regions: Iterable[RegionId]) -> list[Address]:
        """Every fixed address of a mesh of these regions."""
        return [self.etcd, self.etcd_peer, *(address for region in regions for address in self.of(region).listeners())]


def addresses_of(home: Home, cache: Path, regions: Sequence[RegionId]) -> Addresses:
    """Reads a home's addresses, or picks them.

    Args:
        home: Made already, and locked.
        cache: Where the user's homes are registered.
        regions: All that may be run; a region keeps its place.

    Raises:
        MeshError: `start_failed` where nothing is free, or the disk refuses.
    """
    with starting():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (cache / "homes.lock").open("ab")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        registry = cache / "homes.json"
        others = {
            path: Path(path) / "addresses.json"
            for path in read_json(registry)
            if path != str(home.path) and (Path(path) / "addresses.json").exists()
        }
        kept = _read(home.addresses)
        if kept is not None and _is_copy(home.addresses, kept, others.values()):
            kept = None  # with its mark, this home would take the other's processes for its own, and end them
        if kept is not None:
            picked = Addresses(
                kept.instance, kept.network, kept.ray_base, (*kept.order, *(r for r in regions if r not in kept.order))
            )
        else:
            picked = _pick([other for other in map(_read, others.values()) if other is not None], regions)
        if picked != kept:
            write_private(home.addresses, _text(picked))
        write_private(registry, json.dumps(dict.fromkeys([*others, str(home.path)])))
        return picked


def _is_copy(own: Path, kept: Addresses, others: Iterable[Path]) -> bool:
    """Whether another home that is there has the same mark: one of them is a copy. Two names of one home are none."""
    marks = ((other, _read(other)) for other in others)
    return any(
        found is not None and found.instance == kept.instance and not other.samefile(own) for other, found in marks
    )


def taken(addresses: Iterable[Address]) -> list[Address]:
    """Those on which something listens already."""
    return [address for address in addresses if not _free(address)]


def _pick(others: Sequence[Addresses], regions: Sequence[RegionId]) -> Addresses:
    """Free places; those that another home keeps, though it does not run now, only where there are no others."""
    instance, order = uuid.uuid4().hex, tuple(regions)
    networks = sorted(_NETWORKS, key=lambda n: n in {other.network for other in others})
    bases = sorted(_RAY_BASES, key=lambda b: b in {other.ray_base for other in others})
    for network in networks:
        served = Addresses(instance, network, bases[0], order)
        if taken(one for one in served.listeners(regions) if one.host != _RAY_HOST):
            continue
        for base in bases:
            picked = Addresses(instance, network, base, order)
            if not taken(one for one in picked.listeners(regions) if one.host == _RAY_HOST):
                return picked
        raise MeshError(Code.START_FAILED, hint=f"No {_RAY_BASES.step} free ports from {_RAY_BASES.start} on for Ray.")
    raise MeshError(Code.START_FAILED, hint="No free network in 127.0.0.0/8.")


def _free(address: Address) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a connection of a former run that is still closing keeps nobody out.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise MeshError(Code.START_FAILED, hint=f"{address} cannot be listened on: {error.strerror}.") from None
    return True


def _read(path: Path) -> Addresses | None:
    found = read_json(path)
    try:
        order = cast("list[str]", found["regions"])
        return Addresses(
            uuid.UUID(str(found["instance"])).hex,
            int(str(found["network"])),
            int(str(found["ray_ports"])),
            tuple(RegionId(str(region)) for region in order),
        )
    except (KeyError, ValueError, TypeError):
        return None


def _text(addresses: Addresses) -> str:
    return json.dumps(
        {
            "instance": addresses.instance,
            "network": addresses.network,
            "ray_ports": addresses.ray_base,
            "regions": addresses.order,
        }
    )
