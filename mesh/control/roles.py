"""Who may read and write what in the control store: etcd users by certificate, one role each.

A gateway reads heads, ops and policies (a range watch needs all between its ends) and writes its region's grants and
acknowledgements. An admin also reads everybody's of those, by one range with the rest, since a removal waits for them.
It writes its own home's policies, heads and ops, and as their sweeper its region's grants and acknowledgements. Nobody
else is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mesh.control import layout
from mesh.control.etcd import EtcdStore
from mesh.control.store import StoreRefusedError, prefix_end
from mesh.etcd.v1 import etcd_pb2 as pb
from mesh.types import RegionId, Role

_TIMEOUT_S = 5.0
_ROOT = "root"
_Rights = Mapping[tuple[str, str], pb.Permission.Type]


def user_of(role: Role, region: RegionId) -> str:
    """The etcd user, and so the certificate's CN, of a region's program."""
    return f"{role}-{region}"


async def set_up(store_as_root: EtcdStore, regions: Iterable[RegionId]) -> None:
    """Makes the users and roles what they should be and turns access control on. May be repeated at any time.

    Args:
        store_as_root: The store, with root's certificate.
        regions: Whose programs may come.

    Raises:
        StoreError: It is not done, or not known to be: repeat it.
    """
    store = store_as_root
    await _add_user(store, _ROOT, {})
    for region in regions:
        await _add_user(store, user_of(Role.GATEWAY, region), _gateway(region))
        await _add_user(store, user_of(Role.ADMIN, region), _admin(region))
    await store.call(
        "Auth/AuthEnable", pb.AuthEnableRequest(), pb.AuthEnableResponse, timeout_s=_TIMEOUT_S, repeat=True
    )


def _gateway(region: RegionId) -> _Rights:
    own = (layout.grant_prefix(region), layout.ack_prefix(region))
    return {layout.FEED: pb.Permission.READ, **{_under(prefix): pb.Permission.READWRITE for prefix in own}}


def _admin(region: RegionId) -> _Rights:
    own = (layout.home_prefix(region), layout.head_prefix(region), layout.op_prefix(region))
    rights = {**_gateway(region), layout.ALL: pb.Permission.READ}
    return {**rights, **{_under(prefix): pb.Permission.READWRITE for prefix in own}}


def _under(prefix: str) -> tuple[str, str]:
    return prefix, prefix_end(prefix)


async def _add_user(store: EtcdStore, name: str, rights: _Rights) -> None:
    """A user without a password (it is known by its certificate) with the role of the same name."""
    await _unless_there(store, "Auth/RoleAdd", pb.AuthRoleAddRequest(name=name), pb.AuthRoleAddResponse)
    found = await store.call(
        "Auth/RoleGet", pb.AuthRoleGetRequest(role=name), pb.AuthRoleGetResponse, timeout_s=_TIMEOUT_S, repeat=True
    )
    here = {(right.key.decode("latin-1"), right.range_end.decode("latin-1")): right.perm_type for right in found.perm}
    for (key, end), kind in rights.items():
        if here.get((key, end)) != kind:
            right = pb.Permission(perm_type=kind, key=key.encode(), range_end=end.encode())
            await store.call(
                "Auth/RoleGrantPermission",
                pb.AuthRoleGrantPermissionRequest(name=name, perm=right),
                pb.AuthRoleGrantPermissionResponse,
                timeout_s=_TIMEOUT_S,
                repeat=True,
            )
    for key, end in here.keys() - rights.keys() if name != _ROOT else ():
        await store.call(
            "Auth/RoleRevokePermission",
            pb.AuthRoleRevokePermissionRequest(role=name, key=key.encode("latin-1"), range_end=end.encode("latin-1")),
            pb.AuthRoleRevokePermissionResponse,
            timeout_s=_TIMEOUT_S,
            repeat=False,
        )
    options = pb.UserAddOptions(no_password=True)
    await _unless_there(
        store, "Auth/UserAdd", pb.AuthUserAddRequest(name=name, options=options), pb.AuthUserAddResponse
    )
    await store.call(
        "Auth/UserGrantRole",
        pb.AuthUserGrantRoleRequest(user=name, role=name),
        pb.AuthUserGrantRoleResponse,
        timeout_s=_TIMEOUT_S,
        repeat=True,
    )


async def _unless_there(
    store: EtcdStore,
    method: str,
    request: pb.AuthRoleAddRequest | pb.AuthUserAddRequest,
    answer: type[pb.AuthRoleAddResponse | pb.AuthUserAddResponse],
) -> None:
    try:
        await store.call(method, request, answer, timeout_s=_TIMEOUT_S, repeat=True)
    except StoreRefusedError as error:
        if "already exists" not in str(error):
            raise
