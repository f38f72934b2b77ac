"""Every field of every message says what it holds, and what crosses a border is numbers."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

import mesh.v1
from mesh.v1 import border_pb2, classification_pb2
from mesh.v1.classification_pb2 import DataClass

FILES: list[FileDescriptor] = sorted(
    (
        importlib.import_module(f"mesh.v1.{module.name}").DESCRIPTOR
        for module in pkgutil.iter_modules(mesh.v1.__path__)
        if module.name.endswith("_pb2")
    ),
    key=lambda file: file.name,
)


def messages_of(file: FileDescriptor) -> Iterator[Descriptor]:
    stack = list(file.message_types_by_name.values())
    while stack:
        message = stack.pop()
        yield message
        stack.extend(message.nested_types)


def class_of(field: FieldDescriptor) -> int:
    return field.GetOptions().Extensions[classification_pb2.data_class]


def reachable(*messages: Descriptor) -> set[Descriptor]:
    """These messages and all that their fields can hold."""
    found: dict[str, Descriptor] = {}
    stack = list(messages)
    while stack:
        message = stack.pop()
        if message.full_name not in found:
            found[message.full_name] = message
            stack.extend(field.message_type for field in message.fields if field.message_type is not None)
    return set(found.values())


FIELDS = [
    pytest.param(file, field, id=field.full_name)
    for file in FILES
    for message in messages_of(file)
    for field in message.fields
]


def test_the_walk_finds_what_there_is() -> None:
    assert {file.name for file in FILES} >= {
        f"mesh/v1/{name}.proto"
        for name in ("admin", "border", "classification", "control", "fleet", "inference", "router")
    }
    assert len(FIELDS) > 150


@pytest.mark.parametrize(("file", "field"), FIELDS)
def test_every_field_has_a_class(file: FileDescriptor, field: FieldDescriptor) -> None:
    assert class_of(field) != DataClass.DATA_CLASS_UNSPECIFIED


@pytest.mark.parametrize(("file", "field"), FIELDS)
def test_only_inference_holds_content(file: FileDescriptor, field: FieldDescriptor) -> None:
    if class_of(field) == DataClass.DATA_CLASS_CONTENT:
        assert file.name == "mesh/v1/inference.proto"


@pytest.mark.parametrize(("file", "field"), FIELDS)
def test_no_message_holds_any_other_message(file: FileDescriptor, field: FieldDescriptor) -> None:
    """`Any` and `Struct` can carry what no class speaks of."""
    if field.message_type is not None:
        assert field.message_type.file.name.startswith("mesh/v1/")


@pytest.mark.parametrize("method", list(border_pb2.DESCRIPTOR.services_by_name["Border"].methods), ids=lambda m: m.name)
def test_what_crosses_a_border_is_numbers(method) -> None:
    numbers = {
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_ENUM,
        FieldDescriptor.TYPE_MESSAGE,
    }
    seen = reachable(method.input_type, method.output_type)
    assert len(seen) == 3
    for message in seen:
        for field in message.fields:
            assert field.type in numbers, field.full_name
            assert class_of(field) in (DataClass.DATA_CLASS_AGGREGATE, DataClass.DATA_CLASS_CONFIG), field.full_name


def test_a_field_that_holds_content_makes_its_holder_content() -> None:
    """A message-typed field is at least as sensitive as what can be in it, except where it is a step of a call."""
    content = {
        message.full_name
        for file in FILES
        for message in messages_of(file)
        if any(class_of(field) == DataClass.DATA_CLASS_CONTENT for field in message.fields)
    }
    for file in FILES:
        for message in messages_of(file):
            for field in message.fields:
                if field.message_type is not None and field.message_type.full_name in content:
                    assert class_of(field) == DataClass.DATA_CLASS_CONTENT, field.full_name
