"""What replicas are told, and what they believe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mesh.serving.leases import Leases, Stay
from mesh.transport.fleet_hub import FleetHub
from mesh.types import KeyId, PolicyNumber, TenantId


class Live(Leases):
    """Counts from when it hears, not from when it sent the ping."""

    def _known(self, number: int) -> Any:
        ping = super()._known(number)
        return None if ping is None else replace(ping, sent=self.now())


class LateHops(Leases):
    """A hop counts from when it comes."""

    def admit(self, text: bytes | None, tenant: TenantId, key_id: KeyId | None) -> Stay:
        self._admitting = True
        try:
            return super().admit(text, tenant, key_id)
        finally:
            self._admitting = False

    _admitting = False

    def _known(self, number: int) -> Any:
        ping = super()._known(number)
        return replace(ping, sent=self.now()) if ping is not None and self._admitting else ping


class NoFence(Leases):
    """Ends what a fence is about, and forgets it."""

    def source(self) -> Any:
        source = super().source()
        said = source.said

        def heard(*given: Any, **named: Any) -> None:
            said(*given, **named)
            source._fences.clear()

        source.said = heard
        return source


class AtOnce:
    confirmed = True


class ClosesOnly(FleetHub):
    """Believes that what it has closed has ended."""

    def fence(self, tenant: TenantId, below: PolicyNumber, key_id: KeyId | None = None) -> Any:
        super().fence(tenant, below, key_id)
        return AtOnce()


class LowersAlone(FleetHub):
    def lowered(self, tenant: TenantId) -> Any:
        super().lowered(tenant)
        return AtOnce()


class HeardByAll(FleetHub):
    """A process attests the death of the one before it, whatever the replicas still do for that."""

    def all_heard(self, processes: int) -> bool:
        return True
