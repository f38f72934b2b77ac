"""Makes gRPC calls from a namespace for a test that is elsewhere: grpc's own threads follow no test into one.

    python -m border.caller        (in a namespace; JSON lines on stdin and stdout)

    {"id", "target", "name"?, "ca", "pair"?, "method", "send": [base64], "turns"?, "metadata"?, "timeout_s", "stop_after"?}
    {"id", "code", "details", "initial", "trailing", "messages": [base64]}

Every call is a stream of bytes both ways: on the wire that is no other thing than a unary call. `turns`: each message
waits for an answer to the one before. `stop_after`: the call is cancelled after so many answers.
The value of a metadata field that ends in `-bin` is base64, both ways.
A line `{"id", "set_up": CONFIG}` makes the control store's users and roles, as the store's root.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mesh.tls import grpc_named_options, prepare_process

prepare_process(os.environ)

import grpc  # noqa: E402 - it reads the environment that was just set

Row = dict[str, Any]
AT_ONCE = 64


class Caller:
    """Its channels, one for each server and identity. Of any thread.

    Not grpc.aio: where a server refuses before the message has gone out, that tells of an internal error of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: dict[tuple[str | None, ...], grpc.Channel] = {}

    def _channel(self, asked: Mapping[str, Any]) -> grpc.Channel:
        pair = asked.get("pair")
        key = (asked["target"], asked.get("name"), asked["ca"], pair)
        with self._lock:
            if key not in self._channels:
                credentials = grpc.ssl_channel_credentials(
                    Path(asked["ca"]).read_bytes(),
                    *((Path(f"{pair}.key").read_bytes(), Path(f"{pair}.pem").read_bytes()) if pair else ()),
                )
                options: list[tuple[str, str | int]] = [
                    ("grpc.enable_http_proxy", 0),
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.max_send_message_length", -1),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                    *(grpc_named_options(asked["name"]) if asked.get("name") else ()),
                ]
                self._channels[key] = grpc.secure_channel(asked["target"], credentials, options=options)
            return self._channels[key]

    def rpc(self, asked: Mapping[str, Any]) -> Row:
        """One call, to its end."""
        messages: list[bytes] = []
        answered: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """Told of each answer, and of the end."""

        def requests() -> Iterator[bytes]:
            for n, data in enumerate(asked["send"]):
                if n and asked.get("turns") and not answered.get():
                    return
                yield base64.b64decode(data)

        call = self._channel(asked).stream_stream(asked["method"])(
            requests(), metadata=tuple(map(_field, asked.get("metadata", ()))), timeout=asked["timeout_s"]
        )
        try:
            for message in itertools.islice(call, asked.get("stop_after")):
                messages.append(message)
                answered.put(True)
        except grpc.RpcError:
            pass  # the code tells
        answered.put(False)
        if "stop_after" in asked:
            call.cancel()
        return {
            "code": call.code().name,
            "details": call.details(),
            "initial": _plain(call.initial_metadata()),
            "trailing": _plain(call.trailing_metadata()),
            "messages": [base64.b64encode(message).decode() for message in messages],
        }


def _field(pair: tuple[str, str]) -> tuple[str, str | bytes]:
    name, value = pair
    return name, base64.b64decode(value) if name.endswith("-bin") else value


def _plain(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[tuple[str, str]]:
    return [
        (name, base64.b64encode(value).decode() if isinstance(value, bytes) else value)
        for name, value in metadata or ()
    ]


async def set_up(config: str) -> Row:
    """What the supervisor of an embedded mesh does once its store runs."""
    from mesh.control.etcd import open_store_as_root
    from mesh.control.roles import set_up as set_up_roles
    from mesh.control.store import StoreError
    from mesh.runtime import SystemClock
    from mesh.settings import load

    settings = load(Path(config))
    async with open_store_as_root(settings.etcd, settings.pki, SystemClock()) as store:
        try:
            await set_up_roles(store, settings.regions)
        except StoreError as error:
            return {"code": type(error).__name__}
    return {"code": "OK"}


def main() -> None:
    caller, lock = Caller(), threading.Lock()

    def answer(asked: Mapping[str, Any]) -> None:
        try:
            row = asyncio.run(set_up(asked["set_up"])) if "set_up" in asked else caller.rpc(asked)
        except Exception as error:  # else whoever asked would wait in vain
            row = {"code": "CALLER_FAILED", "details": repr(error), "initial": [], "trailing": [], "messages": []}
        with lock:
            sys.stdout.write(json.dumps({"id": asked["id"]} | row) + "\n")
            sys.stdout.flush()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for line in sys.stdin:
            pool.submit(answer, json.loads(line))


if __name__ == "__main__":
    main()
