"""Stop strings: which part of a growing text may be shown. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class TextGate:
    """Lets text through up to the first stop string, and holds back an end in which one may begin.

    The first is the one that begins first, however the text comes in pieces: one that is complete waits while another
    that began before it may still be completed.

    Attributes:
        seen: Characters that came in.
        released: Characters that were let through.
        stopped: A stop string was found; nothing more is let through.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """`stop` holds no empty string."""
        self._stop = tuple(stop)
        self._held = ""
        self.seen = 0
        self.released = 0
        self.stopped = False

    def push(self, text: str) -> str:
        """Takes the next text and returns what may be shown now."""
        self.seen += len(text)
        if self.stopped:
            return ""
        text = self._held + text
        begins = min((_possible_start(text, stop) for stop in self._stop), default=len(text))
        found = self._first_stop(text)
        self.stopped = found is not None and found <= begins
        cut = found if found is not None and self.stopped else begins
        return self._release(text, cut)

    def flush(self) -> str:
        """The end of the text: returns what was held back, up to a stop string if there is one in it."""
        text = self._held
        found = self._first_stop(text)
        self.stopped = self.stopped or found is not None
        return self._release(text, len(text) if found is None else found)

    def _first_stop(self, text: str) -> int | None:
        return min((at for at in (text.find(stop) for stop in self._stop) if at >= 0), default=None)

    def _release(self, text: str, cut: int) -> str:
        self._held = "" if self.stopped else text[cut:]
        self.released += cut
        return text[:cut]


def _possible_start(text: str, stop: str) -> int:
    """Where the longest end of `text` begins that is a beginning of `stop`; its length if there is none."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return at
        at = text.find(stop[0], at + 1)
    return len(text)
