"""What a gateway answers about itself, without content: models, endpoints, and where a call would go."""

from __future__ import annotations

from collections.abc import Callable

from mesh.errors import Code, MeshError
from mesh.gateway.freshness import Freshness
from mesh.gateway.keyring import Keyring
from mesh.gateway.story import endpoints_of
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook, TenantPolicy
from mesh.policy.decide import Deny, Permit, decide
from mesh.policy.hostnames import check_label
from mesh.ports import Clock
from mesh.routing.choose import explain, explain_denied, regions_for
from mesh.routing.explain import Explanation
from mesh.routing.fleet import Atlas, Fleet
from mesh.types import AnswerHead, Here, Jurisdiction, ModelId, ModelView, RequestId, Resolution, Revision, TenantId


class Answers:
    """Answers for the key that asks, and for the operator about any tenant."""

    def __init__(
        self,
        *,
        here: Here,
        atlas: Atlas,
        book: PolicyBook,
        authority: Authority,
        freshness: Freshness,
        keyring: Keyring,
        fleet: Callable[[], Fleet],
        clock: Clock,
    ) -> None:
        self._here = here
        self._atlas = atlas
        self._book = book
        self._authority = authority
        self._freshness = freshness
        self._keyring = keyring
        self._fleet = fleet
        self._clock = clock

    async def authenticate(self, credential: str | None, label: str | None) -> None:
        """Raises as `Keyring.authenticate` unless the key is good, or MISDIRECTED_REQUEST; so do those below."""
        await self._policy(credential, label)

    async def fresh(self, credential: str | None, label: str | None, at_least: Revision) -> None:
        """Waits for a tenant's policy of that revision, or a later one. Raises as `Freshness.reach`."""
        await self._freshness.reach((await self._policy(credential, label)).tenant, at_least)

    async def models(
        self, credential: str | None, label: str | None, request_id: RequestId
    ) -> tuple[AnswerHead, tuple[ModelView, ...]]:
        """What this key may use from here, by id.

        Raises:
            MeshError: As for a call; RESIDENCY_REFUSED where the key is not served.
        """
        policy = await self._policy(credential, label)
        match decide(policy, self._here, self._left_s):
            case Deny(code=code):
                error = MeshError(code, allowed=endpoints_of(policy, self._atlas))
                error.revision = policy.revision
                raise error
            case Permit() as permit:
                views = [
                    ModelView(id=model.id, kind=model.kind, context=model.context, regions=regions)
                    for model in self._atlas.models.values()
                    if (regions := regions_for(permit, model.id, self._atlas))
                ]
        return self._head(policy, request_id), tuple(sorted(views, key=lambda view: view.id))

    async def resolve(
        self, credential: str | None, label: str | None, request_id: RequestId
    ) -> tuple[AnswerHead, Resolution]:
        """The endpoints at which this key is served; also answered where it is not."""
        policy = await self._policy(credential, label)
        resolution = Resolution(
            here=self._here.region,
            served_here=isinstance(decide(policy, self._here, self._left_s), Permit),
            allowed=endpoints_of(policy, self._atlas),
            revision=policy.revision,
        )
        return self._head(policy, request_id), resolution

    async def explain(
        self, credential: str | None, label: str | None, request_id: RequestId, model: str
    ) -> tuple[AnswerHead, Explanation]:
        """Where a call for a model would be served from here, and why.

        Raises:
            MeshError: MODEL_NOT_FOUND for a model that no catalogue has.
        """
        policy = await self._policy(credential, label)
        try:
            return self._head(policy, request_id), self._explain(policy, self._known(model))
        except MeshError as error:
            error.revision = policy.revision
            raise

    def explain_for(self, tenant: TenantId, model: ModelId) -> Explanation:
        """The same for any tenant, for the operator.

        Raises:
            MeshError: TENANT_NOT_FOUND, POLICY_STALE.
        """
        if not self._book.loaded:
            raise MeshError(Code.POLICY_STALE)
        policy = self._book.tenant(tenant)
        if policy is None:
            raise MeshError(Code.TENANT_NOT_FOUND)
        return self._explain(policy, model)

    async def _policy(self, credential: str | None, label: str | None) -> TenantPolicy:
        policy = (await self._keyring.authenticate(credential)).policy
        check_label(label, policy.tenant, policy.label)
        return policy

    def _explain(self, policy: TenantPolicy, model: ModelId) -> Explanation:
        match decide(policy, self._here, self._left_s):
            case Deny(code=code):
                return explain_denied(code, model, policy, atlas=self._atlas)
            case Permit() as permit:
                return explain(permit, model, fleet=self._fleet(), atlas=self._atlas, now_s=self._clock.now_s())

    def _left_s(self, policy: TenantPolicy, place: Jurisdiction) -> float:
        return self._authority.left_s(policy, place, self._clock.instant())

    def _known(self, model: str) -> ModelId:
        known = self._atlas.models.get(ModelId(model))
        if known is None:
            raise MeshError(Code.MODEL_NOT_FOUND, param="model")
        return known.id

    def _head(self, policy: TenantPolicy, request_id: RequestId) -> AnswerHead:
        return AnswerHead(
            request_id=request_id,
            region=self._here.region,
            jurisdiction=self._here.jurisdiction,
            revision=policy.revision,
        )
