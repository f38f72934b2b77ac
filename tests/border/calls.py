"""Calls into the lab: HTTPS by bare sockets of this process, gRPC through a `border.caller` in the namespace."""

from __future__ import annotations

import base64
import itertools
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from border.namespaces import COUNTRIES, HTTP, LabError, Network, lab_environ
from google.protobuf.message import Message

_M = TypeVar("_M", bound=Message)
TIMEOUT_S = 180.0
"""For one call on a loaded machine: a limit against hanging, nothing that is expected."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. `body` is as it was on the wire, chunk sizes included."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    raw: bytes

    @property
    def code(self) -> str:
        """The error's code."""
        return json.loads(self.body)["error"]["code"]


class Wire:
    """One TLS connection of a client at a country's HTTP door."""

    def __init__(self, network: Network, country: str, ca: Path, *, who: str = "pub") -> None:
        address = COUNTRIES[country].public
        with network.inside(who):
            plain = socket.create_connection((address, HTTP), timeout=TIMEOUT_S)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca)
        self.stream = context.wrap_socket(plain, server_hostname=address)
        self.held = b""

    def send(self, data: bytes) -> bool:
        """Whether all of it went out: a server that refuses need not take it."""
        try:
            self.stream.sendall(data)
        except (ConnectionError, ssl.SSLError):
            return False
        return True

    def read_until(self, mark: bytes) -> bool:
        """Reads until a mark has come; False where the connection ended before."""
        while mark not in self.held:
            if not self._more():
                return False
        return True

    def answer(self) -> Answer:
        """Reads one answer to its end: by its length, its last chunk, or the end of the connection."""
        if not self.read_until(b"\r\n\r\n"):
            raise LabError("the door closed the connection without an answer")
        head = self.held.partition(b"\r\n\r\n")[0]
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        start = len(head) + 4
        if "content-length" in headers:
            while len(self.held) < start + int(headers["content-length"]) and self._more():
                pass
        elif headers.get("transfer-encoding") == "chunked":
            while not self.held.endswith(b"\r\n0\r\n\r\n") and self._more():
                pass
        return Answer(int(first.split(" ", 2)[1]), headers, self.held[start:], self.held)

    def hang_up(self) -> None:
        """Resets the connection, as the kernel does for a client that was killed with bytes unread."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.close()

    def close(self) -> None:
        self.stream.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _more(self) -> bool:
        try:
            data = self.stream.recv(1 << 16)
        except ConnectionError:
            return False
        self.held += data
        return bool(data)


def head(path: str, key: str | None, length: int, *lines: str, method: str = "POST") -> bytes:
    """The head of a request that ends its connection."""
    fixed = [f"{method} {path} HTTP/1.1", "Host: mesh", "Content-Type: application/json", "Connection: close"]
    fixed += [f"Authorization: Bearer {key}"] if key is not None else []
    return "\r\n".join([*fixed, f"Content-Length: {length}", *lines, "", ""]).encode()


@dataclass(frozen=True, slots=True)
class Rpc:
    """How a gRPC call ended."""

    code: str
    details: str
    initial: Mapping[str, str]
    trailing: Mapping[str, str]
    messages: Sequence[bytes]

    def parse(self, kind: type[_M]) -> list[_M]:
        """The answers."""
        return [cast(_M, kind.FromString(one)) for one in self.messages]

    @property
    def text(self) -> str:
        """All that came back beside the answers."""
        return f"{self.code} {self.details} {dict(self.initial)} {dict(self.trailing)}"


class Caller:
    """A `border.caller` in a namespace; started by the first call, ended by `close`. Any thread may call."""

    def __init__(self, network: Network, who: str, log: Path) -> None:
        self._network = network
        self._who = who
        self._log = log
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._open: dict[int, Future[dict[str, Any]]] = {}
        self._process: subprocess.Popen[str] | None = None

    def rpc(
        self,
        target: str,
        method: str,
        *requests: Message | bytes,
        ca: Path,
        pair: Path | None = None,
        name: str | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        timeout_s: float = TIMEOUT_S,
        **more: object,
    ) -> Rpc:
        """One call; see `border.caller` for what `more` may say."""
        send = [one if isinstance(one, bytes) else one.SerializeToString() for one in requests]
        row = self.ask(
            {
                "target": target,
                "method": method,
                "send": [base64.b64encode(one).decode() for one in send],
                "ca": str(ca),
                "pair": None if pair is None else str(pair),
                "name": name,
                "metadata": list(metadata),
                "timeout_s": timeout_s,
                **more,
            }
        )
        messages = [base64.b64decode(one) for one in row["messages"]]
        return Rpc(row["code"], row["details"] or "", dict(row["initial"]), dict(row["trailing"]), messages)

    def ask(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One line, and the line that answers it."""
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            process = self._process or self._start()
            number = next(self._numbers)
            self._open[number] = answer
            assert process.stdin is not None
            process.stdin.write(json.dumps({"id": number, **row}) + "\n")
            process.stdin.flush()
        return answer.result(TIMEOUT_S * 2)

    def close(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.wait(30)

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("ab") as words:
            process = subprocess.Popen(
                self._network.command(self._who, [sys.executable, "-m", "border.caller"]),
                env=lab_environ(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                start_new_session=True,
            )
        self._process = process
        threading.Thread(target=self._read, args=(process,), daemon=True, name=f"caller-{self._who}").start()
        return process

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            row = json.loads(line)
            self._open.pop(row["id"]).set_result(row)
        for answer in list(self._open.values()):
            answer.set_exception(LabError(f"the caller in {self._who} ended; see {self._log}"))
        process.stdout.close()


def now_s() -> float:
    """The clock of all histories: every namespace of a machine has the same."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wait_until(look: Callable[[], Any], what: str, *, deadline_s: float) -> Any:
    """What `look` returns as soon as it is true. The only place of the lab that waits by looking again."""
    end_s = time.monotonic() + deadline_s
    while not (found := look()):
        if time.monotonic() > end_s:
            raise LabError(f"not within {deadline_s:.0f} s: {what}")
        time.sleep(0.1)
    return found
