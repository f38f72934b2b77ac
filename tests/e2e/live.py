"""A running mesh as its users see it: the command, the doors' addresses, the official clients, and bare TLS sockets."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx2
import openai

ROOT = Path(__file__).parents[2]
MESH = ROOT / "scripts/mesh"
UP = ROOT / "scripts/up"
CHAT, EMBEDDING, ELSEWHERE = "smollm2-135m", "minilm-l6-v2", "smollm2-135m-sg"
VN, SG, JP = "vn-1", "ap-southeast-1", "ap-northeast-1"
_T = TypeVar("_T")
Json = dict[str, Any]


def wait_until(look: Callable[[], _T | None], what: str, *, deadline_s: float) -> _T:
    """What `look` returns as soon as it is true. The only place of these tests that waits by looking again."""
    end_s = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {deadline_s:.0f} s: {what}")
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Json:
        """The one object on stdout."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    @property
    def items(self) -> list[Json]:
        """The items of a list."""
        return self.json["items"]

    @property
    def error(self) -> Json:
        """The error: the last line of stderr, with nothing on stdout."""
        assert self.out == ""
        return json.loads(self.err.splitlines()[-1])["error"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was on the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    raw: bytes

    @property
    def error(self) -> Json:
        """The error of the body."""
        return json.loads(self.body)["error"]


def shown(answer: httpx2.Response) -> Answer:
    """An answer of the HTTP library in the same form."""
    head = [f"{answer.status_code} {answer.reason_phrase}", *(f"{k}: {v}" for k, v in answer.headers.multi_items())]
    raw = "\r\n".join(head).encode() + b"\r\n\r\n" + answer.content
    return Answer(answer.status_code, dict(answer.headers.items()), answer.content, raw)


class Wire:
    """One TLS connection, byte by byte."""

    def __init__(self, stream: ssl.SSLSocket) -> None:
        self.stream = stream
        self.held = b""

    def send(self, data: bytes) -> None:
        """Sends all of it."""
        self.stream.sendall(data)

    def read(self) -> Answer:
        """One whole answer with a `content-length`; a 100 is an answer of its own."""
        while b"\r\n\r\n" not in self.held:
            self._more()
        head, _, rest = self.held.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if status == 100 else int(headers.get("content-length", 0))
        self.held = rest
        while len(self.held) < length:
            self._more()
        body, self.held = self.held[:length], self.held[length:]
        return Answer(status, headers, body, head + b"\r\n\r\n" + body)

    def has_answer(self) -> bool:
        """Whether any of an answer has arrived. A readable socket alone says little: TLS sends tickets of its own."""
        self.stream.setblocking(False)
        try:
            self.held += self.stream.recv(65_536)
        except ssl.SSLWantReadError:
            pass
        finally:
            self.stream.settimeout(60)
        return bool(self.held)

    def _more(self) -> None:
        data = self.stream.recv(65_536)
        assert data, f"the connection ended; held {len(self.held)} bytes"
        self.held += data

    def close(self) -> None:
        """Hangs up at once, as a client that is killed does."""
        self.stream.close()


@dataclass
class Mesh:
    """One running mesh, by its home."""

    home: Path
    regions: Sequence[str] = (VN, SG, JP)
    mark: str = field(default_factory=lambda: os.urandom(4).hex())
    contexts: dict[str, ssl.SSLContext] = field(default_factory=dict)

    # --- the command

    def environ(self, **more: str) -> dict[str, str]:
        """The environment of an operator's shell."""
        unset = {
            "MESH_API_KEY",
            "MESH_INSTANCE",
            "MESH_PART",
            "GRPC_SSL_CIPHER_SUITES",
            "SSLKEYLOGFILE",
            "MESH_E2E_HOME",
        }
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        return kept | {"MESH_HOME": str(self.home)} | more

    def run(self, *args: str, timeout_s: float = 120, **more: str) -> Ran:
        """Runs `mesh …`, from a folder that is not the repository."""
        done = subprocess.run(
            [MESH, *args], cwd="/", env=self.environ(**more), capture_output=True, text=True, timeout=timeout_s
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def ask(self, *args: str, timeout_s: float = 120, **more: str) -> Ran:
        """Runs `mesh … --json`, which must do it."""
        ran = self.run(*args, "--json", timeout_s=timeout_s, **more)
        assert ran.code == 0, f"mesh {args[0]} ended with {ran.code}: {ran.err[-2000:]}"
        return ran

    def refused(self, *args: str, code: int = 1, timeout_s: float = 120, **more: str) -> Json:
        """Runs `mesh … --json`, which must not do it; the error."""
        ran = self.run(*args, "--json", timeout_s=timeout_s, **more)
        assert ran.code == code, f"mesh {args[0]} ended with {ran.code}: {ran.out} {ran.err[-2000:]}"
        return ran.error

    def up(self, *options: str, timeout_s: float, program: Path = UP) -> Ran:
        """Starts it and waits for *ready*."""
        command = [
            program,
            *(() if program == UP else ("up",)),
            "--detach",
            "--json",
            "--regions",
            ",".join(self.regions),
            *options,
        ]
        done = subprocess.run(
            command, cwd="/", env=self.environ(), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def status(self) -> Json:
        """`mesh status`."""
        return self.ask("status").json

    def wait_ready(self, *, deadline_s: float = 240) -> Json:
        """Waits for every region."""

        def look() -> Json | None:
            ran = self.run("status", "--json")
            return ran.json if ran.code == 0 and ran.json["state"] == "ready" else None

        return wait_until(look, "every region is ready", deadline_s=deadline_s)

    def region(self, region: str) -> Json:
        """One region's row of the status."""
        return next(row for row in self.status()["regions"] if row["id"] == region)

    def replica(self, region: str, model: str = CHAT) -> Json:
        """One model's row, of the replica that is ready."""
        rows = self.region(region)["replicas"]
        return next(row for row in rows if row["model"] == model and row["state"] == "ready")

    # --- tenants

    @property
    def samples(self) -> Json:
        """The sample tenants."""
        return json.loads((self.home / "samples.json").read_bytes())

    def key(self, sample: str) -> str:
        """A sample tenant's key."""
        return self.samples[sample]["key"]

    def tenant(self, name: str, *options: str) -> Json:
        """A new tenant of this session, and a key of it."""
        tenant = self.ask("tenant", "create", f"{name}-{self.mark}-{os.urandom(3).hex()}", *options).json
        return tenant | self.ask("key", "create", tenant["tenant"]).json

    def seen(self, key: str, region: str = VN) -> None:
        """Waits until a region's gateway knows a key: its watch is as fast as it is, and no test is about that here."""
        wait_until(
            lambda: self.get(region, "/v1/models", key).status not in {401, 503},
            "a gateway knows the new key",
            deadline_s=10,
        )

    # --- the doors

    def place(self, region: str) -> Json:
        """A region's addresses, which its home keeps for ever."""
        places = self.__dict__.setdefault("_places", {})
        if not places:
            status = self.status()
            places |= {row["id"]: row for row in status["regions"]} | {"": status}
        return places[region]

    @property
    def ca(self) -> str:
        """All that a client must trust."""
        return self.place("")["ca"]

    def trust(self) -> ssl.SSLContext:
        """What any TLS client makes of the CA file."""
        if self.ca not in self.contexts:
            self.contexts[self.ca] = ssl.create_default_context(cafile=self.ca)
        return self.contexts[self.ca]

    @contextmanager
    def openai(self, region: str, key: str, *, max_retries: int = 0) -> Generator[openai.OpenAI]:
        """The official client with only `base_url`, `api_key` and the CA."""
        with (
            httpx2.Client(verify=self.trust(), timeout=120) as http,
            openai.OpenAI(
                base_url=self.place(region)["http"] + "/v1", api_key=key, http_client=http, max_retries=max_retries
            ) as client,
        ):
            yield client

    def get(self, region: str, path: str, key: str | None = None, method: str = "GET") -> Answer:
        """One request without a body."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        with httpx2.Client(verify=self.trust(), timeout=60) as http:
            return shown(http.request(method, self.place(region)["http"] + path, headers=headers))

    def post(
        self, region: str, path: str, body: bytes | Json, key: str | None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request with a body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json"} | ({} if key is None else {"authorization": f"Bearer {key}"})
        with httpx2.Client(verify=self.trust(), timeout=120) as http:
            return shown(http.post(self.place(region)["http"] + path, content=data, headers=sent | dict(headers or {})))

    @contextmanager
    def wire(self, region: str) -> Generator[Wire]:
        """A bare TLS connection to the HTTP door."""
        host, _, port = self.place(region)["http"].removeprefix("https://").partition(":")
        with (
            socket.create_connection((host, int(port)), timeout=60) as plain,
            self.trust().wrap_socket(plain, server_hostname=host) as stream,
        ):
            yield Wire(stream)

    @contextmanager
    def channel(self, region: str) -> Generator[grpc.Channel]:
        """A gRPC channel with only the CA."""
        credentials = grpc.ssl_channel_credentials(Path(self.ca).read_bytes())
        with grpc.secure_channel(self.place(region)["grpc"], credentials) as channel:
            yield channel

    # --- what it left behind

    @property
    def instance(self) -> str:
        """The mark of its processes."""
        return json.loads((self.home / "addresses.json").read_bytes())["instance"]

    @property
    def temp(self) -> Path:
        """Ray's folder."""
        return Path("/tmp") / f"mesh-{self.instance[:8]}"

    def processes(self) -> dict[int, list[str]]:
        """The living processes that carry its mark, or that its supervisor recorded: pid and command line."""
        mark = f"MESH_INSTANCE={self.instance}".encode()
        found: dict[int, list[str]] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                marked = mark in (entry / "environ").read_bytes().split(b"\0")
                line = (entry / "cmdline").read_bytes()
                started = int((entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
            except OSError:
                continue
            if line and (marked or (int(entry.name), started) in self._recorded()):
                found[int(entry.name)] = line.decode("utf-8", "replace").split("\0")
        return found

    def _recorded(self) -> set[tuple[int, int]]:
        try:
            rows = json.loads((self.home / "run/processes.json").read_bytes())["processes"]
        except (OSError, ValueError, KeyError):
            return set()
        return {(row["pid"], row["started"]) for row in rows}


def messages(text: str) -> list[Any]:
    """A conversation of one turn."""
    return [{"role": "user", "content": text}]


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """gRPC metadata of a key."""
    return (("authorization", f"Bearer {key}"),)
