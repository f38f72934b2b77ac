"""The same for grpc. TLS 1.3 only holds once `prepare_process` has run: grpc has no option for it.

`grpc` is imported when it is used: it reads the environment that `prepare_process` sets when it is imported.
"""

# ruff: noqa: PLC0415
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mesh.tls.files import Pair, door_pair, doors_ca, etcd_pair, mesh_ca, read, role_pair
from mesh.tls.identity import internal_name
from mesh.types import RegionId, Role

if TYPE_CHECKING:
    import grpc

ETCD_NAME = "etcd.mesh"
"""The DNS name in the control store's certificates."""


def grpc_door_credentials(pki: Path, region: RegionId) -> grpc.ServerCredentials:
    """A region's gRPC door: asks clients for no certificate."""
    import grpc

    pair = door_pair(pki, region)
    return grpc.ssl_server_credentials([(read(pair.key), read(pair.certificate))])


def grpc_server_credentials(pki: Path, region: RegionId, role: Role) -> grpc.ServerCredentials:
    """An internal server: only certificates of the mesh's CA get in."""
    import grpc

    pair = role_pair(pki, region, role)
    return grpc.ssl_server_credentials(
        [(read(pair.key), read(pair.certificate))], root_certificates=read(mesh_ca(pki)), require_client_auth=True
    )


def grpc_channel_credentials(pki: Path, region: RegionId | None, role: Role) -> grpc.ChannelCredentials:
    """What a program of the mesh, or the operator (`region` None), shows to an internal server or to etcd."""
    return _channel(pki, role_pair(pki, region, role))


def grpc_root_credentials(pki: Path) -> grpc.ChannelCredentials:
    """The root user of etcd: makes the other users and their roles, and is used for nothing else."""
    return _channel(pki, etcd_pair(pki, "root"))


def grpc_door_channel_credentials(pki: Path) -> grpc.ChannelCredentials:
    """What a client of the doors needs: their CA."""
    import grpc

    return grpc.ssl_channel_credentials(root_certificates=read(doors_ca(pki)))


def grpc_channel_options(role: Role, region: RegionId) -> list[tuple[str, str | int]]:
    """Channel options with which the certificate of that region's program is verified, whatever address is dialled."""
    return grpc_named_options(internal_name(role, region))


def grpc_named_options(server_name: str) -> list[tuple[str, str | int]]:
    """The same by name, such as `ETCD_NAME`. An `http_proxy` of the environment is none of the mesh's business."""
    return [("grpc.ssl_target_name_override", server_name), ("grpc.enable_http_proxy", 0)]


def _channel(pki: Path, pair: Pair) -> grpc.ChannelCredentials:
    import grpc

    return grpc.ssl_channel_credentials(
        root_certificates=read(mesh_ca(pki)), private_key=read(pair.key), certificate_chain=read(pair.certificate)
    )
