"""Connections that carry typed messages: a small TCP.

What a kernel still delivers after a cut, a close, a reset or its program's death is modelled here, not assumed. All of
it runs in the world's process, since a paused host still has a kernel. In a `Pipe`: positions, acknowledgements,
retransmission with backoff (go back to the oldest), a receive window, the end, resets, TCP_USER_TIMEOUT. Left out:
congestion, selective acknowledgements, keepalive. A message travels whole, with a size that fills buffers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.hosts import Host
    from sim.net import Net

WINDOW_BYTES = 65_536
"""What a receiver's kernel holds for a program that does not read."""
SEND_BUFFER_BYTES = 65_536
_FIRST_RETRY_S = 0.2
_LAST_RETRY_S = 8.0
_FIN = object()


class Pipe:
    """One direction of a connection."""

    def __init__(self, net: Net, sender: Channel) -> None:
        self.net = net
        self.sender = sender
        self.receiver: Channel | None = None
        self.queued_bytes = 0
        """Written and not yet acknowledged: user space and the kernel's send buffer together."""
        self.inbox: deque[tuple[int, Any]] = deque()
        self.eof = False
        self._queue: deque[tuple[int, Any]] = deque()
        self._base = 0  # of the oldest that is not acknowledged
        self._sent = 0
        self._flying_bytes = 0
        self._window_bytes = WINDOW_BYTES
        self._arrived = 0
        self._held_bytes = 0
        self._last = 0.0
        self._last_ack = 0.0
        self._progress = 0.0
        self._retry_s = _FIRST_RETRY_S
        self._timer: asyncio.TimerHandle | None = None

    def write(self, item: object, size_bytes: int) -> None:
        """Queues one message."""
        if not self._queue:
            self._progress = self.net.loop.time()
        self._queue.append((size_bytes, item))
        self.queued_bytes += size_bytes
        self._push()

    def end(self) -> None:
        """Queues the end."""
        self.write(_FIN, 0)

    def take(self) -> Any:
        """The oldest message that has arrived. Frees its room."""
        size_bytes, item = self.inbox.popleft()
        was_shut = self._held_bytes >= WINDOW_BYTES
        self._held_bytes -= size_bytes
        if was_shut:
            self._acknowledge()  # the window opens again
        return item

    def drop(self) -> None:
        """The sender's kernel forgets what it has not delivered. What is on the wire stays there."""
        self._queue.clear()
        self._base, self._flying_bytes, self.queued_bytes = self._sent, 0, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _push(self) -> None:
        if self.receiver is None:
            return
        source, target = self.sender.host, self.receiver.host
        while self._sent < self._base + len(self._queue):
            size_bytes, item = self._queue[self._sent - self._base]
            if self._flying_bytes and self._flying_bytes + size_bytes > self._window_bytes:
                break
            when = self.net.carry(source, target, self._last, self._arrive, self._sent, size_bytes, item)
            self._last = when or self._last
            self._sent += 1
            self._flying_bytes += size_bytes
        if self._timer is None and self._queue:
            self._timer = self.net.later(self._retry_s, self._retransmit)

    def _retransmit(self) -> None:
        self._timer = None
        if not self._queue:
            return
        quiet_s = self.net.loop.time() - self._progress
        left_s = self.sender.user_timeout_s - quiet_s
        if left_s <= 1e-9:
            self.sender.fail(TimeoutError("user timeout"))
            return
        if quiet_s + 1e-9 < self._retry_s:
            self._timer = self.net.later(min(self._retry_s - quiet_s, left_s), self._retransmit)
            return
        self._sent, self._flying_bytes = self._base, 0
        self._retry_s = min(self._retry_s * 2, _LAST_RETRY_S)
        self._timer = self.net.later(min(self._retry_s, left_s), self._retransmit)
        self._push()

    def _arrive(self, position: int, size_bytes: int, item: object) -> None:
        receiver = self.receiver
        assert receiver is not None
        if receiver.gone:  # nobody there: the kernel answers with a reset
            self.net.carry(receiver.host, self.sender.host, 0.0, self.sender.fail, ConnectionResetError("nobody there"))
            return
        if position == self._arrived and (self._held_bytes + size_bytes <= WINDOW_BYTES or not self._held_bytes):
            self._arrived += 1
            if item is _FIN:
                self.eof = True
            else:
                self._held_bytes += size_bytes
                self.inbox.append((size_bytes, item))
            receiver.wake()
        self._acknowledge()

    def _acknowledge(self) -> None:
        receiver = self.receiver
        assert receiver is not None
        free_bytes = max(0, WINDOW_BYTES - self._held_bytes)
        when = self.net.carry(
            receiver.host, self.sender.host, self._last_ack, self._acknowledged, self._arrived, free_bytes
        )
        self._last_ack = when or self._last_ack

    def _acknowledged(self, upto: int, window_bytes: int) -> None:
        opened, self._window_bytes = window_bytes > self._window_bytes, window_bytes
        if self._base < upto <= self._base + len(self._queue):
            while self._base < upto:
                size_bytes, _ = self._queue.popleft()
                self.queued_bytes -= size_bytes
                if self._base < self._sent:
                    self._flying_bytes -= size_bytes
                self._base += 1
            self._sent = max(self._sent, upto)
            self._progress, self._retry_s = self.net.loop.time(), _FIRST_RETRY_S
            self.sender.wake()
            if not self._queue and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._push()
        elif opened:
            self._push()


class Channel:
    """One end of a connection, as its program sees it.

    Attributes:
        user_timeout_s: After so long without an acknowledgement the kernel gives up (TCP_USER_TIMEOUT).
        send_buffer_bytes: `drain` waits until no more than this is queued.
        gone: The program has let go of it, or died.
    """

    def __init__(self, net: Net, host: Host) -> None:
        self.host = host
        self.user_timeout_s = 900.0
        self.send_buffer_bytes = SEND_BUFFER_BYTES
        self.gone = False
        self.outgoing = Pipe(net, self)
        self.incoming: Pipe | None = None
        self.error: OSError | None = None
        self.on_fail: Callable[[], object] | None = None
        """Called when the connection is known to be broken, as by an I/O loop that watches it."""
        self._net = net
        self._waiting: list[asyncio.Future[None]] = []
        host.channels[self] = None

    @property
    def peer(self) -> Host:
        """The host at the other end."""
        assert self.incoming is not None
        return self.incoming.sender.host

    def join(self, far: Channel) -> None:
        """Makes two ends one connection."""
        self.incoming, far.incoming = far.outgoing, self.outgoing
        self.outgoing.receiver, far.outgoing.receiver = far, self

    async def receive(self) -> Any:
        """The next message. What arrived before a reset can still be read.

        Raises:
            EOFError: The other side has closed, and all was read.
            OSError: The connection broke (ConnectionResetError, TimeoutError), or was closed here.
        """
        pipe = self.incoming
        assert pipe is not None
        while not pipe.inbox:
            if self.error is not None or self.gone:
                raise self.error or ConnectionResetError("closed here")
            if pipe.eof:
                raise EOFError
            await self._wait()
        return pipe.take()

    def send(self, item: object, size_bytes: int = 100) -> None:
        """Queues a message, without a bound: `drain` before the next.

        Raises:
            OSError: As `receive`.
        """
        if self.error is not None or self.gone:
            raise self.error or ConnectionResetError("closed here")
        self.outgoing.write(item, size_bytes)

    async def drain(self) -> None:
        """Waits until the send buffer has room."""
        while self.outgoing.queued_bytes > self.send_buffer_bytes:
            if self.error is not None or self.gone:
                raise self.error or ConnectionResetError("closed here")
            await self._wait()

    def close(self) -> None:
        """The normal close: the kernel goes on delivering what was written, for as long as that takes."""
        if not self.gone and self.error is None:
            self.outgoing.end()
        self._let_go()

    def abort(self) -> None:
        """SO_LINGER 0: what was not delivered is forgotten, and one reset is sent, which may be lost."""
        if not self.gone and self.error is None and self.incoming is not None:
            self._net.carry(self.host, self.peer, 0.0, self.incoming.sender.fail, ConnectionResetError("reset"))
        self.outgoing.drop()
        self._let_go()

    def orphan(self, *, power: bool) -> None:
        """Its program died: a reset if it had not read all, else a normal close; without power, silence."""
        if power:
            self.outgoing.drop()
            self._let_go()
        elif self.incoming is None or self.incoming.inbox:
            self.abort()
        else:
            self.close()

    def fail(self, error: OSError) -> None:
        """The kernel has learnt that the connection is broken."""
        self.error = self.error or error
        self.outgoing.drop()
        self.wake()
        if self.on_fail is not None and not self.gone:
            self.on_fail()

    def wake(self) -> None:
        """Something changed."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _wait(self) -> None:
        future = self._net.loop.create_future()
        self._waiting.append(future)
        await future

    def _let_go(self) -> None:
        self.gone = True
        self.host.channels.pop(self, None)
        self.wake()


class Listener:
    """A port that is listened at."""

    def __init__(self, net: Net) -> None:
        self._net = net
        self._queue: deque[Channel] = deque()
        self._waiting: asyncio.Future[None] | None = None

    def put(self, channel: Channel) -> None:
        """A connection is made."""
        self._queue.append(channel)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def accept(self) -> Channel:
        """The next connection."""
        while not self._queue:
            self._waiting = self._net.loop.create_future()
            await self._waiting
        return self._queue.popleft()
