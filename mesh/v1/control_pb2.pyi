from mesh.v1 import classification_pb2 as _classification_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
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

class PolicyRecord(_message.Message):
    __slots__ = ("tenant", "genesis", "nonce", "home", "revision", "state", "allowed", "transfer")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    genesis: str
    nonce: bytes
    home: str
    revision: int
    state: TenantState
    allowed: _containers.RepeatedScalarFieldContainer[str]
    transfer: Transfer
    def __init__(self, tenant: _Optional[str] = ..., genesis: _Optional[str] = ..., nonce: _Optional[bytes] = ..., home: _Optional[str] = ..., revision: _Optional[int] = ..., state: _Optional[_Union[TenantState, str]] = ..., allowed: _Optional[_Iterable[str]] = ..., transfer: _Optional[_Union[Transfer, str]] = ...) -> None: ...

class KeyRecord(_message.Message):
    __slots__ = ("tenant", "key_id", "home", "hash", "state", "revision", "created_s", "revoked_s", "created_revision")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    REVOKED_S_FIELD_NUMBER: _ClassVar[int]
    CREATED_REVISION_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    key_id: str
    home: str
    hash: str
    state: KeyState
    revision: int
    created_s: int
    revoked_s: int
    created_revision: int
    def __init__(self, tenant: _Optional[str] = ..., key_id: _Optional[str] = ..., home: _Optional[str] = ..., hash: _Optional[str] = ..., state: _Optional[_Union[KeyState, str]] = ..., revision: _Optional[int] = ..., created_s: _Optional[int] = ..., revoked_s: _Optional[int] = ..., created_revision: _Optional[int] = ...) -> None: ...

class HeadRecord(_message.Message):
    __slots__ = ("changed",)
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: str
    def __init__(self, changed: _Optional[str] = ...) -> None: ...

class OpRecord(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...
