"""What the doors ask of the gateway beside carrying parcels: nothing here holds content."""

from __future__ import annotations

from typing import Protocol

from mesh.routing.explain import Explanation
from mesh.types import AnswerHead, ModelId, ModelView, RequestId, Resolution, Revision, TenantId


class Queries(Protocol):
    """Answers for the key that asks. Each raises a `MeshError` for the door to tell.

    `label` is that of the tenant by whose name the door was called, None where it was called by its own.
    """

    async def authenticate(self, credential: str | None, label: str | None) -> None:
        """Returns if the key is good.

        Raises:
            MeshError: INVALID_API_KEY, TENANT_SUSPENDED, POLICY_STALE, MISDIRECTED_REQUEST.
        """
        ...

    async def fresh(self, credential: str | None, label: str | None, at_least: Revision) -> None:
        """Returns once the policy that answers are given by is of that revision or a later one.

        Raises:
            MeshError: POLICY_STALE where there is none.
        """
        ...

    async def models(
        self, credential: str | None, label: str | None, request_id: RequestId
    ) -> tuple[AnswerHead, tuple[ModelView, ...]]:
        """What this key may use from here."""
        ...

    async def resolve(
        self, credential: str | None, label: str | None, request_id: RequestId
    ) -> tuple[AnswerHead, Resolution]:
        """The endpoints at which this key is served."""
        ...

    async def explain(
        self, credential: str | None, label: str | None, request_id: RequestId, model: str
    ) -> tuple[AnswerHead, Explanation]:
        """Where a call for `model` would be served from here, and why."""
        ...

    def explain_for(self, tenant: TenantId, model: ModelId) -> Explanation:
        """The same for any tenant: for a region's admin and its operator."""
        ...
