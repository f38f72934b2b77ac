"""One program of a country: started, killed, stopped and continued by a test. Nothing starts it again of its own accord."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from border.namespaces import LabError, Network


@dataclass
class Part:
    """A program, and its process while it runs.

    Attributes:
        name: Unique in a lab, such as `gateway-vn-g1`.
        who: The namespace.
    """

    network: Network
    name: str
    who: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """Of its process."""
        if self.process is None:
            raise LabError(f"{self.name} was not started")
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Starts it, anew if it has ended."""
        if self.runs:
            raise LabError(f"{self.name} runs already")
        self.process = self.network.start(self.who, self.argv, self.log, self.environ)

    def finish(self, limit_s: float) -> None:
        """Waits for its end, which must be a good one."""
        assert self.process is not None
        try:
            status = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} took longer than {limit_s:.0f} s; see {self.log}") from None
        if status:
            raise LabError(f"{self.name} ended with status {status}; see {self.log}:\n{self.tail()}")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends it and waits until it is gone."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)

    def stop(self) -> None:
        """It stands still, as a paused virtual machine does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It runs again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def tail(self, lines: int = 12) -> str:
        """The last words of its log."""
        try:
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""
