"""What a server allows a client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one listening server.

    Attributes:
        head_bytes: A request's line and headers together.
        header_count: Headers of one request.
        head_timeout_s: From the first byte of a head to its last; also for a TLS handshake and for the first request.
        body_idle_s: The longest pause within a body.
        keep_alive_s: How long a connection may wait for its next request.
        connections: Open connections; more are closed at once, without a word.
        high_water_bytes: Of an answer that the client has not taken; above it, writing waits.
        stalled_write_s: A client that took nothing for this long is cut off.
        linger_s: After the last answer of a connection: how long what still arrives is thrown away.
        linger_bytes: The same, in bytes as they came over the wire.
        pipelined_bytes: What a client may send ahead while its request is served; above it, reading waits.
    """

    head_bytes: int = 16_384
    header_count: int = 100
    head_timeout_s: float = 10.0
    body_idle_s: float = 30.0
    keep_alive_s: float = 75.0
    connections: int = 4096
    high_water_bytes: int = 65_536
    stalled_write_s: float = 60.0
    linger_s: float = 2.0
    linger_bytes: int = 262_144
    pipelined_bytes: int = 65_536
