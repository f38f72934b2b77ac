"""What `test_replica_life` runs apart: the thread in which Ray's actor keeps a replica. Ends with 0 if all is well."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving.fake_engine import FakeEngine
from serving.fleet_lab import lab_settings

from mesh.errors import Code, MeshError
from mesh.serving.app import ReplicaThread
from mesh.serving.replica import find_place
from mesh.settings import Address, Model
from mesh.telemetry import Log
from mesh.tls import prepare_process
from mesh.types import ModelKind


def refuses(thread: ReplicaThread) -> bool:
    try:
        thread.check()
    except MeshError:
        return True
    return False


async def main(pki: Path) -> None:
    prepare_process(os.environ)
    place = find_place(lab_settings(pki, [Address("127.0.0.1", 1)], pki), "vn-1", "all", None)
    log = Log("replica", "vn-1", io.StringIO(), models=[model.id for model in place.models], strict=True)
    made: list[FakeEngine] = []

    def make(model: Model) -> FakeEngine:
        made.append(FakeEngine(ModelKind.EMBEDDING if model.kind is ModelKind.EMBEDDING else ModelKind.CHAT))
        return made[-1]

    thread = ReplicaThread(place, make, log)
    thread.start()
    await asyncio.wrap_future(thread.ready)
    assert not refuses(thread)
    assert thread.sequences() == 0
    made[0].fault = "RuntimeError"
    assert refuses(thread)
    thread.stop()
    await asyncio.wrap_future(thread.done)
    assert refuses(thread)
    assert all(engine.stopped for engine in made)

    def broken(model: Model) -> FakeEngine:
        raise RuntimeError(model.id)

    failing = ReplicaThread(place, broken, log)
    failing.start()
    try:
        await asyncio.wrap_future(failing.ready)
    except MeshError as error:
        assert error.code is Code.START_FAILED
    else:
        raise AssertionError
    await asyncio.wrap_future(failing.done)
    failing.stop()
    assert refuses(failing)


asyncio.run(main(Path(sys.argv[1])))
