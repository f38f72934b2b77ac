"""What may be said in logs, metrics and traces: a closed list of names, and for each what its values look like.

A name that is not here, or a value that does not fit its name, is not said. That is what keeps a prompt, a key, a
person's name or an address of a client out, whoever calls and however it fails: no rule takes free text. A value that a
client chose (a model's name) is only said when it is one of ours.

Names are OpenTelemetry's semantic conventions where there is one, and `mesh.*` otherwise. Never here: `gen_ai.input.*`,
`gen_ai.output.*`, `gen_ai.system_instructions`, `exception.message`, `exception.stacktrace`, `client.address`, `url.*`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import StrEnum

from mesh.errors import Code
from mesh.routing.explain import Outcome, Why
from mesh.types import Operation, ReplicaState, Role, TenantState, Transfer

Value = str | int | float | bool
Rule = Callable[[object], bool]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DOORS = frozenset({"http", "grpc", "peer"})
CODES = frozenset(Code) | {"ok", "cancelled"}
STATES = (
    frozenset(ReplicaState)
    | frozenset(TenantState)
    | {"degraded", "stopping", "down", "running", "stopped", "live", "cut", "failed"}
)
FAULTS = _words("encoding place tenant home signature epoch value cap older")
"""Why a record of policy does not count."""
LEVELS = frozenset({"info", "warning", "error"})
GRPC_STATUSES = _words(
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
)


class GenAiOperation(StrEnum):
    """`gen_ai.operation.name` of each operation, by the GenAI semantic conventions."""

    CHAT = "chat"
    TEXT_COMPLETION = "text_completion"
    EMBEDDINGS = "embeddings"


GEN_AI_OPERATIONS: Mapping[Operation, str] = {
    Operation.CHAT: GenAiOperation.CHAT.value,
    Operation.COMPLETIONS: GenAiOperation.TEXT_COMPLETION.value,
    Operation.EMBEDDINGS: GenAiOperation.EMBEDDINGS.value,
}


def one_of(values: Collection[str]) -> Rule:
    """Takes these words only."""
    words = frozenset(map(str, values))
    return lambda value: isinstance(value, str) and value in words


def shaped(pattern: str) -> Rule:
    """Takes text of a fixed, narrow shape."""
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def whole(value: object) -> bool:
    """Takes whole numbers that fit 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def quantity(value: object) -> bool:
    """Takes finite numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def flag(value: object) -> bool:
    """Takes true and false."""
    return isinstance(value, bool)


def error_name(value: object) -> bool:
    """Takes the name of an exception class that this process has loaded: no client can make one."""
    return isinstance(value, str) and (value in _ERROR_NAMES or value in _learn_error_names())


_ERROR_NAMES: set[str] = set()


def _learn_error_names() -> set[str]:
    _ERROR_NAMES.update(cls.__name__ for cls in _subclasses(BaseException))
    return _ERROR_NAMES


def _subclasses(root: type[BaseException]) -> Iterator[type[BaseException]]:
    pending, seen = [root], {root}
    while pending:
        cls = pending.pop()
        yield cls
        fresh = [child for child in type.__subclasses__(cls) if child not in seen]
        seen.update(fresh)
        pending.extend(fresh)


_REGION = shaped(r"(?:[a-z]{1,12}-){1,3}[0-9]{1,2}|-")
_ID: Mapping[str, Rule] = {
    "request_id": shaped(r"(?:req_)?[0-9a-f-]{16,40}"),
    "region": _REGION,
    "entry_region": _REGION,
    "to_region": _REGION,
    "home": _REGION,
    "jurisdiction": shaped(r"[A-Z]{2}"),
    "gateway": shaped(r"[a-z]{1,8}[0-9]{1,4}"),
    "replica": shaped(r"[0-9a-f]{16}"),
    "tenant": shaped(r"t_[a-z2-7]{16}"),
    "key_id": shaped(r"[0-9A-Za-z]{12}"),
    "trace_id": shaped(r"[0-9a-f]{32}"),
    "instance": shaped(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}"),
    # A place in code: a file of the mesh or of a package, and a line.
    "where": shaped(r"(?:[a-z0-9_]{1,40}/){0,8}[a-z0-9_]{1,60}\.py:[0-9]{1,6}"),
    "logger": lambda value: isinstance(value, str) and value in logging.root.manager.loggerDict,
}
_WORD: Mapping[str, Rule] = {
    "operation": one_of(list(Operation)),
    "door": one_of(DOORS),
    "code": one_of(CODES),
    "reason": one_of([*Why, *CODES]),
    "outcome": one_of(list(Outcome)),
    "role": one_of(list(Role)),
    "fault": one_of(FAULTS),
    "state": one_of(STATES),
    "transfer": one_of(list(Transfer)),
    "level": one_of(LEVELS),
    "grpc_status": one_of(GRPC_STATUSES),
    "error": error_name,
    "cause": error_name,
    "accelerator": one_of(("cpu", "cuda")),
    "store": one_of(("etcd", "sqlite", "postgresql")),
}
_WHOLE = _words(
    "pid port http_status exit_status signal count number dropped attempt attempts revision applied generation shard "
    "connections sessions tenants keys regions gateways replicas models tasks size_bytes limit_bytes prompt_tokens "
    "completion_tokens running queued slots queue_limit streams records batch line retries"
)
_QUANTITY = _words(
    "duration_s duration_ms wait_s timeout_s backoff_s age_s first_byte_s first_byte_ms lag_s kv_used round_trip_ms "
    "interval_s"
)
_FLAG = _words("ready live loaded stream began forwarded revoked resync compacted drained")


def log_rules(models: Collection[str]) -> dict[str, Rule]:
    """What a log line may hold.

    Args:
        models: The catalogue's ids: `model` takes these and no other word.
    """
    return {
        **_ID,
        **_WORD,
        **dict.fromkeys(_WHOLE, whole),
        **dict.fromkeys(_QUANTITY, quantity),
        **dict.fromkeys(_FLAG, flag),
        "model": one_of(models),
    }


def span_rules(models: Collection[str]) -> dict[str, Rule]:
    """What a span or a metric may hold: names by OpenTelemetry's conventions."""
    return {
        "gen_ai.operation.name": one_of(list(GenAiOperation)),
        "gen_ai.request.model": one_of(models),
        "gen_ai.provider.name": one_of(("mesh",)),
        "gen_ai.token.type": one_of(("input", "output")),
        "gen_ai.usage.input_tokens": whole,
        "gen_ai.usage.output_tokens": whole,
        "error.type": one_of(CODES),
        "mesh.code": one_of(CODES),
        "mesh.door": one_of(DOORS),
        "mesh.region": _REGION,
        "mesh.entry_region": _REGION,
        "mesh.to_region": _REGION,
        "mesh.jurisdiction": _ID["jurisdiction"],
        "mesh.request_id": _ID["request_id"],
        "mesh.replica": _ID["replica"],
        "mesh.policy.revision": whole,
        "mesh.attempt": whole,
        "mesh.stream": flag,
        "mesh.state": one_of(STATES),
        "mesh.fault": one_of(FAULTS),
        "mesh.reason": one_of([*Why, *CODES]),
    }


def is_said(rules: Mapping[str, Rule], name: str, value: object) -> bool:
    """Whether this name may be said with this value."""
    rule = rules.get(name)
    return rule is not None and rule(value)
