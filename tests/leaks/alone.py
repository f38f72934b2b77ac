"""Parts of the product that the small mesh has no place for: a gateway's grant on a real etcd, and a hop's own socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

from etcd_lab import running_etcd
from leaks.parts import Parts
from waiting import eventually

from mesh.control.grants import Membership
from mesh.policy.authority import Authority
from mesh.runtime import SystemClock, SystemEntropy, TaskGroupTasks
from mesh.types import GatewayId, RegionId, Role


async def granted(parts: Parts, folder: Path, texts: Sequence[str]) -> None:
    """A gateway of a country that has seen prompts takes a grant from a real control store."""
    async with running_etcd(folder) as lab:
        clock, region = SystemClock(), RegionId("vn-1")
        membership = Membership(
            store=parts.store(await lab.store(region, Role.GATEWAY), texts), region=region, gateway=GatewayId("g1"),
            authority=Authority(), draining=dict, clock=clock, tasks=TaskGroupTasks, entropy=SystemEntropy(),
        )  # fmt: skip
        running = asyncio.create_task(membership.run())
        await eventually(lambda: membership.grant_age_s is not None)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def given_up(parts: Parts, body: bytes) -> tuple[bytes, int]:
    """A hop to a peer that takes nothing is given up: all that the peer gets, and how much of it was there before."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        listener.setblocking(False)
        pool = parts.pool(None)
        port = listener.getsockname()[1]
        sending = asyncio.create_task(
            pool.request(
                "127.0.0.1", port, server_name=None, method="POST", target="/a", headers=[(b"host", b"a")], body=body
            )
        )
        peer, _ = await loop.sock_accept(listener)
        with peer:
            peer.setblocking(False)
            before, same = 0, 0
            while same < 50 or not before:  # until its side takes no more
                await asyncio.sleep(0.01)
                waiting = len(peer.recv(1 << 24, socket.MSG_PEEK)) if before or await _readable(peer) else 0
                before, same = waiting, same + 1 if waiting == before else 0
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            came = b""
            try:
                while piece := await loop.sock_recv(peer, 1 << 16):
                    came += piece
            except ConnectionResetError:
                pass
        pool.close()
        return came, before


async def _readable(peer: socket.socket) -> bool:
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(peer, arrived.set)
    await arrived.wait()
    return bool(loop.remove_reader(peer))
