from mesh.v1 import classification_pb2 as _classification_pb2
from mesh.v1 import router_pb2 as _router_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MemberState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMBER_STATE_UNSPECIFIED: _ClassVar[MemberState]
    MEMBER_STATE_WAITING: _ClassVar[MemberState]
    MEMBER_STATE_DRAINING: _ClassVar[MemberState]
    MEMBER_STATE_ACKNOWLEDGED: _ClassVar[MemberState]
    MEMBER_STATE_LAPSED: _ClassVar[MemberState]
    MEMBER_STATE_TIMED_OUT: _ClassVar[MemberState]
MEMBER_STATE_UNSPECIFIED: MemberState
MEMBER_STATE_WAITING: MemberState
MEMBER_STATE_DRAINING: MemberState
MEMBER_STATE_ACKNOWLEDGED: MemberState
MEMBER_STATE_LAPSED: MemberState
MEMBER_STATE_TIMED_OUT: MemberState

class Tenant(_message.Message):
    __slots__ = ("tenant", "name", "home", "allowed", "transfer", "state", "revision", "label")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    name: str
    home: str
    allowed: _containers.RepeatedScalarFieldContainer[str]
    transfer: str
    state: str
    revision: int
    label: str
    def __init__(self, tenant: _Optional[str] = ..., name: _Optional[str] = ..., home: _Optional[str] = ..., allowed: _Optional[_Iterable[str]] = ..., transfer: _Optional[str] = ..., state: _Optional[str] = ..., revision: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class CreateTenantRequest(_message.Message):
    __slots__ = ("name", "allowed", "transfer", "label")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    allowed: _containers.RepeatedScalarFieldContainer[str]
    transfer: str
    label: str
    def __init__(self, name: _Optional[str] = ..., allowed: _Optional[_Iterable[str]] = ..., transfer: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class FindTenantRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class ListTenantsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTenantsResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Tenant]
    def __init__(self, items: _Optional[_Iterable[_Union[Tenant, _Mapping]]] = ...) -> None: ...

class SuspendTenantRequest(_message.Message):
    __slots__ = ("tenant", "patience")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    patience: Patience
    def __init__(self, tenant: _Optional[str] = ..., patience: _Optional[_Union[Patience, _Mapping]] = ...) -> None: ...

class ResumeTenantRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("tenant", "allowed", "drain_ms", "patience")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    DRAIN_MS_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    allowed: _containers.RepeatedScalarFieldContainer[str]
    drain_ms: int
    patience: Patience
    def __init__(self, tenant: _Optional[str] = ..., allowed: _Optional[_Iterable[str]] = ..., drain_ms: _Optional[int] = ..., patience: _Optional[_Union[Patience, _Mapping]] = ...) -> None: ...

class Patience(_message.Message):
    __slots__ = ("op_id", "strict", "timeout_ms", "receipt")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    op_id: str
    strict: bool
    timeout_ms: int
    receipt: bool
    def __init__(self, op_id: _Optional[str] = ..., strict: _Optional[bool] = ..., timeout_ms: _Optional[int] = ..., receipt: _Optional[bool] = ...) -> None: ...

class SetAuthorityRequest(_message.Message):
    __slots__ = ("tenant", "home_ms", "foreign_ms", "patience")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HOME_MS_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_MS_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    home_ms: int
    foreign_ms: int
    patience: Patience
    def __init__(self, tenant: _Optional[str] = ..., home_ms: _Optional[int] = ..., foreign_ms: _Optional[int] = ..., patience: _Optional[_Union[Patience, _Mapping]] = ...) -> None: ...

class SetLabelRequest(_message.Message):
    __slots__ = ("tenant", "label")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    label: str
    def __init__(self, tenant: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class SetTransferRequest(_message.Message):
    __slots__ = ("tenant", "transfer", "patience")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    transfer: str
    patience: Patience
    def __init__(self, tenant: _Optional[str] = ..., transfer: _Optional[str] = ..., patience: _Optional[_Union[Patience, _Mapping]] = ...) -> None: ...

class PrepareMoveRequest(_message.Message):
    __slots__ = ("tenant", "home", "name")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    home: str
    name: str
    def __init__(self, tenant: _Optional[str] = ..., home: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class LeaveHomeRequest(_message.Message):
    __slots__ = ("tenant", "new_home", "op_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NEW_HOME_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    new_home: str
    op_id: str
    def __init__(self, tenant: _Optional[str] = ..., new_home: _Optional[str] = ..., op_id: _Optional[str] = ...) -> None: ...

class LeaveHomeResponse(_message.Message):
    __slots__ = ("op_id", "revision")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    op_id: str
    revision: int
    def __init__(self, op_id: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class FinishMoveRequest(_message.Message):
    __slots__ = ("tenant", "patience")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    patience: Patience
    def __init__(self, tenant: _Optional[str] = ..., patience: _Optional[_Union[Patience, _Mapping]] = ...) -> None: ...

class MemberProgress(_message.Message):
    __slots__ = ("member", "region", "gateway", "state", "left_ms")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    member: str
    region: str
    gateway: str
    state: MemberState
    left_ms: int
    def __init__(self, member: _Optional[str] = ..., region: _Optional[str] = ..., gateway: _Optional[str] = ..., state: _Optional[_Union[MemberState, str]] = ..., left_ms: _Optional[int] = ...) -> None: ...

class ShrinkProgress(_message.Message):
    __slots__ = ("op_id", "tenant", "key", "members", "waited_ms", "done", "revision", "recovery_left_ms", "receipt")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    WAITED_MS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    op_id: str
    tenant: Tenant
    key: Key
    members: _containers.RepeatedCompositeFieldContainer[MemberProgress]
    waited_ms: int
    done: bool
    revision: int
    recovery_left_ms: int
    receipt: str
    def __init__(self, op_id: _Optional[str] = ..., tenant: _Optional[_Union[Tenant, _Mapping]] = ..., key: _Optional[_Union[Key, _Mapping]] = ..., members: _Optional[_Iterable[_Union[MemberProgress, _Mapping]]] = ..., waited_ms: _Optional[int] = ..., done: _Optional[bool] = ..., revision: _Optional[int] = ..., recovery_left_ms: _Optional[int] = ..., receipt: _Optional[str] = ...) -> None: ...

class PinStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShardNumber(_message.Message):
    __slots__ = ("home", "shard", "applied", "head")
    HOME_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    home: str
    shard: int
    applied: int
    head: int
    def __init__(self, home: _Optional[str] = ..., shard: _Optional[int] = ..., applied: _Optional[int] = ..., head: _Optional[int] = ...) -> None: ...

class DrainingTenant(_message.Message):
    __slots__ = ("tenant", "revision", "left_ms")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    revision: int
    left_ms: int
    def __init__(self, tenant: _Optional[str] = ..., revision: _Optional[int] = ..., left_ms: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("member", "region", "gateway", "grant_age_ms", "shards", "draining")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    GRANT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    member: str
    region: str
    gateway: str
    grant_age_ms: int
    shards: _containers.RepeatedCompositeFieldContainer[ShardNumber]
    draining: _containers.RepeatedCompositeFieldContainer[DrainingTenant]
    def __init__(self, member: _Optional[str] = ..., region: _Optional[str] = ..., gateway: _Optional[str] = ..., grant_age_ms: _Optional[int] = ..., shards: _Optional[_Iterable[_Union[ShardNumber, _Mapping]]] = ..., draining: _Optional[_Iterable[_Union[DrainingTenant, _Mapping]]] = ...) -> None: ...

class OpenShrink(_message.Message):
    __slots__ = ("op_id", "tenant", "revision", "waited_ms")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WAITED_MS_FIELD_NUMBER: _ClassVar[int]
    op_id: str
    tenant: str
    revision: int
    waited_ms: int
    def __init__(self, op_id: _Optional[str] = ..., tenant: _Optional[str] = ..., revision: _Optional[int] = ..., waited_ms: _Optional[int] = ...) -> None: ...

class PinStatusResponse(_message.Message):
    __slots__ = ("members", "open")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    open: _containers.RepeatedCompositeFieldContainer[OpenShrink]
    def __init__(self, members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., open: _Optional[_Iterable[_Union[OpenShrink, _Mapping]]] = ...) -> None: ...

class AttestDeadRequest(_message.Message):
    __slots__ = ("member",)
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    member: str
    def __init__(self, member: _Optional[str] = ...) -> None: ...

class AttestDeadResponse(_message.Message):
    __slots__ = ("member", "gateway")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    member: str
    gateway: str
    def __init__(self, member: _Optional[str] = ..., gateway: _Optional[str] = ...) -> None: ...

class ControlStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ControlStatusResponse(_message.Message):
    __slots__ = ("epoch", "compared", "went_back", "published", "recovery_left_ms")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    WENT_BACK_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    compared: bool
    went_back: bool
    published: bool
    recovery_left_ms: int
    def __init__(self, epoch: _Optional[int] = ..., compared: _Optional[bool] = ..., went_back: _Optional[bool] = ..., published: _Optional[bool] = ..., recovery_left_ms: _Optional[int] = ...) -> None: ...

class RecoverRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class RecoverProgress(_message.Message):
    __slots__ = ("tenants", "looked_at", "published", "narrowed", "keys_left_out", "unknown", "done")
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    LOOKED_AT_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    NARROWED_FIELD_NUMBER: _ClassVar[int]
    KEYS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    tenants: int
    looked_at: int
    published: int
    narrowed: _containers.RepeatedScalarFieldContainer[str]
    keys_left_out: _containers.RepeatedScalarFieldContainer[str]
    unknown: _containers.RepeatedScalarFieldContainer[str]
    done: bool
    def __init__(self, tenants: _Optional[int] = ..., looked_at: _Optional[int] = ..., published: _Optional[int] = ..., narrowed: _Optional[_Iterable[str]] = ..., keys_left_out: _Optional[_Iterable[str]] = ..., unknown: _Optional[_Iterable[str]] = ..., done: _Optional[bool] = ...) -> None: ...

class CreateKeyRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("tenant", "key_id", "key", "created_at", "revoked_at")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    key_id: str
    key: str
    created_at: str
    revoked_at: str
    def __init__(self, tenant: _Optional[str] = ..., key_id: _Optional[str] = ..., key: _Optional[str] = ..., created_at: _Optional[str] = ..., revoked_at: _Optional[str] = ...) -> None: ...

class ListKeysRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class ListKeysResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Key]
    def __init__(self, items: _Optional[_Iterable[_Union[Key, _Mapping]]] = ...) -> None: ...

class FindKeyRequest(_message.Message):
    __slots__ = ("key_id",)
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    def __init__(self, key_id: _Optional[str] = ...) -> None: ...

class RevokeKeyRequest(_message.Message):
    __slots__ = ("key_id", "patience")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    patience: Patience
    def __init__(self, key_id: _Optional[str] = ..., patience: _Optional[_Union[Patience, _Mapping]] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ("tenant", "from_s", "to_s")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    FROM_S_FIELD_NUMBER: _ClassVar[int]
    TO_S_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    from_s: int
    to_s: int
    def __init__(self, tenant: _Optional[str] = ..., from_s: _Optional[int] = ..., to_s: _Optional[int] = ...) -> None: ...

class UsageItem(_message.Message):
    __slots__ = ("region", "model", "requests", "refused", "prompt_tokens", "completion_tokens")
    REGION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    region: str
    model: str
    requests: int
    refused: int
    prompt_tokens: int
    completion_tokens: int
    def __init__(self, region: _Optional[str] = ..., model: _Optional[str] = ..., requests: _Optional[int] = ..., refused: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class UsageResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[UsageItem]
    def __init__(self, items: _Optional[_Iterable[_Union[UsageItem, _Mapping]]] = ...) -> None: ...

class DisclosuresRequest(_message.Message):
    __slots__ = ("tenant", "from_s", "to_s", "after")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    FROM_S_FIELD_NUMBER: _ClassVar[int]
    TO_S_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    from_s: int
    to_s: int
    after: Disclosure
    def __init__(self, tenant: _Optional[str] = ..., from_s: _Optional[int] = ..., to_s: _Optional[int] = ..., after: _Optional[_Union[Disclosure, _Mapping]] = ...) -> None: ...

class Disclosure(_message.Message):
    __slots__ = ("at_ms", "region", "jurisdiction", "key_id", "door", "request_id")
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    DOOR_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    at_ms: int
    region: str
    jurisdiction: str
    key_id: str
    door: str
    request_id: str
    def __init__(self, at_ms: _Optional[int] = ..., region: _Optional[str] = ..., jurisdiction: _Optional[str] = ..., key_id: _Optional[str] = ..., door: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DisclosuresResponse(_message.Message):
    __slots__ = ("items", "more")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Disclosure]
    more: bool
    def __init__(self, items: _Optional[_Iterable[_Union[Disclosure, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class ExplainRouteRequest(_message.Message):
    __slots__ = ("tenant", "model")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    model: str
    def __init__(self, tenant: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...
