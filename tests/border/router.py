"""The border: joins the countries' namespaces, and delays, loses, cuts, counts and records every packet between them.

    python -m border.router --control SOCKET --country vn:NAMESPACE:10.88.1 [...] --relay NAMESPACE --port 2379 [...]

One process, one TUN device `border0` in each namespace; the devices vanish with it. Every *ordered* pair of countries
has a line of its own. The control socket takes one JSON object a line and answers each with one; `src` and `dst` may be
`*`, and `"both": true` means the other direction too:

    {"op": "set", "src", "dst", "delay_ms"?, "jitter_ms"?, "loss"?}     one way; jitter is uniform and keeps the order
    {"op": "cut" | "heal", "src", "dst"}                                what is in flight is lost too
    {"op": "counters"}      {"op": "reset"}      {"op": "pcap", "file": PATH or null}
    {"op": "relay", "on": true | false}      {"op": "reset connections", "port": 8447}

With the relay on, each TCP connection to one of the ports is handed to the relay's namespace, addresses unchanged, and
read there. It is a connection's first packet that decides; connections of the other kind are reset, so that their ends
make new ones at once. The relay stands at the server's door: delay, cut and count apply once, on the client's side.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import itertools
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from io import BufferedWriter
from pathlib import Path
from typing import Any

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET, PR_SET_TIMERSLACK = 0x40000000, 29
FIN, SYN, RST, ACK = 1, 2, 4, 16
IN_FLIGHT = 50_000
"""Packets that one line holds; more are dropped and counted."""
CONNECTIONS = 65_536
Flow = tuple[bytes, int, bytes, int]
"""A TCP connection as its client sees it: its address and port, the server's."""
libc = ctypes.CDLL(None, use_errno=True)


def open_tun(namespace: str) -> int:
    """Makes `border0` in a namespace; only its file descriptor stays with this process."""
    with open("/proc/self/ns/net") as here, open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
        try:
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"border0", IFF_TUN | IFF_NO_PI))
        finally:
            libc.setns(here.fileno(), CLONE_NEWNET)
    return tun


class Line:
    """One ordered pair of countries. Counts what starts to cross, whether it arrives or not."""

    def __init__(self) -> None:
        self.delay_s = self.jitter_s = self.loss = 0.0
        self.cut = False
        self.queue: deque[tuple[float, int, bytes]] = deque()  # (due, descriptor, packet), in order of due
        self.last_s = 0.0
        self.reset()

    def reset(self) -> None:
        self.counts: Counter[str] = Counter()
        self.ports: Counter[int] = Counter()
        self.port_packets: Counter[int] = Counter()

    def shown(self) -> dict[str, Any]:
        """The counters; under port 0 stands what belongs to no service."""
        ports = {str(port): {"bytes": n, "packets": self.port_packets[port]} for port, n in self.ports.items()}
        return {**self.counts, "in_flight": len(self.queue), "is_cut": self.cut, "ports": ports}

    def drop_all(self) -> None:
        self.counts["cut"] += len(self.queue)
        self.queue.clear()


class Router:
    """The lines, the connections and the relay."""

    def __init__(self, countries: Mapping[str, tuple[str, str]], relay: str, ports: Sequence[int], seed: int) -> None:
        self.random = random.Random(seed)
        self.tun = {name: open_tun(namespace) for name, (namespace, _) in countries.items()}
        self.country_of = {bytes(map(int, net.split("."))): name for name, (_, net) in countries.items()}
        self.name_of = {descriptor: name for name, descriptor in self.tun.items()}
        self.relay = open_tun(relay)
        self.lines = {pair: Line() for pair in itertools.permutations(countries, 2)}
        self.services = frozenset(ports)
        self.relaying = False
        self.flows: dict[Flow, bool | None] = {}  # whether it goes through the relay; None: it is to be reset
        self.strays = 0  # not IPv4, not between two countries, or with a false source
        self.pcap: BufferedWriter | None = None
        self.callers: dict[socket.socket, bytes] = {}

    # Packets.

    def take(self, descriptor: int, packet: bytes, now_s: float) -> None:
        """A packet left a country, or the relay."""
        source, target = self.country_of.get(packet[12:15]), self.country_of.get(packet[16:19])
        from_relay = descriptor == self.relay
        if (
            source is None
            or target is None
            or source == target
            or not (from_relay or self.name_of[descriptor] == source)
        ):
            self.strays += 1
            return
        line = self.lines[source, target]
        out, port = self.tun[target], 0
        if packet[9] == socket.IPPROTO_TCP:
            at = (packet[0] & 15) * 4
            from_port, to_port = struct.unpack_from(">HH", packet, at)
            if to_port in self.services:
                port, flow = to_port, (packet[12:16], from_port, packet[16:20], to_port)
            elif from_port in self.services:
                port, flow = from_port, (packet[16:20], to_port, packet[12:16], from_port)
            else:
                flow = None
            if flow is not None:
                to_server = port == to_port
                if from_relay:
                    if to_server:  # the relay's own leg: it stands at the server's door
                        self.write(line, out, packet)
                        return
                elif to_server:
                    if packet[at + 13] & (SYN | ACK) == SYN:
                        self.begin(flow)
                    if self.flows.get(flow, False) != self.relaying:
                        self.refuse(descriptor, packet, at)
                        return
                    if self.relaying:
                        out = self.relay
                elif flow in self.flows:  # a server on a connection that no relay made
                    if self.relaying or self.flows[flow] is None:
                        self.refuse(descriptor, packet, at)
                        return
                else:  # a server to the relay, which has the client's address
                    self.write(line, self.relay, packet)
                    return
        self.send(line, port, out, packet, now_s, read=from_relay or out == self.relay)

    def begin(self, flow: Flow) -> None:
        """Notes a connection's first packet."""
        self.flows.pop(flow, None)
        self.flows[flow] = self.relaying
        if len(self.flows) > CONNECTIONS:
            del self.flows[next(iter(self.flows))]

    def refuse(self, descriptor: int, packet: bytes, at: int) -> None:
        """Resets the sender's connection, as the other end would."""
        from_port, to_port, _, acknowledged = struct.unpack_from(">HHII", packet, at)
        if packet[at + 13] & RST or not packet[at + 13] & ACK:
            return
        source, target = packet[12:16], packet[16:20]
        tcp = struct.pack(">HHIIBBHHH", to_port, from_port, acknowledged, 0, 5 << 4, RST, 0, 0, 0)
        sum_ = checksum(target + source + struct.pack(">BBH", 0, socket.IPPROTO_TCP, len(tcp)) + tcp)
        tcp = tcp[:16] + struct.pack(">H", sum_) + tcp[18:]
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0) + target + source
        ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
        try:
            os.write(descriptor, ip + tcp)
        except OSError:
            self.strays += 1

    def send(self, line: Line, port: int, out: int, packet: bytes, now_s: float, *, read: bool) -> None:
        """A packet starts to cross the border. `read`: the relay sees it in clear."""
        size = len(packet)
        counts = line.counts
        counts["packets"] += 1
        counts["bytes"] += size
        line.ports[port] += size
        line.port_packets[port] += 1
        if not read:
            counts["unread_bytes"] += size
        if self.pcap is not None:
            wall_s = time.time()
            self.pcap.write(struct.pack("<IIII", int(wall_s), int(wall_s % 1 * 1e6), size, size) + packet)
        if line.cut:
            counts["cut"] += 1
        elif line.loss and self.random.random() < line.loss:
            counts["lost"] += 1
        elif len(line.queue) >= IN_FLIGHT:
            counts["overflowed"] += 1
        else:
            due_s = now_s + line.delay_s
            if line.jitter_s:
                due_s += self.random.random() * line.jitter_s
            line.last_s = due_s = max(due_s, line.last_s)
            line.queue.append((due_s, out, packet))

    def write(self, line: Line, descriptor: int, packet: bytes) -> None:
        try:
            os.write(descriptor, packet)
        except OSError:  # the device is down, or gone
            line.counts["undelivered"] += 1

    def deliver(self, now_s: float) -> float | None:
        """Writes what is due; tells in how many seconds the next packet is."""
        first_s = None
        for line in self.lines.values():
            queue = line.queue
            while queue and queue[0][0] <= now_s:
                _, descriptor, packet = queue.popleft()
                line.counts["delivered"] += 1
                self.write(line, descriptor, packet)
            if queue and (first_s is None or queue[0][0] < first_s):
                first_s = queue[0][0]
        return None if first_s is None else max(0.0, first_s - time.monotonic())

    # Control.

    def command(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Does what is asked; answers the counters."""
        source, target, both = asked.get("src", "*"), asked.get("dst", "*"), asked.get("both", False)
        wanted = [(source, target), *([(target, source)] if both else [])]
        chosen = [
            line for (a, b), line in self.lines.items() if any(x in ("*", a) and y in ("*", b) for x, y in wanted)
        ]
        if not chosen:
            raise ValueError("no such pair of countries")
        match asked["op"]:
            case "set":
                for line in chosen:
                    line.delay_s = asked.get("delay_ms", line.delay_s * 1e3) / 1e3
                    line.jitter_s = asked.get("jitter_ms", line.jitter_s * 1e3) / 1e3
                    line.loss = asked.get("loss", line.loss)
            case "cut" | "heal" as op:
                for line in chosen:
                    line.cut = op == "cut"
                    if line.cut:
                        line.drop_all()
            case "reset":
                for line in chosen:
                    line.reset()
            case "relay":
                self.relaying = bool(asked["on"])
            case "reset connections":
                self.flows |= {flow: None for flow in self.flows if flow[3] == asked["port"]}
            case "pcap":
                self.record(asked["file"])
            case "counters":
                pass
            case _:
                raise ValueError("no such op")
        if self.pcap is not None:
            self.pcap.flush()
        return {
            "ok": True,
            "relay": self.relaying,
            "cpu_s": time.process_time(),
            "strays": self.strays,
            "lines": {f"{a}>{b}": self.lines[a, b].shown() | self.settings(a, b) for a, b in self.lines},
        }

    def settings(self, source: str, target: str) -> dict[str, float]:
        line = self.lines[source, target]
        return {"delay_ms": line.delay_s * 1e3, "jitter_ms": line.jitter_s * 1e3, "loss": line.loss}

    def record(self, path: str | None) -> None:
        """Writes all that starts to cross from now on to a file, as tcpdump would."""
        if self.pcap is not None:
            self.pcap.close()
        self.pcap = open(path, "wb", buffering=1 << 20) if path else None  # noqa: SIM115 - open until it is told
        if self.pcap is not None:
            self.pcap.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))  # 101: bare IP

    def hear(self, caller: socket.socket, listener: socket.socket) -> None:
        """A new caller, or bytes of one."""
        if caller is listener:
            self.callers[listener.accept()[0]] = b""
            return
        data = caller.recv(65_536)
        *lines, self.callers[caller] = (self.callers[caller] + data).split(b"\n")
        for line in lines:
            try:
                answer = self.command(json.loads(line))
            except (ValueError, KeyError, TypeError, OSError) as error:
                answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            caller.sendall(json.dumps(answer).encode() + b"\n")
        if not data:
            del self.callers[caller]
            caller.close()

    def run(self, listener: socket.socket) -> None:
        """For ever."""
        tuns = [*self.tun.values(), self.relay]
        wait_s = None
        while True:
            # Not epoll: it rounds its timeout up to milliseconds, select has microseconds.
            for ready in select.select([*tuns, listener, *self.callers], [], [], wait_s)[0]:
                if isinstance(ready, socket.socket):
                    self.hear(ready, listener)
                    continue
                for _ in range(32):
                    try:
                        packet = os.read(ready, 65_535)
                    except BlockingIOError:
                        break
                    self.take(ready, packet, time.monotonic())  # read anew: one for a batch lets some arrive early
            wait_s = self.deliver(time.monotonic())


def checksum(data: bytes) -> int:
    """The internet checksum. Source: RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument("--country", action="append", required=True)
    parser.add_argument("--relay", required=True)
    parser.add_argument("--port", type=int, action="append", required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    countries = {name: (namespace, net) for name, namespace, net in (one.split(":") for one in options.country)}
    router = Router(countries, options.relay, options.port, options.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    options.control.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(options.control))
        options.control.chmod(0o600)
        listener.listen()
        try:
            router.run(listener)
        finally:
            options.control.unlink(missing_ok=True)
            router.record(None)


if __name__ == "__main__":
    main()
