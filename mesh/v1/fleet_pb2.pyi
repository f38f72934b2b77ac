from mesh.v1 import classification_pb2 as _classification_pb2
from mesh.v1 import router_pb2 as _router_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_STARTING: _ClassVar[ReplicaState]
    REPLICA_STATE_READY: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINING: _ClassVar[ReplicaState]
    REPLICA_STATE_DEAD: _ClassVar[ReplicaState]
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_STARTING: ReplicaState
REPLICA_STATE_READY: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState
REPLICA_STATE_DEAD: ReplicaState

class ReplicaReport(_message.Message):
    __slots__ = ("number", "replica", "address", "pid", "models", "heard")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    number: int
    replica: str
    address: str
    pid: int
    models: _containers.RepeatedCompositeFieldContainer[ModelReport]
    heard: int
    def __init__(self, number: _Optional[int] = ..., replica: _Optional[str] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelReport, _Mapping]]] = ..., heard: _Optional[int] = ...) -> None: ...

class ModelReport(_message.Message):
    __slots__ = ("model", "state", "running", "queued", "slots", "queue_limit", "kv_used")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LIMIT_FIELD_NUMBER: _ClassVar[int]
    KV_USED_FIELD_NUMBER: _ClassVar[int]
    model: str
    state: ReplicaState
    running: int
    queued: int
    slots: int
    queue_limit: int
    kv_used: float
    def __init__(self, model: _Optional[str] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., running: _Optional[int] = ..., queued: _Optional[int] = ..., slots: _Optional[int] = ..., queue_limit: _Optional[int] = ..., kv_used: _Optional[float] = ...) -> None: ...

class ReplicaSeen(_message.Message):
    __slots__ = ("number", "message", "holds", "fences", "process", "alone")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    FENCES_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    number: int
    message: int
    holds: _containers.RepeatedCompositeFieldContainer[Hold]
    fences: _containers.RepeatedCompositeFieldContainer[Fence]
    process: int
    alone: bool
    def __init__(self, number: _Optional[int] = ..., message: _Optional[int] = ..., holds: _Optional[_Iterable[_Union[Hold, _Mapping]]] = ..., fences: _Optional[_Iterable[_Union[Fence, _Mapping]]] = ..., process: _Optional[int] = ..., alone: _Optional[bool] = ...) -> None: ...

class Hold(_message.Message):
    __slots__ = ("tenant", "ping", "left_ms", "moves", "shard_number")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    SHARD_NUMBER_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    ping: int
    left_ms: int
    moves: int
    shard_number: int
    def __init__(self, tenant: _Optional[str] = ..., ping: _Optional[int] = ..., left_ms: _Optional[int] = ..., moves: _Optional[int] = ..., shard_number: _Optional[int] = ...) -> None: ...

class Fence(_message.Message):
    __slots__ = ("tenant", "moves", "shard_number", "key_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    SHARD_NUMBER_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    moves: int
    shard_number: int
    key_id: str
    def __init__(self, tenant: _Optional[str] = ..., moves: _Optional[int] = ..., shard_number: _Optional[int] = ..., key_id: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GatewayStatus(_message.Message):
    __slots__ = ("gateway", "pid", "policy_loaded", "policy_live", "replicas", "policy_applied", "store_went_back")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    POLICY_LOADED_FIELD_NUMBER: _ClassVar[int]
    POLICY_LIVE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    POLICY_APPLIED_FIELD_NUMBER: _ClassVar[int]
    STORE_WENT_BACK_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    pid: int
    policy_loaded: bool
    policy_live: bool
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaReport]
    policy_applied: int
    store_went_back: bool
    def __init__(self, gateway: _Optional[str] = ..., pid: _Optional[int] = ..., policy_loaded: _Optional[bool] = ..., policy_live: _Optional[bool] = ..., replicas: _Optional[_Iterable[_Union[ReplicaReport, _Mapping]]] = ..., policy_applied: _Optional[int] = ..., store_went_back: _Optional[bool] = ...) -> None: ...

class ExplainForRequest(_message.Message):
    __slots__ = ("tenant", "model")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    model: str
    def __init__(self, tenant: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...
