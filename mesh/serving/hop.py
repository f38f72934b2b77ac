"""One hop: a gateway's request in, a run of frames out (see `mesh.content.frames`).

Everything that can be refused is refused before it queues: a hop without a lease before its body is asked for, then
in the order of the contract: JSON, model, operation, fields and context, capacity. When the gateway closes the
connection, this task is cancelled and its sequences end; when its lease ends it is cut as well, and says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence

from mesh.content.frames import CONTENT_TYPE, FrameKind, encode
from mesh.errors import Code, MeshError
from mesh.http1 import Request
from mesh.ports import Clock
from mesh.serving import openai_json, render_json, render_protobuf
from mesh.serving.answers import AnswerLine, Choice, Renderer
from mesh.serving.engine import Delta, Engine, FinishReason, Stream, TokenLogprob
from mesh.serving.hosted import ModelHost
from mesh.serving.leases import Leases, Stay
from mesh.serving.parameters import read_call, read_model
from mesh.serving.prepare import Work, off_loop, prepare_chat, prepare_completion, prepare_embedding
from mesh.serving.protobuf import Parcel
from mesh.serving.requests import Call, ChatCall, CompletionCall, EmbeddingCall, Options
from mesh.telemetry import Log
from mesh.tls import identity_of
from mesh.types import OPERATIONS_OF, KeyId, Operation, RegionId, Role, TenantId, Usage

MAX_CALL_S = 300.0
"""No call may take longer, whatever its gateway says."""
PROGRESS_EVERY_S = 0.25
_PREFIX = "/v1/hop/"
_OPERATIONS = {_PREFIX + operation.value: operation for operation in Operation}
_JSON, _PROTOBUF = b"application/json", b"application/x-protobuf"
_HEAD = ((b"content-type", CONTENT_TYPE), (b"cache-control", b"no-store"))


class Hop:
    """Handles the requests of one replica process."""

    def __init__(
        self, region: RegionId, host: ModelHost, leases: Leases, max_body_bytes: int, clock: Clock, log: Log
    ) -> None:
        """A handler.

        Args:
            region: Only this region's gateways may call.
            host: The models.
            leases: How long what is called for may be worked on.
            max_body_bytes: As the doors have it.
            clock: For deadlines and `created`.
            log: Takes faults of our own.
        """
        self._region = region
        self._host = host
        self._leases = leases
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._log = log

    async def handle(self, request: Request) -> None:
        """Answers one request."""
        caller = identity_of(request.peer.certificate)
        if caller is None or caller.role is not Role.GATEWAY or caller.region != self._region:
            await request.respond(403, [])
            return
        answer = _Answer(request)
        try:
            async with self._clock.timeout(_timeout_s(request)):
                await self._admit(request, answer)
                return
        except TimeoutError:
            error = MeshError(Code.DEADLINE_EXCEEDED)
        except MeshError as found:
            error = found
        except ExceptionGroup as group:
            error = self._first(group)
        except Exception as bug:  # noqa: BLE001 - the outermost edge: its text may hold content, so only its class is kept
            error = self._bug(bug)
        await answer.fail(error)

    async def _admit(self, request: Request, answer: _Answer) -> None:
        """Serves it as long as its lease lasts."""
        operation = _OPERATIONS.get(request.path)
        if operation is None or request.method != "POST":
            raise MeshError(Code.NOT_FOUND)
        key_id = _header(request, b"mesh-key")
        stay = self._leases.admit(
            request.header(b"mesh-lease"),
            TenantId(_header(request, b"mesh-tenant")),
            KeyId(key_id) if key_id else None,
        )
        scope = asyncio.timeout(None)
        stay.on_end = lambda: scope.reschedule(0)
        try:
            async with scope:
                await self._serve(request, operation, stay, answer)
        except TimeoutError:
            if not scope.expired():
                raise
            cut = True
        else:
            cut = False
        finally:
            stay.close()
        if cut:
            raise MeshError(Code.POLICY_STALE)

    async def _serve(self, request: Request, operation: Operation, stay: Stay, answer: _Answer) -> None:
        body = await request.body(self._max_body_bytes)
        stay.check()
        try:
            call, engine = await self._read(request, operation, body)
        finally:
            body[:] = bytes(len(body))
        model = _header(request, b"mesh-model")
        if isinstance(call, EmbeddingCall):
            await self._embed(call, engine, stay, model, answer, json_=_is_json(request))
            return
        work = await (prepare_chat if isinstance(call, ChatCall) else prepare_completion)(call, engine)  # pyright: ignore[reportArgumentType]
        stay.check()
        await _Generation(work, self._renderer(request, call, model), call.options, answer, self._clock).run(
            engine, stay
        )

    async def _read(self, request: Request, operation: Operation, body: bytearray) -> tuple[Call, Engine]:
        streamed = request.header(b"mesh-stream") == b"1"
        parcel: Parcel | None = None
        document: Mapping[str, object] = {}
        if _is_json(request):
            document = await off_loop(len(body), lambda: openai_json.decode(body))
            model = read_model(document)
        elif request.header(b"content-type") == _PROTOBUF:
            parcel = await off_loop(len(body), lambda: Parcel(operation, body))
            model = parcel.model
        else:
            raise MeshError(Code.UNSUPPORTED_MEDIA_TYPE)
        if model != _header(request, b"mesh-model"):
            raise MeshError(Code.INVALID_PARAMETER, param="model", hint="It must be the model that was routed by.")
        engine = self._host.take(model)
        if operation not in OPERATIONS_OF[engine.kind]:
            raise MeshError(Code.UNSUPPORTED_OPERATION, param="model")

        def read() -> Call:
            return read_call(operation, document if parcel is None else parcel.document(stream=streamed))

        call = await off_loop(len(body), read)
        if not isinstance(call, EmbeddingCall) and call.options.stream is not streamed:
            raise MeshError(Code.INVALID_PARAMETER, param="stream", hint="It must be what was routed by.")
        return call, engine

    def _renderer(self, request: Request, call: ChatCall | CompletionCall, model: str) -> Renderer:
        chat = isinstance(call, ChatCall)
        line = AnswerLine(
            id=("chatcmpl-" if chat else "cmpl-") + _header(request, b"mesh-request-id"),
            created_s=int(self._clock.wall_s()),
            model=model,
        )
        usage, logprobs = call.options.include_usage, call.options.top_logprobs is not None
        if _is_json(request):
            kind = render_json.JsonChat if chat else render_json.JsonCompletion
            return kind(line, logprobs=logprobs, include_usage=usage)
        return (render_protobuf.ProtobufChat if chat else render_protobuf.ProtobufCompletion)(line, include_usage=usage)

    async def _embed(
        self, call: EmbeddingCall, engine: Engine, stay: Stay, model: str, answer: _Answer, *, json_: bool
    ) -> None:
        inputs = await prepare_embedding(call, engine)
        stats = engine.stats()
        # What fits goes at once. A list longer than the engine could ever hold goes in runs, so that it is served.
        run = len(inputs) if len(inputs) <= stats.slots + stats.queue_limit else max(1, stats.slots)
        vectors: list[Sequence[float]] = []
        for start in range(0, len(inputs), run):
            part = inputs[start : start + run]
            stay.check()
            vectors += await engine.embed(part, stay)
            answer.usage = Usage(answer.usage.prompt_tokens + sum(map(len, part)), 0)
            if len(vectors) < len(inputs):
                await answer.send(FrameKind.PROGRESS)
        if json_:
            body = render_json.render_embeddings(model, vectors, answer.usage, as_base64=call.base64)
        else:
            body = render_protobuf.render_embeddings(model, vectors, answer.usage)
        await answer.finish([body])

    def _first(self, group: ExceptionGroup) -> MeshError:
        """Several sequences of a call fail together when their engine dies: the first says it all."""
        for error in group.exceptions:
            if isinstance(error, MeshError):
                return error
        return self._bug(group.exceptions[0])

    def _bug(self, error: BaseException) -> MeshError:
        self._log.error("replica.bug", error=type(error).__name__)
        return MeshError(Code.INTERNAL_ERROR)


class _Answer:
    """Writes frames. `usage` is that of the call so far, and goes with each."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._cut = False
        self.usage = Usage()

    async def send(self, kind: FrameKind, *payloads: bytes) -> None:
        """One frame for each payload, or one without any. Waits while the gateway is slower than we are."""
        if not self._request.begun:
            await self._request.begin(200, _HEAD)
        await self._write(b"".join(encode(kind, self.usage, payload) for payload in payloads or (b"",)))

    async def finish(self, payloads: Sequence[bytes]) -> None:
        """The last data and the end."""
        frames = [encode(FrameKind.DATA, self.usage, payload) for payload in payloads]
        await self._end(b"".join(frames) + encode(FrameKind.END, self.usage))

    async def fail(self, error: MeshError) -> None:
        """The end of an answer that is not whole."""
        if self._cut or (self._request.begun and not self._request.in_pieces):
            raise error  # a piece may be half out, or its last one is on its way: nothing may follow it
        said: dict[str, str] = {"code": error.code.value}
        if error.param is not None:
            said["param"] = error.param
        if error.hint:
            said["hint"] = error.hint
        await self._end(encode(FrameKind.ERROR, self.usage, json.dumps(said).encode()))

    async def _end(self, frames: bytes) -> None:
        if not self._request.begun:
            await self._request.respond(200, _HEAD, frames)
            return
        await self._write(frames)
        await self._request.end()

    async def _write(self, frames: bytes) -> None:
        self._cut = True  # until it is out: a deadline can end the wait in the middle of a piece
        await self._request.write(frames)
        self._cut = False


class _Generation:
    """A generating call: its sequences are read side by side and written one after the other, as they come."""

    def __init__(self, work: Work, renderer: Renderer, options: Options, answer: _Answer, clock: Clock) -> None:
        self._work = work
        self._renderer = renderer
        self._stream = options.stream
        self._answer = answer
        self._clock = clock
        self._tokens = [0] * len(work.generations)
        self._texts: list[list[str]] = [[] for _ in work.generations]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in work.generations]
        self._finished: list[FinishReason | None] = [None] * len(work.generations)
        self._prompts: set[int] = set()
        self._writing = asyncio.Lock()
        self._told_s: float | None = None

    async def run(self, engine: Engine, stay: Stay) -> None:
        streams = engine.submit(self._work.generations, stay)
        try:
            if len(streams) == 1:
                await self._read(0, streams[0])
            else:
                async with asyncio.TaskGroup() as tasks:
                    for index, stream in enumerate(streams):
                        tasks.create_task(self._read(index, stream), name="replica-sequence")
        finally:
            for stream in streams:
                stream.cancel()
        if self._stream:
            await self._answer.finish(self._renderer.close(self._answer.usage))
        else:
            await self._answer.finish([self._renderer.whole(self._choices(), self._answer.usage)])

    async def _read(self, index: int, stream: Stream) -> None:
        async for delta in stream:
            # While one sequence waits for a slow gateway the others wait here, and the engine merges their tokens.
            async with self._writing:
                await self._take(index, delta)
        if self._finished[index] is None:
            raise MeshError(Code.REPLICA_FAILED)

    async def _take(self, index: int, delta: Delta) -> None:
        self._tokens[index] = delta.tokens
        self._finished[index] = delta.finish
        prompt = index // self._work.n
        prompt_tokens = self._answer.usage.prompt_tokens
        if prompt not in self._prompts:  # it was read: its tokens are used from now on
            self._prompts.add(prompt)
            prompt_tokens += self._work.prompt_tokens(prompt)
        self._answer.usage = Usage(prompt_tokens, sum(self._tokens))
        if not self._stream:
            self._texts[index].append(delta.text)
            self._logprobs[index].extend(delta.logprobs)
        elif payloads := self._renderer.delta(index, delta):
            self._told_s = self._clock.now_s()
            await self._answer.send(FrameKind.DATA, *payloads)
            return
        now_s = self._clock.now_s()
        if self._told_s is None or now_s - self._told_s >= PROGRESS_EVERY_S:
            self._told_s = now_s
            await self._answer.send(FrameKind.PROGRESS)

    def _choices(self) -> list[Choice]:
        return [
            Choice(text="".join(texts), logprobs=tuple(logprobs), finish=finish or FinishReason.STOP)
            for texts, logprobs, finish in zip(self._texts, self._logprobs, self._finished, strict=True)
        ]


def _timeout_s(request: Request) -> float:
    text = request.header(b"mesh-timeout-ms") or b""
    return min(int(text) / 1000, MAX_CALL_S) if text.isdigit() and len(text) <= 9 else MAX_CALL_S


def _is_json(request: Request) -> bool:
    return request.header(b"content-type") == _JSON


def _header(request: Request, name: bytes) -> str:
    return (request.header(name) or b"").decode("utf-8", "replace")
