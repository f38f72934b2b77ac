from mesh.v1 import classification_pb2 as _classification_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TenantState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENANT_STATE_UNSPECIFIED: _ClassVar[TenantState]
    TENANT_STATE_ACTIVE: _ClassVar[TenantState]
    TENANT_STATE_SUSPENDED: _ClassVar[TenantState]

class Transfer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSFER_UNSPECIFIED: _ClassVar[Transfer]
    TRANSFER_NEVER: _ClassVar[Transfer]
    TRANSFER_WITHIN_ALLOWED: _ClassVar[Transfer]

class KeyState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEY_STATE_UNSPECIFIED: _ClassVar[KeyState]
    KEY_STATE_ACTIVE: _ClassVar[KeyState]
    KEY_STATE_REVOKED: _ClassVar[KeyState]
TENANT_STATE_UNSPECIFIED: TenantState
TENANT_STATE_ACTIVE: TenantState
TENANT_STATE_SUSPENDED: TenantState
TRANSFER_UNSPECIFIED: Transfer
TRANSFER_NEVER: Transfer
TRANSFER_WITHIN_ALLOWED: Transfer
KEY_STATE_UNSPECIFIED: KeyState
KEY_STATE_ACTIVE: KeyState
KEY_STATE_REVOKED: KeyState

class Span(_message.Message):
    __slots__ = ("jurisdiction", "ms")
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    MS_FIELD_NUMBER: _ClassVar[int]
    jurisdiction: str
    ms: int
    def __init__(self, jurisdiction: _Optional[str] = ..., ms: _Optional[int] = ...) -> None: ...

class Out(_message.Message):
    __slots__ = ("jurisdiction", "revision")
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    jurisdiction: str
    revision: int
    def __init__(self, jurisdiction: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class PolicyRecord(_message.Message):
    __slots__ = ("tenant", "genesis", "nonce", "home", "revision", "state", "allowed", "transfer", "moves", "shard", "upstreams", "authority_home_ms", "authority_foreign_ms", "authority_before", "out_since", "drain_ms", "epoch", "signed_by", "signature", "chain", "left", "label")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    UPSTREAMS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_HOME_MS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FOREIGN_MS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_BEFORE_FIELD_NUMBER: _ClassVar[int]
    OUT_SINCE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_MS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SIGNED_BY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    genesis: str
    nonce: bytes
    home: str
    revision: int
    state: TenantState
    allowed: _containers.RepeatedScalarFieldContainer[str]
    transfer: Transfer
    moves: int
    shard: int
    upstreams: _containers.RepeatedScalarFieldContainer[str]
    authority_home_ms: int
    authority_foreign_ms: int
    authority_before: _containers.RepeatedCompositeFieldContainer[Span]
    out_since: _containers.RepeatedCompositeFieldContainer[Out]
    drain_ms: int
    epoch: int
    signed_by: str
    signature: bytes
    chain: _containers.RepeatedCompositeFieldContainer[MoveStatement]
    left: bool
    label: str
    def __init__(self, tenant: _Optional[str] = ..., genesis: _Optional[str] = ..., nonce: _Optional[bytes] = ..., home: _Optional[str] = ..., revision: _Optional[int] = ..., state: _Optional[_Union[TenantState, str]] = ..., allowed: _Optional[_Iterable[str]] = ..., transfer: _Optional[_Union[Transfer, str]] = ..., moves: _Optional[int] = ..., shard: _Optional[int] = ..., upstreams: _Optional[_Iterable[str]] = ..., authority_home_ms: _Optional[int] = ..., authority_foreign_ms: _Optional[int] = ..., authority_before: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., out_since: _Optional[_Iterable[_Union[Out, _Mapping]]] = ..., drain_ms: _Optional[int] = ..., epoch: _Optional[int] = ..., signed_by: _Optional[str] = ..., signature: _Optional[bytes] = ..., chain: _Optional[_Iterable[_Union[MoveStatement, _Mapping]]] = ..., left: _Optional[bool] = ..., label: _Optional[str] = ...) -> None: ...

class MoveStatement(_message.Message):
    __slots__ = ("tenant", "moves", "home", "new_home", "revision", "first", "epoch", "made_s", "signed_by", "signature")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    NEW_HOME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MADE_S_FIELD_NUMBER: _ClassVar[int]
    SIGNED_BY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    moves: int
    home: str
    new_home: str
    revision: int
    first: bytes
    epoch: int
    made_s: int
    signed_by: str
    signature: bytes
    def __init__(self, tenant: _Optional[str] = ..., moves: _Optional[int] = ..., home: _Optional[str] = ..., new_home: _Optional[str] = ..., revision: _Optional[int] = ..., first: _Optional[bytes] = ..., epoch: _Optional[int] = ..., made_s: _Optional[int] = ..., signed_by: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class KeyRecord(_message.Message):
    __slots__ = ("tenant", "key_id", "home", "hash", "state", "revision", "created_s", "revoked_s", "created_revision", "moves", "epoch", "signed_by", "signature")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    REVOKED_S_FIELD_NUMBER: _ClassVar[int]
    CREATED_REVISION_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SIGNED_BY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    key_id: str
    home: str
    hash: str
    state: KeyState
    revision: int
    created_s: int
    revoked_s: int
    created_revision: int
    moves: int
    epoch: int
    signed_by: str
    signature: bytes
    def __init__(self, tenant: _Optional[str] = ..., key_id: _Optional[str] = ..., home: _Optional[str] = ..., hash: _Optional[str] = ..., state: _Optional[_Union[KeyState, str]] = ..., revision: _Optional[int] = ..., created_s: _Optional[int] = ..., revoked_s: _Optional[int] = ..., created_revision: _Optional[int] = ..., moves: _Optional[int] = ..., epoch: _Optional[int] = ..., signed_by: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class HeadRecord(_message.Message):
    __slots__ = ("changed", "op")
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    changed: str
    op: str
    def __init__(self, changed: _Optional[str] = ..., op: _Optional[str] = ...) -> None: ...

class OpRecord(_message.Message):
    __slots__ = ("revision", "barrier", "asked")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BARRIER_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    barrier: Barrier
    asked: bytes
    def __init__(self, revision: _Optional[int] = ..., barrier: _Optional[_Union[Barrier, _Mapping]] = ..., asked: _Optional[bytes] = ...) -> None: ...

class RecoveryRecord(_message.Message):
    __slots__ = ("epoch", "complete")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    complete: bool
    def __init__(self, epoch: _Optional[int] = ..., complete: _Optional[bool] = ...) -> None: ...

class Removed(_message.Message):
    __slots__ = ("jurisdiction", "sent")
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    jurisdiction: str
    sent: bool
    def __init__(self, jurisdiction: _Optional[str] = ..., sent: _Optional[bool] = ...) -> None: ...

class Barrier(_message.Message):
    __slots__ = ("span_ms", "removed", "key_id", "drain_ms", "lowered")
    SPAN_MS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    DRAIN_MS_FIELD_NUMBER: _ClassVar[int]
    LOWERED_FIELD_NUMBER: _ClassVar[int]
    span_ms: int
    removed: _containers.RepeatedCompositeFieldContainer[Removed]
    key_id: str
    drain_ms: int
    lowered: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, span_ms: _Optional[int] = ..., removed: _Optional[_Iterable[_Union[Removed, _Mapping]]] = ..., key_id: _Optional[str] = ..., drain_ms: _Optional[int] = ..., lowered: _Optional[_Iterable[str]] = ...) -> None: ...

class GrantRecord(_message.Message):
    __slots__ = ("gateway", "attempt", "last")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    attempt: bytes
    last: bytes
    def __init__(self, gateway: _Optional[str] = ..., attempt: _Optional[bytes] = ..., last: _Optional[bytes] = ...) -> None: ...

class AckRecord(_message.Message):
    __slots__ = ("applied", "draining")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    applied: _containers.RepeatedCompositeFieldContainer[AppliedShard]
    draining: _containers.RepeatedCompositeFieldContainer[Draining]
    def __init__(self, applied: _Optional[_Iterable[_Union[AppliedShard, _Mapping]]] = ..., draining: _Optional[_Iterable[_Union[Draining, _Mapping]]] = ...) -> None: ...

class AppliedShard(_message.Message):
    __slots__ = ("home", "shard", "number")
    HOME_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    home: str
    shard: int
    number: int
    def __init__(self, home: _Optional[str] = ..., shard: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("tenant", "revision", "left_ms")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    revision: int
    left_ms: int
    def __init__(self, tenant: _Optional[str] = ..., revision: _Optional[int] = ..., left_ms: _Optional[int] = ...) -> None: ...
