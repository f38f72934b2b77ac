"""The lab without a mesh: delays, cuts and counters are what they are said to be, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from border.calls import wait_until
from border.namespaces import COUNTRIES, PAIRS, PEER, LabError, Network, Router, lab_environ

pytestmark = pytest.mark.border
LAB = "ground"


@pytest.fixture
def network(ground: None) -> Generator[tuple[Network, Router]]:
    network = Network(LAB)
    with network.held():
        yield network, network.up()


class Echo:
    """Sends back what comes, on each connection; at a country's peer port."""

    def __init__(self, network: Network, country: str) -> None:
        with network.inside(country):
            self.listener = socket.create_server((COUNTRIES[country].border, PEER))
        self.open: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                stream, _ = self.listener.accept()
                self.open.append(stream)
                self.threads.append(threading.Thread(target=self._serve, args=(stream,), daemon=True))
                self.threads[-1].start()

    def _serve(self, stream: socket.socket) -> None:
        with suppress(OSError):
            while data := stream.recv(1 << 16):
                stream.sendall(data)

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self.listener, *self.open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(30)
        for one in (self.listener, *self.open):
            one.close()


def dial(network: Network, source: str, target: str, *, timeout_s: float = 30) -> socket.socket:
    with network.inside(source):
        return socket.create_connection((COUNTRIES[target].border, PEER), timeout=timeout_s)


def there_and_back(stream: socket.socket, data: bytes) -> None:
    stream.sendall(data)
    got = 0
    while got < len(data):
        got += len(stream.recv(1 << 16))


def test_a_packet_takes_what_was_set_and_never_less(network: tuple[Network, Router]) -> None:
    lab, router = network
    router.set_rtt({("vn", "sg"): 40, ("sg", "jp"): 80, ("vn", "jp"): 0}, jitter_ms=5)
    for source, target in PAIRS:
        least = {frozenset(("vn", "sg")): 40, frozenset(("sg", "jp")): 80}.get(frozenset((source, target)), 0)
        assert lab.rtt_ms(source, target) >= least


def test_countries_meet_at_the_border_only(network: tuple[Network, Router]) -> None:
    lab, router = network
    with lab.inside("vn"), pytest.raises(OSError, match="unreachable"):
        socket.create_connection((COUNTRIES["sg"].public, 80), timeout=5)
    with lab.inside("pub"), pytest.raises(OSError, match="unreachable"):
        socket.create_connection((COUNTRIES["sg"].border, PEER), timeout=5)
    assert all(counts.get("bytes", 0) == 0 for counts in router.lines().values())


def test_a_cut_is_one_way_and_heals(network: tuple[Network, Router]) -> None:
    lab, router = network
    with Echo(lab, "sg"), dial(lab, "vn", "sg") as stream:
        there_and_back(stream, b"x" * 100_000)
        router.cut("sg", "vn", both=False)
        stream.sendall(b"y")
        lines = wait_until(
            lambda: (now := router.lines())["sg>vn"].get("cut") and now, "an answer is cut off", deadline_s=30
        )
        assert lines["vn>sg"].get("cut", 0) == 0
        router.heal("sg", "vn", both=False)
        assert stream.recv(10) == b"y"


def test_every_byte_is_counted_by_its_service(network: tuple[Network, Router]) -> None:
    lab, router = network
    with Echo(lab, "sg"), dial(lab, "vn", "sg") as stream:
        router.ask("reset")
        there_and_back(stream, b"x" * 200_000)
        lines = router.lines()
    for line in ("vn>sg", "sg>vn"):
        counts = lines[line]["ports"]
        assert set(counts) == {str(PEER)}
        assert 200_000 < counts[str(PEER)]["bytes"] < 240_000
        assert lines[line]["unread_bytes"] == counts[str(PEER)]["bytes"]
    assert all(lines[line].get("bytes", 0) == 0 for line in ("vn>jp", "jp>vn", "sg>jp", "jp>sg"))


def test_a_recording_holds_each_packet_as_it_was(network: tuple[Network, Router]) -> None:
    lab, router = network
    file = lab.folder / "x.pcap"
    with Echo(lab, "sg"), dial(lab, "vn", "sg") as stream:
        router.ask("pcap", file=str(file))
        router.ask("reset")
        there_and_back(stream, b"look at me")
        counted = router.lines()
        router.ask("pcap", file=None)
    sizes, at, data = [], 24, file.read_bytes()
    assert struct.unpack_from("<I", data)[0] == 0xA1B2C3D4
    while at < len(data):
        sizes.append(struct.unpack_from("<I", data, at + 8)[0])
        at += 16 + sizes[-1]
    assert sum(sizes) >= sum(counted[line]["bytes"] for line in ("vn>sg", "sg>vn"))
    assert data.count(b"look at me") == 2


def test_open_connections_are_reset_when_the_relay_is_switched(network: tuple[Network, Router]) -> None:
    lab, router = network
    with Echo(lab, "sg"), dial(lab, "vn", "sg") as stream:
        there_and_back(stream, b"x")
        router.ask("relay", on=True)
        stream.sendall(b"y")
        with pytest.raises(ConnectionResetError):
            stream.recv(1)
        # Nobody stands in the relay's namespace: new connections find nobody, not the server.
        with pytest.raises(OSError, match=r"refused|timed out"):
            dial(lab, "vn", "sg", timeout_s=5)
        router.ask("relay", on=False)
        with dial(lab, "vn", "sg") as again:
            there_and_back(again, b"z")


def test_a_lab_is_held_by_one(network: tuple[Network, Router]) -> None:
    lab, _ = network
    assert lab.holder() == os.getpid()
    with pytest.raises(LabError, match=str(os.getpid())), Network(LAB).held():
        pass
    assert lab.pids() != set()


def left_overs() -> dict[str, Any]:
    """What a lab could leave on a machine, outside of its namespaces and as them."""

    def said(*command: str) -> list[str]:
        return sorted(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())

    return {
        "namespaces": [name for name in said("ip", "netns") if f"meshlab-{LAB}" in name],
        "links": [line.split()[0] for line in said("ip", "-br", "link")],
        "routes": said("ip", "route"),
        "rules": said("ip", "rule"),
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if f"meshlab-{LAB}" in line],
        "folder": Network(LAB).folder.exists(),
        "processes": Network(LAB).pids(),
    }


def test_nothing_is_left_also_after_a_kill(ground: None) -> None:
    before = left_overs()
    program = f"""
import os, sys, time
from border.namespaces import Network
network = Network({LAB!r})
with network.held():
    router = network.up()
    network.start("vn", ["sleep", "1000"], network.folder / "log")
    network.start("pub", ["sh", "-c", "trap '' TERM; sleep 1000; sleep 1000"], network.folder / "log")
    print("up", flush=True)
    sys.stdin.read()
"""
    for kill in (False, True):
        victim = subprocess.Popen(
            [sys.executable, "-c", program], env=lab_environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "up\n"
            # A process enters its namespace by itself, a moment after it was started.
            wait_until(lambda: len(Network(LAB).pids()) >= 3, "all have come", deadline_s=60)
            if kill:
                victim.send_signal(signal.SIGKILL)
        if kill:
            assert Network(LAB).pids() != set()  # they outlive it: that is what the next start cleans
            with Network(LAB).held():
                pass
        now = left_overs()
        assert now == before, f"left after {'a kill' if kill else 'an ordinary end'}"
