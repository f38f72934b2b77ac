"""Where a key is served: what the mesh answers to a question that holds no content, and for how long it is believed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

FRESH_S = 5.0
"""How long an answer is believed. The mesh decides again at each call; this only bounds what a mistake can show."""


class WrongRegionError(Exception):
    """The call was not made: no region that its key is pinned to would have taken it. Nothing was shown."""


class DiscoveryError(Exception):
    """Where the key is served could not be found out, so nothing was sent.

    Attributes:
        status: The HTTP status of the mesh's answer; None where there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Place:
    """A region that serves the key. `http` is an origin, without `/v1`; `grpc` is `host:port`."""

    region: str
    jurisdiction: str
    http: str
    grpc: str


@dataclass(frozen=True, slots=True)
class Route:
    """The regions in the key's pin, its home first, and the revision of the policy that says so."""

    places: tuple[Place, ...]
    revision: int

    def preferring(self, region: str | None) -> tuple[Place, ...]:
        """The places in the order to try; only `region`, where one is named.

        Raises:
            WrongRegionError: There is none.
        """
        places = tuple(place for place in self.places if region in (None, place.region))
        if not places:
            raise WrongRegionError("The key's pin has no such region." if region else "The key's pin has no region.")
        return places


class Belief:
    """The newest answer, while it is fresh."""

    def __init__(self, fresh_s: float = FRESH_S) -> None:
        self._fresh_s = fresh_s
        self._route: Route | None = None
        self._until_s = 0.0

    def route(self) -> Route | None:
        """The route, or None when it must be asked for."""
        return self._route if time.monotonic() < self._until_s else None

    def learn(self, route: Route, asked_s: float) -> Route:
        """Believes an answer from when it was *asked* for, by the monotonic clock."""
        self._route, self._until_s = route, asked_s + self._fresh_s
        return route

    def forget(self) -> None:
        """The mesh has just said otherwise."""
        self._route = None
        self._until_s = 0.0


def read_route(status: int, document: object) -> Route:
    """The route in an answer of `GET /v1/route`.

    Raises:
        DiscoveryError: It is none.
    """
    if status != 200:
        raise DiscoveryError(f"The mesh does not say where this key is served: HTTP {status}.", status)
    fields = cast("Mapping[str, object]", document) if isinstance(document, dict) else {}
    allowed, revision = fields.get("allowed"), fields.get("policy_revision")
    if not isinstance(allowed, list) or not isinstance(revision, int):
        raise DiscoveryError("This is not a mesh: its answer names no regions.", status)
    places: list[Place] = []
    for entry in cast("Sequence[object]", allowed):
        row = cast("Mapping[str, object]", entry) if isinstance(entry, dict) else {}
        values = [row.get(name) for name in ("region", "jurisdiction", "http", "grpc")]
        if not all(isinstance(value, str) and value for value in values):
            raise DiscoveryError("This is not a mesh: a region that it names has no address.", status)
        places.append(Place(*(str(value) for value in values)))
    return Route(tuple(places), revision)
