"""TLS 1.3 and nothing older: contexts, identities, the start-up self-check."""

from mesh.tls.contexts import client_context, door_context, server_context
from mesh.tls.credentials import (
    ETCD_NAME,
    grpc_channel_credentials,
    grpc_channel_options,
    grpc_door_channel_credentials,
    grpc_door_credentials,
    grpc_named_options,
    grpc_root_credentials,
    grpc_server_credentials,
)
from mesh.tls.doornames import check_door_names
from mesh.tls.files import read_mesh_secret, read_policy_key
from mesh.tls.identity import OPERATOR_REGION, Identity, door_name, identity_of, identity_of_grpc, internal_name
from mesh.tls.selfcheck import GRPC_SUITES, check_tls13, prepare_process

__all__ = [
    "ETCD_NAME",
    "GRPC_SUITES",
    "OPERATOR_REGION",
    "Identity",
    "check_door_names",
    "check_tls13",
    "client_context",
    "door_context",
    "door_name",
    "grpc_channel_credentials",
    "grpc_channel_options",
    "grpc_door_channel_credentials",
    "grpc_door_credentials",
    "grpc_named_options",
    "grpc_root_credentials",
    "grpc_server_credentials",
    "identity_of",
    "identity_of_grpc",
    "internal_name",
    "prepare_process",
    "read_mesh_secret",
    "read_policy_key",
    "server_context",
]
