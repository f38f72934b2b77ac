"""The sample tenants, where an admin refuses them."""

from pathlib import Path

import grpc
import grpc.aio
import pytest

from mesh.embedded.home import Home
from mesh.embedded.samples import make_samples
from mesh.errors import Code, MeshError
from mesh.types import RegionId
from mesh.v1 import admin_pb2, admin_pb2_grpc


class Forgetful(admin_pb2_grpc.AdminServicer):
    """An admin whose control store lost what its ledger has."""

    async def FindTenant(  # noqa: N802 - the proto's name
        self, request: admin_pb2.FindTenantRequest, context: grpc.aio.ServicerContext
    ) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND)

    async def CreateTenant(  # noqa: N802
        self, request: admin_pb2.CreateTenantRequest, context: grpc.aio.ServicerContext
    ) -> None:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS)


async def test_a_control_store_that_lost_its_data_ends_the_start(tmp_path: Path) -> None:
    server = grpc.aio.server()
    admin_pb2_grpc.add_AdminServicer_to_server(Forgetful(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(MeshError) as caught:
                await make_samples(Home(tmp_path), {RegionId("vn-1"): channel}, lambda _: None)
    finally:
        await server.stop(0)
    assert caught.value.code is Code.START_FAILED
    assert str(tmp_path / "etcd") in caught.value.message
