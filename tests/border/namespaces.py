"""The lab's ground: countries as network namespaces, joined by nothing but the border router.

    country   border side   public side      who sits where (LAB is the lab's name)
    vn        10.88.1.1     10.77.1.1        meshlab-LAB-vn, -sg, -jp   a country: all that runs in it
    sg        10.88.2.1     10.77.2.1        meshlab-LAB-pub            clients, 10.77.N.254
    jp        10.88.3.1     10.77.3.1        meshlab-LAB-relay          the relay: all of 10.88/16 is a local address there
                                             meshlab-LAB-border         the router

Every process, device, address, route and rule of a lab is in one of these namespaces, and every file in its folder. So
what a killed lab left is found without any record of it: the processes in its namespaces, the namespaces, the folder.
A lock tells whether somebody still holds the lab; the kernel drops it with the process.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
LOCKS = Path("/run/mesh-border-lab")
NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000
ETCD, ETCD_PEER, INTERNAL, ADMIN, PEER = 2379, 2380, 8445, 8446, 8447
HTTP, GRPC, OPERATOR = 8443, 8444, 9090
SERVICES = (ETCD, ETCD_PEER, INTERNAL, ADMIN, PEER, INTERNAL + 100, PEER + 100)
"""All that listens on the border side; the last two are a country's second gateway's."""
RTT_MS: Mapping[tuple[str, str], float] = {("vn", "sg"): 30, ("sg", "jp"): 70, ("vn", "jp"): 90}
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Country:
    """Where a country is."""

    name: str
    number: int
    region: str
    jurisdiction: str

    @property
    def border(self) -> str:
        """Its address on the border side."""
        return f"10.88.{self.number}.1"

    @property
    def public(self) -> str:
        """Its address on the public side."""
        return f"10.77.{self.number}.1"


COUNTRIES = {
    one.name: one
    for one in (
        Country("vn", 1, "vn-1", "VN"),
        Country("sg", 2, "ap-southeast-1", "SG"),
        Country("jp", 3, "ap-northeast-1", "JP"),
    )
}
PAIRS = tuple((a, b) for a in COUNTRIES for b in COUNTRIES if a != b)


class LabError(Exception):
    """The lab cannot be had; the text says what to do."""


def missing() -> str | None:
    """Why there can be no lab here, in words; None where there can. As root, what is missing is installed first.

    Raises:
        LabError: This is root, and still something is missing that only the user can bring.
    """
    if os.geteuid() != 0:
        return "the border lab makes network namespaces, which needs root"
    if shutil.which("ip") is None:
        install = "apt-get install -y iproute2"
        if shutil.which("apt-get") is not None:
            environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for words in ("update", "install -y --no-install-recommends iproute2"):
                subprocess.run(["apt-get", "-qq", *words.split()], env=environ, capture_output=True, check=False)
        if shutil.which("ip") is None:
            raise LabError(f"The border lab needs the 'ip' command, which could not be installed: {install}")
    tun = Path("/dev/net/tun")
    if not tun.exists():
        tun.parent.mkdir(exist_ok=True)
        with suppress(OSError):
            os.mknod(tun, 0o600 | 0o020000, os.makedev(10, 200))
    try:
        os.close(os.open(tun, os.O_RDWR))
    except OSError as error:
        raise LabError(
            f"The border lab needs /dev/net/tun ({error.strerror}): modprobe tun; in a container, give it the device "
            "and CAP_NET_ADMIN and CAP_SYS_ADMIN."
        ) from None
    return None


def ip(*words: str) -> str:
    """Runs `ip`."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """One lab's namespaces and router. Nothing is made by making one of these."""

    def __init__(self, lab: str) -> None:
        self.lab = lab
        self.folder = Path(f"/tmp/mesh-lab-{lab}")
        self.names = {who: f"meshlab-{lab}-{who}" for who in (*COUNTRIES, "pub", "relay", "border")}
        self._started: list[subprocess.Popen[bytes]] = []
        self._router: Router | None = None

    @contextmanager
    def held(self) -> Generator[None]:
        """Holds the lab for this process; removes what a killed one left, and at the end everything.

        Raises:
            LabError: A living process holds it.
        """
        LOCKS.mkdir(mode=0o700, exist_ok=True)
        with (LOCKS / f"{self.lab}.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise LabError(
                    f"The border lab '{self.lab}' is held by process {lock.read().strip() or '?'}."
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            self.remove(grace_s=0)
            try:
                yield
            finally:
                self.remove(grace_s=3)
                lock.truncate(0)

    def holder(self) -> int | None:
        """The pid of the process that holds it."""
        try:
            with (LOCKS / f"{self.lab}.lock").open("r") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(lock.read())
        except (OSError, ValueError):
            pass
        return None

    def up(self) -> Router:
        """Makes the namespaces, and starts the router without any delay yet."""
        self.folder.mkdir(mode=0o700)
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for one in COUNTRIES.values():
            here, pub, wire = self.names[one.name], self.names["pub"], f"to-{one.name}"
            ip("-n", pub, "link", "add", wire, "type", "veth", "peer", "name", "public0", "netns", here)
            for name, device, address in ((pub, wire, f"10.77.{one.number}.254"), (here, "public0", one.public)):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
                ip("-n", name, "link", "set", device, "up")
        socket_ = self.folder / "router.sock"
        command = [sys.executable, "-m", "border.router", "--control", str(socket_), "--relay", self.names["relay"]]
        for one in COUNTRIES.values():
            command += ["--country", f"{one.name}:{self.names[one.name]}:10.88.{one.number}"]
        command += [word for port in SERVICES for word in ("--port", str(port))]
        self.start("border", command, self.folder / "router.log")
        router = self._router = Router(socket_, wait_s=30)
        for who in (*COUNTRIES, "relay"):
            if who in COUNTRIES:
                ip("-n", self.names[who], "addr", "add", f"{COUNTRIES[who].border}/32", "dev", "border0")
            # A long queue: TCP shall see the border's losses, not the device's.
            ip("-n", self.names[who], "link", "set", "border0", "up", "mtu", "1500", "txqueuelen", "10000")
            ip("-n", self.names[who], "route", "add", "10.88.0.0/16", "dev", "border0")
        # The relay answers for every border address; its own legs leave by border0 although they look local.
        ip("-n", self.names["relay"], "route", "add", "local", "10.88.0.0/16", "dev", "lo")
        with self.inside("relay"):
            for device in ("all", "border0"):
                Path(f"/proc/sys/net/ipv4/conf/{device}/accept_local").write_text("1")
                Path(f"/proc/sys/net/ipv4/conf/{device}/rp_filter").write_text("0")
            # Other ports than the countries' own: the router tells a client's connection from the relay's by them.
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10000 29999")
        return router

    def command(self, who: str, argv: Sequence[str]) -> list[str]:
        """A command line that runs in a namespace, with the pid that its starter sees: `ip netns exec` execs."""
        return ["ip", "netns", "exec", self.names[who], *argv]

    def start(
        self, who: str, argv: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a program in a namespace, in a session of its own, its words appended to a file.

        Without an environment it is one of the lab's own programs.
        """
        with log.open("ab") as words:
            process = subprocess.Popen(
                self.command(who, argv),
                env=lab_environ() if environ is None else dict(environ),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    @contextmanager
    def inside(self, who: str) -> Generator[None]:
        """Puts this *thread* into a namespace for as long; sockets that are made meanwhile stay there."""
        with open("/proc/thread-self/ns/net") as before, (NETNS / self.names[who]).open() as there:
            if libc.setns(there.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {self.names[who]}")
            try:
                yield
            finally:
                libc.setns(before.fileno(), CLONE_NEWNET)

    def pids(self, who: Iterable[str] | None = None) -> set[int]:
        """The processes in these namespaces, or in all of the lab."""
        wanted: set[tuple[int, int]] = set()
        for name in self.names if who is None else who:
            with suppress(FileNotFoundError):
                stat = (NETNS / self.names[name]).stat()
                wanted.add((stat.st_dev, stat.st_ino))
        return {
            int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and _namespace(int(p.name)) in wanted
        }

    def end(self, who: str, mark: str) -> None:
        """Ends the processes of a namespace that were started with a mark such as `NAME=value` in their environment."""

        def marked(pid: int) -> bool:
            with suppress(OSError):
                return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return False

        while pids := {pid for pid in self.pids([who]) if marked(pid)}:
            _end(pids, signal.SIGKILL, 0.5)

    def remove(self, *, grace_s: float) -> None:
        """Ends every process of the lab and removes its namespaces and its folder; waits until they are gone."""
        if self._router is not None:
            self._router.close()
            self._router = None
        for number, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 20.0)):
            deadline_s = time.monotonic() + limit_s
            while limit_s and (pids := self.pids()):
                _end(pids, number, max(0.0, min(0.5, deadline_s - time.monotonic())))
                if time.monotonic() > deadline_s:
                    break
        while self._started:
            self._started.pop().wait(30)  # it has ended: only its parent can take note of that
        for name in self.names.values():
            if (NETNS / name).exists():
                ip("netns", "del", name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def rtt_ms(self, source: str, target: str) -> float:
        """One round trip on the border, measured: how long a connection to a closed port takes to be refused."""
        with self.inside(source), socket.socket() as probe:
            began_s = time.perf_counter()
            with suppress(ConnectionRefusedError):
                probe.connect((COUNTRIES[target].border, 9))
            return (time.perf_counter() - began_s) * 1e3


def lab_environ() -> dict[str, str]:
    """The environment of the lab's own programs: they find `border` beside what the caller had."""
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(TESTS)])
    return {**os.environ, "PYTHONPATH": path}


def _namespace(pid: int) -> tuple[int, int] | None:
    try:
        stat = os.stat(f"/proc/{pid}/ns/net")
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _end(pids: Iterable[int], number: signal.Signals, wait_s: float) -> None:
    """Signals processes and waits for their ends. By handle: a pid alone may be another's by then."""
    handles: list[int] = []
    for pid in pids:
        with suppress(ProcessLookupError):
            before = _namespace(pid)
            handle = os.pidfd_open(pid)
            handles.append(handle)
            if before is not None and _namespace(pid) == before:
                signal.pidfd_send_signal(handle, number)
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    deadline_s, left = time.monotonic() + wait_s, set(handles)
    while left and (remaining_s := deadline_s - time.monotonic()) > 0:
        for handle, _ in poll.poll(remaining_s * 1000):
            poll.unregister(handle)
            left.discard(handle)
    for handle in handles:
        os.close(handle)


class Router:
    """The router's control."""

    def __init__(self, path: Path, *, wait_s: float = 0) -> None:
        deadline_s = time.monotonic() + wait_s
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                if time.monotonic() >= deadline_s:
                    raise LabError(f"No border router answers at {path}.") from None
                time.sleep(0.01)
        self._file = self._socket.makefile("r")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, op: str, source: str = "*", target: str = "*", **more: object) -> dict[str, Any]:
        """One command, see `border.router`; the counters of all lines come back."""
        self._socket.sendall(json.dumps({"op": op, "src": source, "dst": target, **more}).encode() + b"\n")
        answer = json.loads(self._file.readline() or '{"ok": false, "error": "the router is gone"}')
        if not answer["ok"]:
            raise LabError(f"border router: {answer['error']}")
        return answer

    def set_rtt(self, rtt_ms: Mapping[tuple[str, str], float], jitter_ms: float = 0.0) -> None:
        """Half of each round trip each way."""
        for (a, b), ms in rtt_ms.items():
            self.ask("set", a, b, both=True, delay_ms=ms / 2, jitter_ms=jitter_ms)

    def cut(self, source: str, target: str, *, both: bool = True) -> None:
        """Nothing passes from now on, from `source` to `target`; `*` is every country."""
        self.ask("cut", source, target, both=both)

    def heal(self, source: str = "*", target: str = "*", *, both: bool = True) -> None:
        """It passes again."""
        self.ask("heal", source, target, both=both)

    def lines(self) -> dict[str, dict[str, Any]]:
        """The counters of each ordered pair, such as `vn>sg`."""
        return self.ask("counters")["lines"]
