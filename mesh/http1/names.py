"""Which name a client asked for in the TLS handshake (SNI)."""

from __future__ import annotations

import ssl


class NamedObject(ssl.SSLObject):
    """One end of a TLS connection that remembers the name."""

    asked_name: str | None = None
    """As the client sent it; None where it sent none."""


def remember_names(context: ssl.SSLContext) -> None:
    """Makes a server's context remember them. A name that is no ASCII ends the handshake."""
    context.sslobject_class = NamedObject
    context.sni_callback = _remember


def _remember(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    if isinstance(connection, NamedObject):
        connection.asked_name = name
