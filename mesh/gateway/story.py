"""A request's story, top to bottom: who is it, may it, read it, where to, move it, settle it.

The story handles parcels it cannot open. It is given clock, coin, hops and ledger, and holds no sockets, so that the
same code runs in a simulation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, LiteralString, Protocol

from mesh.errors import Code, MeshError, StaleHopError
from mesh.gateway.freshness import Freshness
from mesh.gateway.keyring import Keyring
from mesh.gateway.ongoing import Ongoing
from mesh.gateway.ports import Exchange, ForwardedExchange, H, HopHead, Hops, P, Settled
from mesh.gateway.running import Running
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook, TenantPolicy
from mesh.policy.decide import Deny, Permit, decide, decide_forwarded
from mesh.policy.hostnames import check_label, tenant_endpoint
from mesh.policy.shrink import Right
from mesh.ports import Clock
from mesh.routing.choose import Local, NoRoute, Remote, Route, choose, regions_for
from mesh.routing.fleet import Atlas, Fleet
from mesh.settings import Address
from mesh.telemetry.tracing import Span
from mesh.types import (
    OPERATIONS_OF,
    AnswerHead,
    Endpoint,
    Facts,
    Here,
    Jurisdiction,
    KeyId,
    ModelId,
    Operation,
    RegionId,
    TenantId,
    Usage,
)

ATTEMPTS = 2
_TRY_AGAIN = frozenset({Code.REPLICA_FAILED, Code.NO_CAPACITY})
# What a hop says of itself, or of us, is not for the client: its own call was permitted here.
_OF_THE_HOP = {
    Code.RESIDENCY_REFUSED: Code.NO_CAPACITY,  # another region sees a newer or an older pin
    Code.POLICY_STALE: Code.NO_CAPACITY,
    Code.INVALID_API_KEY: Code.REPLICA_FAILED,
}
CANCELLED = "cancelled"
"""The code of a call whose client hung up."""


class StartSpan(Protocol):
    """Starts a span of a trace; see `mesh.telemetry`."""

    def __call__(self, name: LiteralString, *, parent: str | None, server: bool) -> Span:
        """A span to be entered once."""
        ...


@dataclass(slots=True)
class _Account:
    """What is known of a call so far, for its one record."""

    began_s: float
    span: Span
    key_id: str = ""
    tenant: TenantId | None = None
    revision: int | None = None
    model: str = ""
    usage: Usage = field(default_factory=Usage)
    first_byte_s: float | None = None
    served_elsewhere: bool = False
    outside_pin: bool = False
    handed: bool = False
    """Whether its content was sent on from here."""


class Story(Generic[P, H]):
    """Serves calls: those of clients by `serve`, those of other regions' gateways by `serve_forwarded`."""

    def __init__(
        self,
        *,
        here: Here,
        atlas: Atlas,
        book: PolicyBook,
        authority: Authority,
        running: Running,
        freshness: Freshness,
        keyring: Keyring,
        fleet: Callable[[], Fleet],
        hops: Hops[P, H],
        peers: Mapping[RegionId, Sequence[Address]],
        settle: Callable[[Settled], None],
        start_span: StartSpan,
        clock: Clock,
        coin: Callable[[], float],
        max_body_bytes: int,
    ) -> None:
        self._here = here
        self._atlas = atlas
        # For a call that was sent on here no other region exists: it is never sent further.
        self._alone = Atlas(here=atlas.here, sites={atlas.here: atlas.sites[atlas.here]}, models=atlas.models)
        self._book = book
        self._authority = authority
        self._running = running
        self._freshness = freshness
        self._keyring = keyring
        self._fleet = fleet
        self._hops = hops
        self._peers = peers
        self._settle = settle
        self._start_span = start_span
        self._clock = clock
        self._coin = coin
        self._max_body_bytes = max_body_bytes

    async def serve(self, exchange: Exchange[P, H]) -> None:
        """Serves a client's call.

        Raises:
            MeshError: For the door to tell the client, also after the answer began.
        """
        account = _Account(began_s=self._clock.now_s(), span=self._start_span("mesh.call", parent=None, server=True))
        code: str = Code.INTERNAL_ERROR
        try:
            async with self._clock.timeout(exchange.timeout_s):
                caller = await self._keyring.identify(exchange.credential)
                account.key_id, account.tenant = caller.key.key_id, caller.policy.tenant
                account.revision = caller.policy.revision
                key_id, tenant = caller.key.key_id, caller.policy.tenant
                # Also where something else, such as a suspended tenant, is what the client is told.
                account.outside_pin = self._here.jurisdiction not in caller.policy.allowed
                check_label(exchange.label, tenant, caller.policy.label)
                at_least = exchange.at_least()
                if at_least is not None:
                    await self._freshness.reach(tenant, at_least)
                account.revision = self._permit(key_id, tenant).revision
                uses = frozenset({Right(self._here.jurisdiction, sent=False)})
                with self._running.enter(tenant=tenant, key_id=key_id, uses=uses) as ongoing:
                    await self._carry(exchange, lambda: self._permit(key_id, tenant), account, ongoing)
            code = "ok"
        except asyncio.CancelledError:
            code = CANCELLED
            raise
        except TimeoutError:
            code = Code.DEADLINE_EXCEEDED
            raise _late(account) from None
        except MeshError as error:
            code, error.revision = error.code, error.revision or account.revision
            if code is Code.RESIDENCY_REFUSED:
                # The pin may have changed since the key was looked at. What was sent on before came inside it.
                account.outside_pin |= not account.handed
                error.allowed = error.allowed or self._endpoints(account.tenant)
            raise
        finally:
            self._record(exchange, account, code, entry=self._here.region)

    async def serve_forwarded(self, exchange: ForwardedExchange[P, H]) -> None:
        """Serves a call that another region's gateway sent on, here or not at all.

        Raises:
            MeshError: As `serve`.
        """
        account = _Account(
            began_s=self._clock.now_s(),
            span=self._start_span("mesh.forwarded_call", parent=exchange.trace, server=True),
            tenant=exchange.tenant,
        )
        code: str = Code.INTERNAL_ERROR
        try:
            async with self._clock.timeout(exchange.timeout_s):
                tenant, key_id, sender = exchange.tenant, exchange.key_id, exchange.entry

                def permitted() -> Permit:
                    return self._permit_forwarded(tenant, key_id, sender)

                account.revision = permitted().revision
                account.key_id = key_id
                # The answer goes back to where the client called: that place must stay in the pin as well.
                back = Right(self._atlas.sites[sender].jurisdiction, sent=False)
                uses = frozenset({Right(self._here.jurisdiction, sent=True), back})
                with self._running.enter(tenant=tenant, key_id=key_id, uses=uses) as ongoing:
                    await self._carry(exchange, permitted, account, ongoing, forwarded=True)
            code = "ok"
        except asyncio.CancelledError:
            code = CANCELLED
            raise
        except TimeoutError:
            code = Code.DEADLINE_EXCEEDED
            raise _late(account) from None
        except MeshError as error:
            code, error.revision = error.code, error.revision or account.revision
            raise
        finally:
            self._record(exchange, account, code, entry=exchange.entry)

    # --- decide

    def _permit(self, key_id: KeyId, tenant: TenantId) -> Permit:
        """What the newest policy allows the holder of a key that was checked."""
        key, policy = self._book.key(key_id), self._book.tenant(tenant)
        if key is None or key.revoked or policy is None:
            raise MeshError(Code.INVALID_API_KEY)
        match decide(policy, self._here, self._left_s):
            case Permit() as permit:
                return permit
            case Deny(code=code):
                raise self.refusal(code, policy)

    def _permit_forwarded(self, tenant: TenantId, key_id: KeyId, entry: RegionId) -> Permit:
        """What this gateway allows itself, whatever the sender decided."""
        if not self._book.loaded:
            raise MeshError(Code.POLICY_STALE)
        policy, sender = self._book.tenant(tenant), self._atlas.sites.get(entry)
        if policy is None or sender is None:
            # Its home's change has not arrived here: nothing is known that would allow it.
            raise MeshError(Code.RESIDENCY_REFUSED)
        key = self._book.key(key_id)
        if key is None or key.revoked or key.tenant != tenant:
            raise MeshError(Code.INVALID_API_KEY)
        match decide_forwarded(policy, self._here, sender.jurisdiction, self._left_s):
            case Permit() as permit:
                return permit
            case Deny(code=code):
                raise self.refusal(code, policy)

    def _left_s(self, policy: TenantPolicy, place: Jurisdiction) -> float:
        return self._authority.left_s(policy, place, self._clock.instant())

    def refusal(self, code: Code, policy: TenantPolicy) -> MeshError:
        """The error of a denial; a residency refusal names the doors of the regions in the pin, and no other."""
        allowed: tuple[Endpoint, ...] = ()
        if code is Code.RESIDENCY_REFUSED:
            allowed = endpoints_of(policy, self._atlas)
        error = MeshError(code, allowed=allowed)
        error.revision = policy.revision
        return error

    def _endpoints(self, tenant: TenantId | None) -> tuple[Endpoint, ...]:
        policy = None if tenant is None else self._book.tenant(tenant)
        return () if policy is None else endpoints_of(policy, self._atlas)

    # --- read, choose, move

    async def _carry(
        self,
        exchange: Exchange[P, H] | ForwardedExchange[P, H],
        permitted: Callable[[], Permit],
        account: _Account,
        ongoing: Ongoing,
        *,
        forwarded: bool = False,
    ) -> None:
        """Reads, chooses and moves. Asks for a permit before each hop: time passes between."""
        ongoing.check()
        facts = await exchange.receive(self._max_body_bytes, ongoing.check)
        tried: set[str] = set()
        fault = MeshError(Code.NO_CAPACITY)
        left, stale = ATTEMPTS, False
        while left:
            left -= 1
            permit = permitted()
            account.revision = permit.revision
            model = account.model = self._model(permit, facts, exchange.operation, forwarded=forwarded)
            route = self._choose(permit, model, tried, forwarded=forwarded)
            if isinstance(route, NoRoute):
                raise fault
            head = AnswerHead(
                request_id=exchange.request_id,
                region=self._region_of(route),
                jurisdiction=self._atlas.sites[self._region_of(route)].jurisdiction,
                revision=permit.revision,
            )
            await exchange.admitted(head)
            ongoing.check()
            if self._region_of(route) not in regions_for(permitted(), model, self._atlas):
                # The pin was changed while the client held its content back.
                raise MeshError(Code.NO_CAPACITY)
            began, failed = await self._attempt(exchange, route, permit, facts, model, head, account, ongoing)
            if failed is None:
                return
            fault = failed
            if began or fault.code not in _TRY_AGAIN:
                raise fault
            if isinstance(fault, StaleHopError) and not stale:
                # Says nothing of the other side, which may be tried again; once, as every kept connection may be dead.
                # Should it have begun with it all the same, it computes twice, as where another replica is tried; each
                # time under a lease of its own, and what was given up is refused or ended like any other.
                stale, left = True, left + 1
                continue
            tried.add(route.replica.id if isinstance(route, Local) else route.region)
        raise fault

    async def _attempt(
        self,
        exchange: Exchange[P, H] | ForwardedExchange[P, H],
        route: Local | Remote,
        permit: Permit,
        facts: Facts,
        model: ModelId,
        head: AnswerHead,
        account: _Account,
        ongoing: Ongoing,
    ) -> tuple[bool, MeshError | None]:
        """Whether a byte reached the client, and what went wrong."""
        left_s = exchange.timeout_s - (self._clock.now_s() - account.began_s)
        hop_head = HopHead(
            request_id=exchange.request_id,
            tenant=permit.tenant,
            key_id=ongoing.key_id,
            operation=exchange.operation,
            model=model,
            stream=facts.stream,
            timeout_s=max(0.001, left_s),
            trace=account.span.traceparent,
        )
        hop: H | None = None
        whole = False
        # From here on: a call that ends while it waits for another region is recorded there.
        account.served_elsewhere = isinstance(route, Remote)
        try:
            hop = await self._send(route, exchange, hop_head, ongoing)
            relayed = await exchange.relay(hop, head)
            whole = relayed.fault is None
        except MeshError as error:
            if hop is None:
                account.served_elsewhere = False
            return False, error
        finally:
            account.handed = ongoing.handed
            if hop is not None:
                account.usage = hop.usage
                account.first_byte_s = hop.first_byte_s
                hop.close()
            ongoing.returned(whole=whole)
        fault = relayed.fault
        if fault is not None and fault.code in _OF_THE_HOP:
            code = _OF_THE_HOP[fault.code]
            if relayed.began:
                # A replica stops a step before the end that is set here, by a change or by this gateway's authority:
                # that is what the client is told of, as if the timer here had come first. What has not begun is
                # decided anew instead.
                code = ongoing.ends_with or (fault.code if fault.code is Code.POLICY_STALE else code)
            fault = MeshError(code)
        return relayed.began, fault

    async def _send(
        self,
        route: Local | Remote,
        exchange: Exchange[P, H] | ForwardedExchange[P, H],
        head: HopHead,
        ongoing: Ongoing,
    ) -> H:
        match route:
            case Local(one):
                host, _, port = one.address.rpartition(":")
                to = Address(host.removeprefix("[").removesuffix("]"), int(port))
                leased = replace(head, lease=ongoing.lease(one.id))
                return await self._hops.to_replica(to, exchange.parcel, leased, ongoing.check)
            case Remote(region):
                fault = MeshError(Code.REPLICA_FAILED)
                place = self._atlas.sites[region].jurisdiction
                for address in self._peers.get(region, ()):
                    ongoing.reach(Right(place, sent=True))
                    sent = replace(head, span_s=ongoing.span_s)
                    try:
                        return await self._hops.to_peer(region, address, exchange.parcel, sent, ongoing.check)
                    except MeshError as error:
                        fault = error
                raise fault

    def _choose(self, permit: Permit, model: ModelId, tried: set[str], *, forwarded: bool) -> Route:
        return choose(
            permit,
            model,
            fleet=self._fleet(),
            atlas=self._alone if forwarded else self._atlas,
            now_s=self._clock.now_s(),
            coin=self._coin,
            failed=tried,
        )

    def _region_of(self, route: Local | Remote) -> RegionId:
        return self._here.region if isinstance(route, Local) else route.region

    def _model(self, permit: Permit, facts: Facts, operation: Operation, *, forwarded: bool) -> ModelId:
        """The model, once the catalogue knows it: until then it is a client's text."""
        atlas = self._alone if forwarded else self._atlas
        known = atlas.models.get(ModelId(facts.model))
        if known is None or not regions_for(permit, known.id, atlas):
            raise MeshError(Code.MODEL_NOT_FOUND, param="model")
        if operation not in OPERATIONS_OF[known.kind]:
            raise MeshError(Code.UNSUPPORTED_OPERATION, param="model")
        return known.id

    # --- settle

    def _record(
        self, exchange: Exchange[P, H] | ForwardedExchange[P, H], account: _Account, code: str, *, entry: RegionId
    ) -> None:
        with account.span as span:
            span.set("mesh.request_id", exchange.request_id)
            span.set("mesh.door", exchange.door)
            span.set("mesh.region", self._here.region)
            span.set("gen_ai.request.model", account.model)
            span.set("gen_ai.usage.input_tokens", account.usage.prompt_tokens)
            span.set("gen_ai.usage.output_tokens", account.usage.completion_tokens)
            span.set("mesh.code", code)
            if code not in ("ok", CANCELLED):
                span.failed(code)
        now_s = self._clock.now_s()
        self._settle(
            Settled(
                request_id=exchange.request_id,
                at_s=self._clock.wall_s(),
                tenant=account.tenant,
                key_id=account.key_id,
                operation=exchange.operation,
                model=account.model,
                door=exchange.door,
                code=code,
                usage=account.usage,
                duration_s=now_s - account.began_s,
                first_byte_s=None if account.first_byte_s is None else account.first_byte_s - account.began_s,
                entry=entry,
                served_elsewhere=account.served_elsewhere,
                outside_pin=account.outside_pin,
            )
        )


def _late(account: _Account) -> MeshError:
    error = MeshError(Code.DEADLINE_EXCEEDED)
    error.revision = account.revision
    return error


def endpoints_of(policy: TenantPolicy, atlas: Atlas) -> tuple[Endpoint, ...]:
    """The doors of the regions in a pin, by the tenant's own names where it has any: the home's first, then by id."""
    sites = [site for site in atlas.sites.values() if site.jurisdiction in policy.allowed]
    sites.sort(key=lambda site: (site.region != policy.home, site.region))
    return tuple(tenant_endpoint(site.endpoint, site.zone, policy.tenant, policy.label) for site in sites)
