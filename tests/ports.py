"""Ports of loopback for programs that tests start."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"
# Below those that kernels give to outgoing connections, which could take one between its choice and its use, and below
# those that a mesh on one machine takes for Ray.
_PORTS = range(10_000, 20_000)

_given: set[int] = set()


def free_port() -> int:
    """One on which nothing listens, and that was not given before: two of one test must not meet."""
    while True:
        port = random.choice(_PORTS)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port
