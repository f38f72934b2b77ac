"""What a region's own admin and the operator may ask of a gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from mesh.errors import Code, MeshError
from mesh.routing.explain import Explanation
from mesh.tls import identity_of_grpc
from mesh.transport.fleet_hub import FleetHub
from mesh.transport.grpc_codec import explanation_message
from mesh.transport.grpc_server import Context, Failed, service, unary
from mesh.types import GatewayId, ModelId, RegionId, Role, TenantId
from mesh.v1 import fleet_pb2, router_pb2

INSPECT = fleet_pb2.DESCRIPTOR.services_by_name["Inspect"].full_name


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySeen:
    """How well this gateway knows its policies.

    Attributes:
        loaded: Whether it has loaded them since it started.
        live: Whether its watch on the control store is live.
        applied: The control store's revision up to which it applied them.
        store_went_back: Whether it saw the control store go back in time.
    """

    loaded: bool
    live: bool
    applied: int
    store_went_back: bool = False


class Inspect:
    """The `Inspect` service of one gateway."""

    def __init__(
        self,
        *,
        here: RegionId,
        gateway: GatewayId,
        pid: int,
        hub: FleetHub,
        policy: Callable[[], PolicySeen],
        explain_for: Callable[[TenantId, ModelId], Explanation],
    ) -> None:
        self._here = here
        self._gateway = gateway
        self._pid = pid
        self._hub = hub
        self._policy = policy
        self._explain_for = explain_for

    def handlers(self, failed: Failed) -> grpc.GenericRpcHandler:
        """The service, for this region's admin and the operator."""
        return service(
            INSPECT,
            {
                "Status": unary(self._status, fleet_pb2.StatusRequest.FromString, failed),
                "ExplainFor": unary(self._explain, fleet_pb2.ExplainForRequest.FromString, failed),
            },
        )

    async def _status(self, _: fleet_pb2.StatusRequest, context: Context) -> fleet_pb2.GatewayStatus:
        self._check(context)
        policy = self._policy()
        return fleet_pb2.GatewayStatus(
            gateway=self._gateway,
            pid=self._pid,
            policy_loaded=policy.loaded,
            policy_live=policy.live,
            policy_applied=policy.applied,
            store_went_back=policy.store_went_back,
            replicas=self._hub.reports(),
        )

    async def _explain(self, request: fleet_pb2.ExplainForRequest, context: Context) -> router_pb2.ExplainResponse:
        self._check(context)
        return explanation_message(self._explain_for(TenantId(request.tenant), ModelId(request.model)))

    def _check(self, context: Context) -> None:
        identity = identity_of_grpc(context.auth_context())
        if identity is not None and identity.role is Role.OPERATOR:
            return
        if identity is None or identity.role is not Role.ADMIN or identity.region != self._here:
            raise MeshError(Code.INVALID_API_KEY)
