"""Clients that call and never stop: each lane makes one call after the other, and writes down how it went.

    python -m border.load FILE        (in a namespace; one JSON object on stdin; ends with stdin)

    {"ca", "pair"?, "lanes": [{"pause_s", "served_pause_s"?, "calls": [{"tenant", "key", "place", "address", "door", "name"?, "kind", "model", "tokens"}]}]}

`door`: "http", "grpc", or "peer": then it is no client but a gateway that has stopped asking whether it may send on;
`key` is the key's id there, `name` the server's, and `pair` the sender's certificate. `kind`: "chat" answers at once,
"stream" token by token, "embed" is an embedding. Each call is a line of FILE, see `border.promise`. Times are those of CLOCK_BOOTTIME, which all namespaces of a machine share. `sent` is read before the
first byte of the headers goes out, all others after what they tell of: so a lane that is late accuses nobody.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import ssl
import sys
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from border.calls import now_s
from border.namespaces import GRPC, HTTP, PEER

from mesh.tls import prepare_process

prepare_process(os.environ)

import grpc  # noqa: E402 - it reads the environment that was just set
from google.protobuf.message import Message  # noqa: E402

from mesh.transport.grpc_errors import from_rpc_error  # noqa: E402
from mesh.v1 import inference_pb2 as pb  # noqa: E402

CONNECT_S, CALL_S = 3.0, 12.0
TEXT = "Tell me a long story."
PATHS = {"chat": "/v1/chat/completions", "stream": "/v1/chat/completions", "embed": "/v1/embeddings"}
METHODS = {"chat": "Chat", "stream": "ChatStream", "embed": "Embed"}
_CODE = re.compile(rb'"code":\s*"([a-z_]+)"')
_PLACE = re.compile(rb"\r\nmesh-jurisdiction: ([A-Z]+)", re.IGNORECASE)
Row = dict[str, Any]


class Http:
    """One client at HTTP doors, a connection for each call."""

    port = HTTP

    def __init__(self, ca: Path, pair: Path | None = None) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.load_verify_locations(ca)
        if pair is not None:
            self.context.load_cert_chain(f"{pair}.pem", f"{pair}.key")

    def call(self, asked: Row, row: Row) -> None:
        """One call; `row` gets what is seen of it."""
        try:
            plain = socket.create_connection((asked["address"], self.port), timeout=CONNECT_S)
        except OSError:
            row.update(sent=now_s(), code="unreachable")
            return
        plain.settimeout(CALL_S)
        try:
            with self.context.wrap_socket(plain, server_hostname=asked.get("name", asked["address"])) as stream:
                self._ask(stream, asked, row)
        except TimeoutError:
            row["code"] = "late"
        except OSError:  # a broken connection
            row["code"] = "broken"
        row.setdefault("sent", now_s())

    def _ask(self, stream: ssl.SSLSocket, asked: Row, row: Row) -> None:
        data = json.dumps(_body(asked)).encode()
        lines = [
            f"POST {PATHS[asked['kind']]} HTTP/1.1",
            "Host: mesh",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
            f"Authorization: Bearer {asked['key']}",
            f"mesh-timeout-ms: {int(CALL_S * 1000)}",
        ]
        row["sent"] = now_s()
        stream.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        held, row["code"] = b"", "broken"
        while piece := stream.recv(1 << 16):
            at = now_s()
            held += piece
            if "status" not in row and b"\r\n\r\n" in held:
                row["status"], place = int(held[9:12]), _PLACE.search(held)
                if row["status"] == 200 and place is not None:
                    row["served_in"] = place[1].decode()
            if row.get("status") == 200 and (b'"content":' in piece or asked["kind"] != "stream"):
                row["tokens"].append(at)
        error = _CODE.search(held)
        if error is not None:
            row["code"] = error[1].decode()
        elif row.get("status") == 200 and (b"[DONE]" in held if asked["kind"] == "stream" else held.endswith(b"}")):
            row["code"] = "ok"


class Peer(Http):
    """A gateway of another country that sends parcels on, whatever is permitted."""

    port = PEER

    def _ask(self, stream: ssl.SSLSocket, asked: Row, row: Row) -> None:
        data = json.dumps(_body(asked)).encode()
        lines = [
            "POST /v1/hop/chat HTTP/1.1",
            f"Host: {asked['name']}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
            f"mesh-request-id: r_{secrets.token_hex(12)}",
            f"mesh-tenant: {asked['tenant']}",
            f"mesh-key: {asked['key']}",
            f"mesh-model: {asked['model']}",
            "mesh-stream: 0",
            f"mesh-timeout-ms: {int(CALL_S * 1000)}",
        ]
        row["sent"] = now_s()
        stream.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        held, row["code"] = b"", "broken"
        while piece := stream.recv(1 << 16):
            held += piece
        # Its frames: an error names its code, and where there is data a model has answered.
        error = _CODE.search(held)
        if error is not None:
            row["code"] = error[1].decode()
        elif b'"choices"' in held:
            row.update(code="ok", served_in=asked["place"])
            row["tokens"].append(now_s())


class Grpc:
    """One client at gRPC doors, a channel for each."""

    def __init__(self, ca: Path) -> None:
        self._credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        self._channels: dict[str, grpc.Channel] = {}

    def call(self, asked: Row, row: Row) -> None:
        """One call; `row` gets what is seen of it."""
        channel = self._channels.get(asked["address"]) or self._open(asked["address"])
        request = _request(asked)
        row["sent"] = now_s()
        call = channel.unary_stream(f"/mesh.v1.Inference/{METHODS[asked['kind']]}")(
            request.SerializeToString(), metadata=(("authorization", f"Bearer {asked['key']}"),), timeout=CALL_S
        )
        try:
            for _ in call:
                row["tokens"].append(now_s())
            row["code"] = "ok"
        except grpc.RpcError as error:
            row["code"] = from_rpc_error(error).code.value
        if row["tokens"]:
            row["served_in"] = dict(call.initial_metadata() or ()).get("mesh-jurisdiction")

    def _open(self, address: str) -> grpc.Channel:
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        channel = self._channels[address] = grpc.secure_channel(f"{address}:{GRPC}", self._credentials, options=options)
        return channel


def _request(asked: Row) -> Message:
    if asked["kind"] == "embed":
        return pb.EmbeddingRequest(model=asked["model"], input=[pb.Input(text=TEXT)])
    return pb.ChatRequest(
        model=asked["model"], messages=[pb.Message(role="user", content=TEXT)], max_tokens=asked["tokens"]
    )


def _body(asked: Row) -> Row:
    if asked["kind"] == "embed":
        return {"model": asked["model"], "input": TEXT}
    body = {"model": asked["model"], "messages": [{"role": "user", "content": TEXT}], "max_tokens": asked["tokens"]}
    return body | ({"stream": True} if asked["kind"] == "stream" else {})


def lane(own: Row, doors: dict[str, Http | Grpc], write: Any, over: threading.Event) -> None:
    """One client: call after call, until it is over."""
    while True:
        for asked in own["calls"]:
            shown = {name: asked[name] for name in ("tenant", "place", "door", "kind", "model")}
            row: Row = {"do": "call", **shown, "code": "broken", "served_in": None, "tokens": []}
            doors[asked["door"]].call(asked, row)
            row["end"] = now_s()
            write(row)
            if over.wait(own.get("served_pause_s", own["pause_s"]) if row["code"] == "ok" else own["pause_s"]):
                return


def _or_all_end(client: Future[None]) -> None:
    """A client that fails would be a silent one: then none goes on."""
    error = client.exception()
    if error is not None:
        traceback.print_exception(error)
        os._exit(1)


def main() -> None:
    asked, over, lock = json.loads(sys.stdin.readline()), threading.Event(), threading.Lock()
    ca = Path(asked["ca"])
    os.nice(-10)  # whoever is late to read would say that a place was late to end
    with Path(sys.argv[1]).open("a", buffering=1) as file:

        def write(row: Row) -> None:
            with lock:
                file.write(json.dumps(row) + "\n")

        with ThreadPoolExecutor(len(asked["lanes"])) as pool:
            for one in asked["lanes"]:
                doors: dict[str, Http | Grpc] = {"http": Http(ca), "grpc": Grpc(ca)}
                if "pair" in asked:
                    doors["peer"] = Peer(ca, Path(asked["pair"]))
                client = pool.submit(lane, one, doors, write, over)
                client.add_done_callback(_or_all_end)
            sys.stdin.read()
            over.set()


if __name__ == "__main__":
    main()
