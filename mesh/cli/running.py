"""The mesh that runs, as the command line sees it: each region's `admin`.

Every region is asked by the command itself, with the operator's certificate: names and usage never travel between
regions for it. `mesh.tls.prepare_process` must have run before grpc is imported; `running` sees to it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from google.protobuf.message import Message

from mesh.cli.context import Here, Site
from mesh.errors import Code, MeshError
from mesh.tls import grpc_channel_credentials, grpc_channel_options, prepare_process
from mesh.types import RegionId, Role
from mesh.v1.admin_pb2 import FindKeyRequest, FindTenantRequest, Key, Tenant

if TYPE_CHECKING:
    from mesh.v1.admin_pb2_grpc import AdminStub

CALL_TIMEOUT_S = 5.0
SILENCE_S = 10.0
"""An admin that says nothing for so long while it is followed is away."""
_TENANT_ID = re.compile(r"t_[a-z2-7]{16}")
_AWAY = frozenset({Code.REGION_UNREACHABLE, Code.DEADLINE_EXCEEDED})
T = TypeVar("T", bound=Message)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """What the regions said, those that refused, and those that did not answer."""

    by_region: Mapping[RegionId, T]
    refused: Mapping[RegionId, MeshError]
    unreachable: tuple[RegionId, ...]


class Running:
    """A mesh and open channels to its admins."""

    def __init__(self, sites: Sequence[Site], admins: Mapping[RegionId, AdminStub]) -> None:
        self.sites = {site.id: site for site in sites}
        self._admins = admins

    def site(self, region: str) -> Site:
        """A region of this mesh.

        Raises:
            MeshError: UNKNOWN_REGION.
        """
        found = self.sites.get(RegionId(region))
        if found is None:
            raise MeshError(Code.UNKNOWN_REGION, hint=f"It has: {', '.join(self.sites)}.")
        return found

    async def ask(self, region: RegionId, method: str, request: Message, answer: type[T]) -> T:
        """Asks one region's admin.

        Raises:
            MeshError: What it answers; REGION_UNREACHABLE when it does not.
        """
        answers = await self._ask([region], method, request, answer)
        for error in answers.refused.values():
            raise error
        if answers.unreachable:
            raise unreachable(answers.unreachable)
        return answers.by_region[region]

    async def follow(self, region: RegionId, method: str, request: Message, answer: type[T]) -> AsyncGenerator[T]:
        """What one region's admin says, one after the other, for as long as it takes.

        Raises:
            MeshError: What it answers; REGION_UNREACHABLE when it does not, or breaks off.
        """
        import grpc.aio  # noqa: PLC0415 - reads what `prepare_process` set

        from mesh.transport.grpc_errors import from_rpc_error  # noqa: PLC0415

        call = getattr(self._admins[region], method)(request)
        try:
            while True:
                # An admin that waits says so every second.
                async with asyncio.timeout(SILENCE_S):
                    said = await call.read()
                if not isinstance(said, answer):
                    return
                yield said
        except TimeoutError:
            raise unreachable([region]) from None
        except grpc.aio.AioRpcError as error:
            fault = from_rpc_error(error)
            raise unreachable([region]) if fault.code is Code.REGION_UNREACHABLE else fault from None
        finally:
            call.cancel()

    async def ask_all(self, method: str, request: Message, answer: type[T]) -> Answers[T]:
        """Asks every region's admin at once."""
        return await self._ask(list(self.sites), method, request, answer)

    async def _ask(self, regions: Sequence[RegionId], method: str, request: Message, answer: type[T]) -> Answers[T]:
        import grpc.aio  # noqa: PLC0415 - reads what `prepare_process` set

        from mesh.transport.grpc_errors import from_rpc_error  # noqa: PLC0415

        said: dict[RegionId, T] = {}
        refused: dict[RegionId, MeshError] = {}
        away: list[RegionId] = []

        async def one(region: RegionId) -> None:
            try:
                value = await getattr(self._admins[region], method)(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                fault = from_rpc_error(error)
                if fault.code in _AWAY:
                    away.append(region)
                else:
                    refused[region] = fault
            else:
                assert isinstance(value, answer)  # noqa: S101 - the stub makes nothing else
                said[region] = value

        async with asyncio.TaskGroup() as tasks:
            for region in regions:
                tasks.create_task(one(region), name=f"ask-{region}")
        return Answers(
            {region: said[region] for region in regions if region in said},
            {region: refused[region] for region in regions if region in refused},
            tuple(region for region in regions if region in away),
        )


def unreachable(regions: Sequence[RegionId]) -> MeshError:
    """The error of regions that do not answer and were needed."""
    names = ", ".join(regions)
    return MeshError(Code.REGION_UNREACHABLE, hint=f"{names}: 'mesh status' says what is wrong.")


async def find_tenant(mesh: Running, tenant: str) -> Tenant:
    """The tenant of a name or an id, from its home.

    Raises:
        MeshError: TENANT_NOT_FOUND; AMBIGUOUS_TENANT when two homes have one of this name; REGION_UNREACHABLE when none
            that answers is its home, and one does not answer.
    """
    answers = await mesh.ask_all("FindTenant", FindTenantRequest(tenant=tenant), Tenant)
    by_id: dict[str, Tenant] = {}
    for one in answers.by_region.values():
        known = by_id.get(one.tenant)
        if known is None or known.revision < one.revision:
            by_id[one.tenant] = one  # asked while it moved, the home that it left has answered, too
    found = list(by_id.values())
    if len(found) > 1:
        ids = ", ".join(f"{one.tenant} ({one.home})" for one in found)
        raise MeshError(Code.AMBIGUOUS_TENANT, hint=f"The ids: {ids}.")
    if found:
        return found[0]
    for error in answers.refused.values():
        if error.code is not Code.TENANT_NOT_FOUND:
            raise error
    if answers.unreachable:
        raise unreachable(answers.unreachable)
    raise MeshError(Code.TENANT_NOT_FOUND)


async def home_of_key(mesh: Running, key_id: str) -> RegionId:
    """The home of the tenant that a key belongs to.

    Raises:
        MeshError: KEY_NOT_FOUND; REGION_UNREACHABLE when nobody who answers knows it, and one does not answer.
    """
    answers = await mesh.ask_all("FindKey", FindKeyRequest(key_id=key_id), Key)
    for region in answers.by_region:
        return region
    for error in answers.refused.values():
        if error.code is not Code.KEY_NOT_FOUND:
            raise error
    if answers.unreachable:
        raise unreachable(answers.unreachable)
    raise MeshError(Code.KEY_NOT_FOUND)


def is_tenant_id(text: str) -> bool:
    """Whether it is an id: then no region needs to be asked what it is."""
    return _TENANT_ID.fullmatch(text) is not None


@asynccontextmanager
async def running(here: Here, sites: Sequence[Site]) -> AsyncGenerator[Running]:
    """The mesh of these regions, with a channel to each admin."""
    prepare_process(here.environ)
    import grpc.aio  # noqa: PLC0415 - reads what `prepare_process` set

    from mesh.v1.admin_pb2_grpc import AdminStub  # noqa: PLC0415 - brings grpc

    async with AsyncExitStack() as stack:
        admins: dict[RegionId, AdminStub] = {}
        if sites:
            credentials = grpc_channel_credentials(here.pki, None, Role.OPERATOR)
            for site in sites:
                options = grpc_channel_options(Role.ADMIN, site.id)
                channel = await stack.enter_async_context(
                    grpc.aio.secure_channel(site.admin, credentials, options=options)
                )
                admins[site.id] = AdminStub(channel)
        yield Running(sites, admins)


def ask_mesh(here: Here, ask: Callable[[Running], Awaitable[R]]) -> R:
    """Asks the mesh of a folder, with open channels to its admins, and closes them."""
    sites = here.supervisor.sites(here.home).regions

    async def whole() -> R:
        async with running(here, sites) as mesh:
            return await ask(mesh)

    return asyncio.run(whole())
