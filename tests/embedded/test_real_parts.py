"""A real etcd and a real Ray cluster under supervision: TLS, what a kill leaves, and that nothing stays."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.control.etcd import EtcdStore, open_store_as_root
from mesh.control.roles import set_up
from mesh.control.store import Put, Range, StoreError
from mesh.embedded.addresses import Addresses, addresses_of, taken
from mesh.embedded.authority import make_pki
from mesh.embedded.children import Children, children
from mesh.embedded.configuration import catalogue, places
from mesh.embedded.environment import part_environment, ray_environment
from mesh.embedded.etcd_binary import find_etcd
from mesh.embedded.etcd_server import etcd_command
from mesh.embedded.home import Home, cache_folder
from mesh.embedded.parts import Part, PartState, Program
from mesh.embedded.processes import Roll, end_all, look
from mesh.embedded.ray_cluster import RayCluster, make_temp
from mesh.runtime import SystemClock
from mesh.tls import check_tls13
from mesh.types import RegionId

VN = RegionId("vn-1")
ME = os.getpid()


@dataclass
class Lab:
    home: Home
    addresses: Addresses
    children: Children
    roll: Roll

    def environ(self, part: str) -> dict[str, str]:
        return part_environment(os.environ, self.addresses.instance, part, threads=1)


@asynccontextmanager
async def lab(folder: Path) -> AsyncGenerator[Lab]:
    home = Home(folder / "home")
    home.make()
    addresses = addresses_of(home, cache_folder(os.environ), places(catalogue()))
    make_pki(home.pki, {VN: [addresses.of(VN).host]}, [addresses.etcd.host])
    with children() as own:
        roll = Roll(addresses.instance)
        try:
            yield Lab(home, addresses, own, roll)
        finally:
            await asyncio.to_thread(end_all, roll, without=ME, grace_s=3)
    assert roll.refresh(without=ME) == {}
    assert taken(addresses.listeners([VN])) == []


async def value_of(store: EtcdStore, key: str) -> bytes:
    return (await store.range(Range(key), timeout_s=10)).items[0].value


async def test_etcd(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        etcd = await asyncio.to_thread(find_etcd, cache_folder(os.environ), os.environ, print)
        address = made.addresses.etcd
        up: asyncio.Queue[None] = asyncio.Queue()
        async with open_store_as_root([f"https://{address}"], made.home.pki, SystemClock()) as store:

            async def check() -> None:
                while True:
                    with suppress(StoreError):
                        await set_up(store, [VN])
                        up.put_nowait(None)
                        return

            part = Part("etcd", made.home.log_of("etcd"))
            command = etcd_command(etcd, made.home.etcd / "data", made.home.pki, made.addresses)
            program = Program(part, command, made.environ("etcd"), made.home.path, check)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(program.run(made.children, made.roll))
                await up.get()
                await check_tls13(address.host, address.port)
                await check_tls13(address.host, made.addresses.etcd_peer.port)
                await store.txn([], [Put("/mesh/x", b"kept")], timeout_s=10)
                assert part.pid is not None
                os.kill(part.pid, signal.SIGKILL)
                await up.get()
                assert await value_of(store, "/mesh/x") == b"kept"
                running.cancel()


@pytest.mark.timeout(900)
async def test_ray_is_started_anew_when_its_raylet_dies_and_leaves_nothing(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        make_temp(made.addresses.temp)
        token = made.home.run / "token"
        part, deploy = Part("ray-vn-1", made.home.log_of("ray-vn-1")), Part("deploy-vn-1", made.home.log_of("deploy"))
        runs: asyncio.Queue[None] = asyncio.Queue()

        async def weights() -> None:
            """Asked for once a cluster runs: here it stays without an application."""
            runs.put_nowait(None)
            await asyncio.Event().wait()

        cluster = RayCluster(
            region=VN,
            part=part,
            deploy=deploy,
            ports=made.addresses.of(VN).ray,
            temp=made.addresses.ray_temp(VN),
            kept_logs=made.home.logs / "ray-vn-1",
            token=token,
            config=made.home.config,
            environ=made.environ("ray-vn-1") | ray_environment(token),
            gpus=0,
            weights=weights,
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(cluster.run(made.children, made.roll, ME))
            await runs.get()
            assert token.stat().st_mode & 0o777 == 0o600
            await on_loopback_only(made)
            before = set(made.roll.refresh(without=ME))
            first = part.pid
            names = {seen.name: seen.process.pid for one in before if (seen := look(one.pid)) is not None}
            os.kill(names["raylet"], signal.SIGKILL)
            await runs.get()
            assert part.pid not in (None, first)
            assert part.state is PartState.STARTING
            assert not before & set(made.roll.refresh(without=ME))
            assert (made.home.logs / "ray-vn-1" / "raylet.out").exists()
            running.cancel()


async def on_loopback_only(made: Lab) -> None:
    """Every port that the cluster was told to take is taken on 127.0.0.1, and on no other address."""
    ports = set(made.addresses.of(VN).ray.fixed().values())
    listening: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                host, port = fields[1].split(":")
                listening.setdefault(int(port, 16), set()).add(host)
    loopback = {
        socket.inet_aton("127.0.0.1")[::-1].hex().upper(),
        "0000000000000000FFFF00000100007F",
    }
    assert listening.keys() & ports
    for port in listening.keys() & ports:
        assert listening[port] <= loopback, port
