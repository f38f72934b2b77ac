from mesh.v1 import classification_pb2 as _classification_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_SERVE: _ClassVar[Outcome]
    OUTCOME_FORWARD: _ClassVar[Outcome]
    OUTCOME_REFUSE: _ClassVar[Outcome]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_TAKEN: _ClassVar[Verdict]
    VERDICT_REJECTED: _ClassVar[Verdict]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_SERVE: Outcome
OUTCOME_FORWARD: Outcome
OUTCOME_REFUSE: Outcome
VERDICT_UNSPECIFIED: Verdict
VERDICT_TAKEN: Verdict
VERDICT_REJECTED: Verdict

class ResolveRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("region", "jurisdiction", "http", "grpc")
    REGION_FIELD_NUMBER: _ClassVar[int]
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    GRPC_FIELD_NUMBER: _ClassVar[int]
    region: str
    jurisdiction: str
    http: str
    grpc: str
    def __init__(self, region: _Optional[str] = ..., jurisdiction: _Optional[str] = ..., http: _Optional[str] = ..., grpc: _Optional[str] = ...) -> None: ...

class ResolveResponse(_message.Message):
    __slots__ = ("here", "served_here", "allowed", "policy_revision")
    HERE_FIELD_NUMBER: _ClassVar[int]
    SERVED_HERE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    POLICY_REVISION_FIELD_NUMBER: _ClassVar[int]
    here: str
    served_here: bool
    allowed: _containers.RepeatedCompositeFieldContainer[Endpoint]
    policy_revision: int
    def __init__(self, here: _Optional[str] = ..., served_here: _Optional[bool] = ..., allowed: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., policy_revision: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class RouteReason(_message.Message):
    __slots__ = ("region", "verdict", "code", "text")
    REGION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    region: str
    verdict: Verdict
    code: str
    text: str
    def __init__(self, region: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., code: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("tenant", "model", "at", "outcome", "region", "code", "reasons")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    model: str
    at: str
    outcome: Outcome
    region: str
    code: str
    reasons: _containers.RepeatedCompositeFieldContainer[RouteReason]
    def __init__(self, tenant: _Optional[str] = ..., model: _Optional[str] = ..., at: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., region: _Optional[str] = ..., code: _Optional[str] = ..., reasons: _Optional[_Iterable[_Union[RouteReason, _Mapping]]] = ...) -> None: ...
