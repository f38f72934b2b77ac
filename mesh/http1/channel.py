"""A byte pipe on one asyncio transport, in clear or under TLS. Knows nothing of HTTP.

TLS runs here (`ssl.MemoryBIO`) and not in the event loop for two reasons. What arrives is decrypted only when someone
*pulls* it, so a body that nobody asked for is never decrypted; and the socket stays ours, so its writing side can be
closed while what still comes is counted and dropped. It also costs a connection no read buffer of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import deque
from typing import cast, overload

from mesh.http1.names import NamedObject

RECORD_BYTES = 16_384
"""The most that one TLS record holds: one read of it."""
SLICE_BYTES = 65_536
"""A long body is encrypted and handed over in pieces of this size."""
_RESET = struct.pack("ii", 1, 0)


class Channel(asyncio.Protocol):
    """One connection. Subclasses act in the `on_...` methods, which the event loop calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._clear: deque[bytes] = deque()
        self._clear_bytes = 0
        self._open = False
        self._reading = True
        self._dropping = False
        self._congested = False
        self._relief: asyncio.Future[None] | None = None
        self.ended = False
        """The peer will send no more: it closed, half-closed, or broke off."""
        self.lost = False
        """The transport is gone."""
        self.said_goodbye = False
        """The peer ended on purpose: under TLS by a close_notify, in clear by closing."""

    # What subclasses do.

    def on_open(self) -> None:
        """The connection can be used: it is up, and the TLS handshake, if any, is done."""

    def on_data(self) -> None:
        """Something arrived that `pull` may give."""

    def on_dropped(self, size_bytes: int) -> None:
        """Something arrived after `shut` and was thrown away."""

    def on_end(self) -> None:
        """`ended` has become true."""

    def on_lost(self) -> None:
        """`lost` has become true. The last call."""

    # What the event loop calls.

    def begin(
        self,
        transport: asyncio.BaseTransport,
        tls: ssl.SSLContext | None,
        *,
        server_side: bool,
        server_name: str | None,
    ) -> None:
        """Takes the transport over; from `connection_made`."""
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        sock = cast("socket.socket", transport.get_extra_info("socket"))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            self._open = True
            self.on_open()
            return
        self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name)
        if not server_side:
            self._handshake(self._tls)

    def data_received(self, data: bytes) -> None:
        """Keeps what arrived, as it came."""
        if self._dropping:
            self.on_dropped(len(data))
            return
        tls = self._tls
        if tls is None:
            self._clear.append(data)
            self._clear_bytes += len(data)
        else:
            self._incoming.write(data)
            if not self._open:
                self._handshake(tls)
                if not self._open:
                    return
        self.on_data()

    def eof_received(self) -> bool:
        """The peer's writing side is closed. False: the transport closes too, once what was written has gone."""
        self.said_goodbye = self.said_goodbye or self._tls is None
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed. Why does not matter here, and `exc` could quote a peer."""
        self.lost = True
        self._relieve()
        self._end()
        self.on_lost()

    def pause_writing(self) -> None:
        """The peer is slower than we are."""
        self._congested = True

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._congested = False
        self._relieve()

    # What a subclass uses.

    @property
    def certificate(self) -> dict[str, object] | None:
        """The peer's verified certificate, as `ssl.SSLObject.getpeercert` gives it."""
        return cast("dict[str, object] | None", self._tls.getpeercert()) if self._tls is not None else None

    @property
    def asked_name(self) -> str | None:
        """The name that the client asked for in its handshake, if this is a server's end that remembers it."""
        return self._tls.asked_name if isinstance(self._tls, NamedObject) else None

    @property
    def unsent_bytes(self) -> int:
        """What was written and the operating system has not taken."""
        return 0 if self._transport is None or self.lost else self._transport.get_write_buffer_size()

    @property
    def unread_bytes(self) -> int:
        """What has arrived and nobody pulled, as it came over the wire."""
        return self._clear_bytes if self._tls is None else self._incoming.pending

    def pull(self) -> bytes:
        """The next bytes that have arrived, decrypted; empty if there are none now, or will be none."""
        if not self._reading:
            self._read_on()
        if self._tls is None:
            if not self._clear:
                return b""
            data = self._clear.popleft()
            self._clear_bytes -= len(data)
            return data
        return self._decrypt(self._tls, None) or b""

    def pull_into(self, view: memoryview) -> int:
        """Like `pull`, into `view`; how many bytes."""
        if self._tls is not None:
            if not self._reading:
                self._read_on()
            return self._decrypt(self._tls, view) or 0
        data = self.pull()
        size = min(len(data), len(view))
        view[:size] = data[:size]
        if size < len(data):
            self._clear.appendleft(data[size:])
            self._clear_bytes += len(data) - size
        return size

    def hold(self) -> None:
        """Stops reading from the socket until the next pull. A hang-up is not noticed meanwhile."""
        if self._reading and self._transport is not None and not self.lost and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Hands bytes over at once. Nothing happens on a connection that has ended."""
        transport = self._transport
        if transport is None or self.lost or self._dropping or transport.is_closing() or not data:
            return
        tls = self._tls
        if tls is None:
            # A transport may keep a reference, and the owner of a buffer overwrites it.
            transport.write(data if isinstance(data, bytes) else bytes(data))
            return
        try:
            sent, size = tls.write(data), len(data)
            while sent < size:
                with memoryview(data) as view, view[sent:] as rest:
                    sent += tls.write(rest)
        except ssl.SSLError:
            self.abort()
            return
        transport.write(self._outgoing.read())

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Hands over any number of bytes, no faster than the peer takes them."""
        if len(data) <= SLICE_BYTES:
            self.send(data)
        else:
            with memoryview(data) as view:
                for start in range(0, len(view), SLICE_BYTES):
                    with view[start : start + SLICE_BYTES] as piece:
                        self.send(piece)
                    if self._congested:
                        await self.relief()
                    if self.lost:
                        return
        if self._congested:
            await self.relief()

    async def relief(self) -> None:
        """Waits until the peer has taken enough, or is gone."""
        while self._congested and not self.lost:
            if self._relief is None:
                self._relief = self._loop.create_future()
            await asyncio.shield(self._relief)

    def shut(self) -> None:
        """Ends our side of the connection; what still arrives is dropped as it comes, undecrypted."""
        transport = self._transport
        if transport is None or self.lost or self._dropping:
            return
        self._dropping = True
        self._clear.clear()
        self._clear_bytes = 0
        if self._tls is not None and self._open:
            # Emptied first: OpenSSL's shutdown would otherwise look into what has come.
            self._incoming.read()
            with contextlib.suppress(ssl.SSLError):  # it wants to read the peer's goodbye, which need not come
                self._tls.unwrap()
        self._flush()
        if transport.is_closing():
            return
        try:
            transport.write_eof()
        except OSError:
            self.abort()  # the peer has reset the connection already
            return
        if not self._reading:
            self._read_on()

    def close(self) -> None:
        """Closes once what was written has gone."""
        if self._transport is not None and not self.lost:
            self._transport.close()

    def abort(self) -> None:
        """Closes now; what was written and not sent is lost."""
        if self._transport is not None and not self.lost:
            self._transport.abort()

    def reset(self) -> None:
        """Closes now, with a TCP reset: the peer shall stop sending."""
        if self._transport is not None and not self.lost:
            sock = cast("socket.socket", self._transport.get_extra_info("socket"))
            with contextlib.suppress(OSError):  # closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()

    # Within.

    @overload
    def _decrypt(self, tls: ssl.SSLObject, view: None) -> bytes | None: ...

    @overload
    def _decrypt(self, tls: ssl.SSLObject, view: memoryview) -> int | None: ...

    def _decrypt(self, tls: ssl.SSLObject, view: memoryview | None) -> bytes | int | None:
        """At most one record. What of it does not fit stays with OpenSSL and comes next time."""
        # An exception for "nothing there" costs as much as the read: ask before.
        if not self._incoming.pending and not tls.pending():
            return None
        try:
            got = tls.read(RECORD_BYTES) if view is None else tls.read(len(view), view)
        except ssl.SSLWantReadError:
            got = None
        except ssl.SSLError:
            self._flush()  # the alert
            self.abort()
            self._end()
            return None
        if self._outgoing.pending:
            self._flush()
        if got is not None and not got:
            self.said_goodbye = True
            self._end()
        return got

    def _handshake(self, tls: ssl.SSLObject) -> None:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except (ssl.SSLError, ssl.CertificateError):
            self._flush()  # the alert
            self.close()
            self._end()
            return
        self._flush()
        self._open = True
        self.on_open()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and self._transport is not None and not self.lost and not self._transport.is_closing():
            self._transport.write(data)

    def _read_on(self) -> None:
        self._reading = True
        if self._transport is not None and not self.lost and not self._transport.is_closing():
            self._transport.resume_reading()

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self.on_end()

    def _relieve(self) -> None:
        if self._relief is not None:
            if not self._relief.done():
                self._relief.set_result(None)
            self._relief = None
