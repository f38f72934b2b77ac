"""The loop and the machines: who runs when, what a death, a pause and a sleep of the machine do, and what is refused."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from sim.hosts import Host, HostClock
from sim.loop import ForbiddenError, OrderedTasks, SimLoop
from sim.moments import After, Moments
from sim.world import Result, World

from mesh.ports import Clock, Entropy, TaskFactory


def played(main: Callable[[World], Coroutine[Any, Any, None]], *names: str) -> tuple[World, Result]:
    world = World("test")
    for name in names:
        world.add_host(name, name)
    return world, world.play(main(world))


def test_the_ports_are_fulfilled() -> None:
    world = World(1)
    host = world.add_host("a", "a")
    clock: Clock = host.clock
    entropy: Entropy = host.entropy
    tasks: TaskFactory = OrderedTasks
    assert clock.now_s() == clock.instant().boot_s
    assert len(entropy.token(5)) == 5
    assert tasks() is not None
    world.loop.bury()


def test_within_a_process_first_come_first_served_between_two_a_seed_decides() -> None:
    def order(seed: int) -> list[str]:
        world, ran = World(seed), list[str]()

        async def program(host: Host) -> None:
            for at in range(5):
                host.loop.call_soon(ran.append, f"{host.name}{at}")
            await asyncio.sleep(1)

        async def main() -> None:
            for name in ("a", "b"):
                world.add_host(name, name).start(program)
            await asyncio.sleep(2)
            await world.stop()

        assert not world.play(main()).errors
        return ran

    orders = [order(seed) for seed in range(20)]
    for ran in orders:
        for name in ("a", "b"):
            assert [one for one in ran if one.startswith(name)] == [f"{name}{at}" for at in range(5)]
    assert len({tuple(ran) for ran in orders}) > 10
    assert orders == [order(seed) for seed in range(20)]


def test_a_kill_runs_nothing_even_where_it_comes_from_within() -> None:
    ran: list[str] = []

    async def program(host: Host) -> None:
        try:
            async with OrderedTasks() as tasks:
                tasks.spawn(asyncio.sleep(50), "child")  # pyright: ignore[reportArgumentType]
                await asyncio.sleep(1)
                host.kill()
                ran.append("until it gives way")
                await asyncio.sleep(0)
                ran.append("after")
        finally:
            ran.append("finally")

    async def main(world: World) -> None:
        world.net.hosts["a"].start(program)
        await asyncio.sleep(60)
        assert ran == ["until it gives way"]
        await world.stop()

    _, result = played(main, "a")
    assert not result.errors
    assert [line.split('"do":')[1] for line in result.history.lines] == ['"started"}', '"died"}']


def test_what_a_burial_runs_is_not_heard() -> None:
    async def program(host: Host) -> None:
        async def told() -> AsyncGenerator[int]:
            try:
                while True:
                    await asyncio.sleep(9)
                    yield 1
            finally:
                await asyncio.sleep(1)

        try:
            async for _ in told():
                pass
        finally:
            world.history.note("a", "finally")
            await asyncio.sleep(1)

    world = World(1)

    async def main() -> None:
        host = world.add_host("a", "a")
        host.start(program)
        await asyncio.sleep(5)
        host.kill()

    result = world.play(main())
    assert not result.errors
    assert not [line for line in result.history.lines if "finally" in line]


def test_children_are_cancelled_in_the_order_in_which_they_began() -> None:
    ended: list[int] = []

    async def child(number: int) -> None:
        try:
            await asyncio.sleep(9)
        finally:
            ended.append(number)

    async def main(world: World) -> None:
        async def parent() -> None:
            async with OrderedTasks() as tasks:
                for number in range(200):
                    tasks.spawn(child(number), "child")
                await asyncio.sleep(1)
                raise ValueError

        with pytest.raises(ExceptionGroup):
            await parent()
        assert ended == list(range(200))

    assert not played(main)[1].errors


def test_what_a_clean_end_leaves_behind_is_found() -> None:
    async def program(host: Host) -> None:
        host.loop.create_task(asyncio.sleep(99))
        await asyncio.sleep(99)

    async def dropped(host: Host) -> None:
        async def numbers() -> AsyncGenerator[int]:
            yield 1
            yield 2

        async for _ in numbers():
            break
        await asyncio.sleep(99)

    async def main(world: World) -> None:
        world.net.hosts["a"].start(program)
        world.net.hosts["b"].start(dropped)
        await asyncio.sleep(5)
        await world.stop()

    errors = played(main, "a", "b")[1].errors
    assert [error.split()[0] for error in errors] == ["task", "timer", "async"]


def test_an_error_of_a_program_is_an_error_of_the_episode_unless_it_may_be() -> None:
    async def program(host: Host) -> None:
        raise KeyError(host.name)

    async def main(world: World) -> None:
        world.net.hosts["b"].may_end_by = (LookupError,)
        for host in world.net.hosts.values():
            host.start(program)
        await asyncio.sleep(1)
        assert [host.running for host in world.net.hosts.values()] == [False, False]

    assert played(main, "a", "b")[1].errors == ("a: KeyError('a')",)


@pytest.mark.parametrize(
    "reach",
    [
        lambda: time.time(), lambda: time.monotonic(), lambda: time.perf_counter(), lambda: time.sleep(0),
        lambda: time.clock_gettime(time.CLOCK_BOOTTIME), lambda: random.random(), uuid.uuid4, secrets.token_bytes,
        lambda: os.urandom(1), lambda: subprocess.Popen(["true"]), Path("/etc/hostname").read_text, socket.socket,
        threading.Thread(target=print).start, lambda: asyncio.get_running_loop().add_reader(0, print),
        lambda: asyncio.to_thread(print).send(None),
    ],
)  # fmt: skip
def test_the_world_outside_is_refused(reach: Callable[[], object]) -> None:
    refused: list[str] = []

    async def main(world: World) -> None:
        try:
            reach()
        except ForbiddenError as error:
            refused.append(str(error))

    assert not played(main)[1].errors
    assert len(refused) == 1
    assert time.time() > 0, "and given back"


def test_clocks_go_their_own_ways() -> None:
    async def main(world: World) -> None:
        clock = world.net.hosts["a"].clock
        before = clock.instant()
        clock.change(rate=1.001)
        await asyncio.sleep(10)
        clock.change(slew=0.92, rate=1.0)
        await asyncio.sleep(10)
        clock.change(slew=1.0, step_s=-3.0)
        now = clock.instant()
        assert now.raw_s - before.raw_s == pytest.approx(10.01 + 10)
        assert now.boot_s - before.boot_s == pytest.approx(10.01 + 9.2)
        assert now.wall_s - before.wall_s == pytest.approx(10.01 + 9.2 - 3)
        assert now.apart_from(before)
        start = world.loop.time()
        clock.change(slew=0.5)
        await clock.sleep(2)
        assert world.loop.time() - start == pytest.approx(4)
        with pytest.raises(TimeoutError):
            async with clock.timeout(1):
                await asyncio.sleep(2.1)

    assert not played(main, "a")[1].errors


@pytest.mark.parametrize(("suspend", "woke_s"), [(False, 11.0), (True, 14.0)])
def test_a_pause_stops_the_program_and_a_sleep_of_the_machine_its_timers_too(suspend: bool, woke_s: float) -> None:
    woke: list[float] = []

    async def program(host: Host) -> None:
        await asyncio.sleep(4)
        woke.append(host.loop.time())

    async def main(world: World) -> None:
        host = world.net.hosts["a"]
        host.start(program)
        await asyncio.sleep(1)
        before = host.clock.instant()
        host.pause(suspend=suspend)
        await asyncio.sleep(10)
        now = host.clock.instant()
        assert now.boot_s - before.boot_s == pytest.approx(10)
        assert now.raw_s - before.raw_s == pytest.approx(10)
        assert woke == []
        host.resume()
        await asyncio.sleep(9)
        assert woke == [pytest.approx(woke_s)]

    assert not played(main, "a")[1].errors


def test_a_copy_of_a_machine_has_its_clocks_and_draws_the_same() -> None:
    drawn: dict[str, bytes] = {}

    async def program(host: Host) -> None:
        drawn[host.name] = host.entropy.token(8)
        await asyncio.sleep(99)

    async def main(world: World) -> None:
        one = world.net.hosts["a"]
        one.clock.change(rate=1.0009, slew=0.93)
        one.entropy.token(3)
        twin = world.clone(one, "a'", program)
        await asyncio.sleep(7)
        assert twin.clock.instant() == one.clock.instant()
        assert drawn["a'"] == one.entropy.token(8)
        await world.stop()

    assert not played(main, "a")[1].errors


def test_moments_come_to_those_who_wait_for_them() -> None:
    loop, seen = SimLoop(1), list[str]()
    moments = Moments(loop.call_later)
    moments.when(After("grant_sent", 2, "b", "change_sent"), lambda: seen.append("second of b after the change"))
    moments.when(After("grant_sent", delay_s=3), lambda: seen.append("later"))
    for name, host in (("grant_sent", "b"), ("change_sent", "x"), ("grant_sent", "b"), ("grant_sent", "a")):
        moments.fire(name, host)
    assert seen == []
    moments.fire("grant_sent", "b")
    assert seen == ["second of b after the change"]
    moments.fire("grant_sent", "b")
    loop.run_until_complete(asyncio.sleep(4))
    assert seen[1:] == ["later"]
    assert moments.seen["grant_sent"] == 5
    with pytest.raises(ValueError, match="no such moment"):
        moments.when(After("grant_send"), print)
    loop.bury()


def test_a_clock_can_be_made_for_no_host() -> None:
    loop = SimLoop(1)
    assert HostClock(loop, 1.0, 2.0, 3.0).instant().raw_s == 2.0
    loop.bury()
