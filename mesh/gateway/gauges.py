"""What the operator sees of a gateway beside its calls."""

from __future__ import annotations

from collections.abc import Callable

from mesh.gateway.policy_reader import PolicyReader
from mesh.routing.fleet import Replica
from mesh.telemetry import Telemetry
from mesh.transport.fleet_hub import FleetHub


def show(telemetry: Telemetry, *, connections: Callable[[], int], hub: FleetHub, policy: PolicyReader) -> None:
    """Has the gauges read when someone looks; `connections` are those of the HTTP door."""

    def sequences(count: Callable[[Replica], int]) -> Callable[[], list[tuple[float, dict[str, str]]]]:
        return lambda: [
            (count(one), {"gen_ai.request.model": one.model, "mesh.replica": one.id}) for one in hub.replicas()
        ]

    def grant_age_s() -> float:
        age_s = policy.membership.grant_age_s
        return -1.0 if age_s is None else age_s

    feed, gauge = policy.feed, telemetry.gauge
    gauge("mesh.door.connections", "{connection}", "Open at the HTTP door.", connections)
    gauge("mesh.replica.running", "{sequence}", "Running in a replica.", sequences(lambda one: one.running))
    gauge("mesh.replica.queued", "{sequence}", "Waiting in a replica.", sequences(lambda one: one.queued))
    gauge("mesh.policy.revision", "{revision}", "The control store's, as applied.", lambda: feed.applied)
    gauge(
        "mesh.policy.grant_age",
        "s",
        "Since the newest grant of authority was asked for; -1 before the first.",
        grant_age_s,
    )
    gauge("mesh.policy.live", "1", "Whether the watch on policy is up.", lambda: int(feed.live))
    gauge(
        "mesh.policy.invalid_records",
        "{record}",
        "Policy records that did not count.",
        lambda: [(count, {"mesh.fault": fault.value}) for fault, count in feed.invalid.items()],
    )
    gauge(
        "mesh.policy.store_went_back",
        "{time}",
        "How often the control store's history was another one than before.",
        lambda: feed.backs,
    )
