"""The two sample tenants: made once, through the admin of their home, and kept with their keys in `samples.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import grpc
import grpc.aio

from mesh.embedded.home import Home, read_json, write_private
from mesh.errors import Code, MeshError
from mesh.types import RegionId, Transfer
from mesh.v1 import admin_pb2, admin_pb2_grpc

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    home: RegionId
    allowed: tuple[str, ...]
    transfer: Transfer


SAMPLES = (
    _Sample("acme", RegionId("vn-1"), ("VN",), Transfer.NEVER),
    _Sample("globex", RegionId("vn-1"), ("SG", "VN"), Transfer.WITHIN_ALLOWED),
)


async def make_samples(
    home: Home, admins: Mapping[RegionId, grpc.aio.Channel], progress: Callable[[str], None]
) -> None:
    """Makes the samples whose home runs and that are not there yet; says which home is missing.

    Raises:
        grpc.aio.AioRpcError: A home's admin did not do it.
        MeshError: `start_failed` where the ledger has an account whose record the control store lost: no wait helps.
    """
    kept = dict(read_json(home.samples))
    for sample in SAMPLES:
        if sample.home not in admins:
            progress(f"sample tenant {sample.name}: not made, its home {sample.home} is not started")
            continue
        stub = admin_pb2_grpc.AdminStub(admins[sample.home])
        try:
            tenant = await _find(stub, sample) or await _create(stub, sample)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            raise MeshError(
                Code.START_FAILED,
                hint=f"The ledger in {home.ledger} knows the sample tenant {sample.name}, the control store in "
                f"{home.etcd} does not: one of them is of another time. Put it back, or remove {home.path}.",
            ) from None
        before = cast("Mapping[str, object]", kept.get(sample.name) or {})
        if before.get("tenant") == tenant.tenant and before.get("key"):
            key = str(before["key"])
        else:
            request = admin_pb2.CreateKeyRequest(tenant=tenant.tenant)
            key = cast("admin_pb2.Key", await stub.CreateKey(request, timeout=_TIMEOUT_S)).key
        kept[sample.name] = {
            "tenant": tenant.tenant,
            "key": key,
            "home": tenant.home,
            "allowed": list(tenant.allowed),
        }
        write_private(home.samples, json.dumps(kept, indent=2))


async def _find(stub: admin_pb2_grpc.AdminStub, sample: _Sample) -> admin_pb2.Tenant | None:
    request = admin_pb2.FindTenantRequest(tenant=sample.name)
    try:
        return cast("admin_pb2.Tenant", await stub.FindTenant(request, timeout=_TIMEOUT_S))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


async def _create(stub: admin_pb2_grpc.AdminStub, sample: _Sample) -> admin_pb2.Tenant:
    request = admin_pb2.CreateTenantRequest(name=sample.name, allowed=sample.allowed, transfer=sample.transfer)
    return cast("admin_pb2.Tenant", await stub.CreateTenant(request, timeout=_TIMEOUT_S))
