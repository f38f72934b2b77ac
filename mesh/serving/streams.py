"""How tokens get from an engine's thread to the event loop that reads them.

The engine's thread *merges* into a stream what its reader has not taken yet, and wakes a loop at most once a step; so
a slow reader costs what its own text takes, and no queue grows with tokens.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Self
from weakref import WeakValueDictionary

from mesh.errors import Code, MeshError
from mesh.serving.engine import Delta, FinishReason, TokenLogprob


class Mailbox:
    """Wakes the readers of one event loop. `post` is for the engine's thread, the rest for the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lock = threading.Lock()
        self.loop = loop
        self._touched: dict[EngineStream, None] = {}
        self._on_its_way = False

    def touch(self, stream: EngineStream) -> None:
        """Remembers, under `lock`, that the stream's reader has something to see."""
        self._touched[stream] = None

    def post(self) -> None:
        """Wakes the readers of the streams touched; one call into the loop, and none while one is on its way."""
        with self.lock:
            if not self._touched:
                return
            wake, self._on_its_way = not self._on_its_way, True
        try:
            if wake and not self.loop.is_closed():
                self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # closed just now: seen below
            pass
        if self.loop.is_closed():  # nobody will read
            for stream in self._take_touched():
                stream.cancel()

    def _deliver(self) -> None:
        for stream in self._take_touched():
            stream.wake()

    def _take_touched(self) -> list[EngineStream]:
        with self.lock:
            streams = list(self._touched)
            self._touched.clear()
            self._on_its_way = False
            return streams


class Mailboxes:
    """One mailbox for each loop that has called; `submit` gets them, the engine's thread posts them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A mailbox lives as long as its streams do, and so does what is known of its loop.
        self._of: WeakValueDictionary[asyncio.AbstractEventLoop, Mailbox] = WeakValueDictionary()

    def of_running_loop(self) -> Mailbox:
        """The caller's."""
        loop = asyncio.get_running_loop()
        with self._lock:
            mailbox = self._of.get(loop)
            if mailbox is None:
                mailbox = self._of[loop] = Mailbox(loop)
            return mailbox

    def post(self) -> None:
        """Once a step."""
        with self._lock:
            mailboxes = list(self._of.values())
        for mailbox in mailboxes:
            mailbox.post()


class EngineStream:
    """One sequence, as its reader sees it (`engine.Stream`). One reader, on the loop that submitted it.

    After `cancel` it ends without a last delta.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._ready = asyncio.Event()
        self._leave: Callable[[], None] = _nothing
        # Under the mailbox's lock: what the reader has not taken yet.
        self._text: list[str] = []
        self._tokens = 0
        self._logprobs: list[TokenLogprob] = []
        self._finish: FinishReason | None = None
        self._fresh = False
        self._fault: Code | None = None
        self._closed = False

    def on_cancel(self, leave: Callable[[], None]) -> None:
        """What takes the sequence out of its engine; any thread, idempotent. Set once, before anyone reads."""
        self._leave = leave

    # The engine's thread.

    def put(
        self, text: str, tokens: int, logprobs: list[TokenLogprob] | None = None, finish: FinishReason | None = None
    ) -> None:
        """Merges into the next delta. The reader learns of it at the mailbox's next `post`."""
        with self._mailbox.lock:
            if self._closed:
                return
            if text:
                self._text.append(text)
            if logprobs:
                self._logprobs += logprobs
            self._tokens, self._finish, self._fresh = tokens, finish, True
            self._mailbox.touch(self)

    def fail(self, code: Code) -> None:
        """Ends it with an error, after what it has."""
        with self._mailbox.lock:
            self._fault = code
            self._mailbox.touch(self)

    # The reader's loop.

    def wake(self) -> None:
        """Lets the reader look."""
        self._ready.set()

    def cancel(self) -> None:
        """Frees the slot before the engine's next step, or leaves the queue. Idempotent."""
        with self._mailbox.lock:
            if self._closed:
                return
            self._closed = True
            self._drop()
            self._mailbox.touch(self)
        leave, self._leave = self._leave, _nothing
        leave()
        if not self._mailbox.loop.is_closed():
            self._mailbox.post()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while True:
            delta = self._take()
            if delta is not None:
                return delta
            # Only the loop's own thread sets this, so nothing can come between the look and the wait.
            self._ready.clear()
            await self._ready.wait()

    def _take(self) -> Delta | None:
        with self._mailbox.lock:
            if self._closed:
                raise StopAsyncIteration
            if self._fresh:
                delta = Delta("".join(self._text), self._tokens, tuple(self._logprobs), self._finish)
                if self._finish is not None:
                    self._closed, self._leave = True, _nothing
                self._drop()
                return delta
            if self._fault is not None:
                raise MeshError(self._fault)
            return None

    def _drop(self) -> None:
        self._text.clear()
        self._logprobs.clear()
        self._fresh = False


def _nothing() -> None:
    pass
