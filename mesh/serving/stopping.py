"""Stop strings: which part of a growing text may be shown. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class TextGate:
    """Lets text through up to the first stop string, and holds back an end in which one may begin.

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
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if self.stopped or found:
            cut, self.stopped = min(found, default=0), True
            self._held = ""
        else:
            cut = min((_possible_start(text, stop) for stop in self._stop), default=len(text))
            self._held = text[cut:]
        self.released += cut
        return text[:cut]

    def flush(self) -> str:
        """The end of the text: returns what was held back, for no stop string came of it."""
        text, self._held = self._held, ""
        self.released += len(text)
        return text


def _possible_start(text: str, stop: str) -> int:
    """Where the longest end of `text` begins that is a beginning of `stop`; its length if there is none."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return at
        at = text.find(stop[0], at + 1)
    return len(text)
