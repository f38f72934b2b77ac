"""Only what a tenant's home signed counts: whole, for this epoch, with a key that is valid now."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from trust_lab import HOMES, policy_key_of, signer_of, trust_in

from mesh.control import layout, records
from mesh.control.records import Fault, HomeTrust, KeyRecord, RecordError, TenantRecord, Trust, tenant_id
from mesh.control.signing import Signer, fields, listed
from mesh.embedded.configuration import catalogue
from mesh.errors import Code, MeshError
from mesh.policy.bundle import Spans, TenantKey, TenantPolicy
from mesh.settings import PolicyKey
from mesh.types import Jurisdiction, KeyId, RegionId, Revision, TenantState, Transfer
from mesh.v1 import control_pb2 as pb

HOME = RegionId("vn-1")
TRUST = trust_in()
NONCE = bytes(range(16))
VN, SG, JP = (Jurisdiction(code) for code in ("VN", "SG", "JP"))
POLICY = TenantPolicy(
    tenant=tenant_id(HOME, NONCE),
    home=HOME,
    home_jurisdiction=VN,
    revision=Revision(7),
    state=TenantState.ACTIVE,
    allowed=frozenset({VN, SG}),
    transfer=Transfer.NEVER,
    authority=Spans(home_s=60, foreign_s=6),
    authority_before={SG: 9.0},
    out_since={JP: Revision(5)},
    drain_s=5,
    label="acme",
)
RECORD = TenantRecord(policy=POLICY, genesis=HOME, nonce=NONCE)
KEY = KeyRecord(
    key=TenantKey(key_id=KeyId("K" * 12), tenant=POLICY.tenant, hash="sha256$00", revoked=True),
    home=HOME,
    created_revision=Revision(2),
    revision=Revision(4),
    created_s=11,
    revoked_s=12,
)


def fault_of(value: bytes, trust: Trust = TRUST) -> Fault | None:
    at = layout.parse(layout.policy_key(HOME, POLICY.tenant))
    assert isinstance(at, layout.PolicyKey)
    try:
        records.decode_tenant(at, value, trust)
    except RecordError as error:
        return error.fault
    return None


def key_fault_of(value: bytes, trust: Trust = TRUST) -> Fault | None:
    at = layout.parse(layout.key_key(HOME, POLICY.tenant, KEY.key.key_id))
    assert isinstance(at, layout.KeyKey)
    try:
        records.decode_key(at, value, trust)
    except RecordError as error:
        return error.fault
    return None


def tampered(wire: Message, field: FieldDescriptor) -> list[Message]:
    """The record with one field changed, in the ways that the field allows."""
    made: list[Message] = []

    def add(change: object) -> None:
        copy = type(wire)()
        copy.CopyFrom(wire)
        if field.is_repeated:
            copy.ClearField(field.name)
            getattr(copy, field.name).extend(change)
        else:
            setattr(copy, field.name, change)
        made.append(copy)

    now = getattr(wire, field.name)
    if field.is_repeated:
        add([*now][:-1] if len(now) else [_more(field)])
        add([*now, _more(field)])
    elif field.type == FieldDescriptor.TYPE_STRING:
        add(now + "x")
        add("")
    elif field.type == FieldDescriptor.TYPE_BYTES:
        add(bytes([now[0] ^ 1]) + now[1:])
        add(b"")
    elif field.type == FieldDescriptor.TYPE_ENUM:
        add(3 - now)
    else:
        add(now + 1)
    return made


def _more(field: FieldDescriptor) -> object:
    if field.type == FieldDescriptor.TYPE_STRING:
        return "ZZ"
    kind = getattr(pb, field.message_type.name)
    return kind(tenant="ZZ") if kind is pb.MoveStatement else kind(jurisdiction="ZZ")


@pytest.mark.parametrize("field", list(pb.PolicyRecord.DESCRIPTOR.fields), ids=lambda field: field.name)
def test_a_tenants_record_with_any_field_changed_is_none(field: FieldDescriptor) -> None:
    wire = pb.PolicyRecord.FromString(records.encode_tenant(RECORD, signer_of(HOME), 1))
    assert fault_of(wire.SerializeToString()) is None
    for other in tampered(wire, field):
        assert fault_of(other.SerializeToString()) is not None
        # Also where it is made to look right elsewhere, it was not signed like that.
        assert records._signed_policy(other) != records._signed_policy(wire) or field.name == "signature"


@pytest.mark.parametrize("field", list(pb.KeyRecord.DESCRIPTOR.fields), ids=lambda field: field.name)
def test_a_keys_record_with_any_field_changed_is_none(field: FieldDescriptor) -> None:
    wire = pb.KeyRecord.FromString(records.encode_key(KEY, signer_of(HOME), 1))
    assert key_fault_of(wire.SerializeToString()) is None
    for other in tampered(wire, field):
        assert key_fault_of(other.SerializeToString()) is not None
        assert records._signed_key(other) != records._signed_key(wire) or field.name == "signature"


@given(st.integers(0, 2000), st.integers(1, 255))
def test_no_byte_can_be_changed_without_being_noticed(place: int, flip: int) -> None:
    """What decodes to a record is the record that was signed, whatever was done to its bytes."""
    value = bytearray(records.encode_tenant(RECORD, signer_of(HOME), 1))
    value[place % len(value)] ^= flip
    at = layout.parse(layout.policy_key(HOME, POLICY.tenant))
    assert isinstance(at, layout.PolicyKey)
    with suppress(RecordError):
        assert records.decode_tenant(at, bytes(value), TRUST) == RECORD


def test_another_homes_signature_is_none() -> None:
    for other in (home for home in HOMES if home != HOME):
        assert fault_of(records.encode_tenant(RECORD, signer_of(other), 1)) is Fault.SIGNATURE
        assert key_fault_of(records.encode_key(KEY, signer_of(other), 1)) is Fault.SIGNATURE
    assert fault_of(records.encode_tenant(RECORD, signer_of(HOME, "k2"), 1)) is Fault.SIGNATURE, "an unknown key"
    assert fault_of(records.encode_tenant(RECORD, Signer(Ed25519PrivateKey.generate(), "k1"), 1)) is Fault.SIGNATURE


def test_a_signature_of_one_thing_is_none_of_another() -> None:
    wire = pb.PolicyRecord.FromString(records.encode_tenant(RECORD, signer_of(HOME), 1))
    key = pb.KeyRecord.FromString(records.encode_key(KEY, signer_of(HOME), 1))
    wire.signature, key.signature = key.signature, wire.signature
    assert fault_of(wire.SerializeToString()) is Fault.SIGNATURE
    assert key_fault_of(key.SerializeToString()) is Fault.SIGNATURE


def test_another_epochs_record_is_none() -> None:
    for epoch in (1, 3):
        assert fault_of(records.encode_tenant(RECORD, signer_of(HOME), epoch), trust_in(epoch=2)) is Fault.EPOCH
        assert key_fault_of(records.encode_key(KEY, signer_of(HOME), epoch), trust_in(epoch=2)) is Fault.EPOCH
    assert fault_of(records.encode_tenant(RECORD, signer_of(HOME), 2), trust_in(epoch=2)) is None


def test_what_exceeds_the_cap_is_none() -> None:
    value = records.encode_tenant(RECORD, signer_of(HOME), 1)
    assert fault_of(value, trust_in(cap_s=60)) is None
    assert fault_of(value, trust_in(cap_s=59.999)) is Fault.CAP
    older = replace(RECORD, policy=replace(POLICY, authority_before={SG: 60.001}))
    assert fault_of(records.encode_tenant(older, signer_of(HOME), 1), trust_in(cap_s=60)) is Fault.CAP
    nothing = replace(RECORD, policy=replace(POLICY, authority=Spans(home_s=60, foreign_s=0)))
    assert fault_of(records.encode_tenant(nothing, signer_of(HOME), 1)) is Fault.CAP


@pytest.mark.parametrize(
    "change",
    [
        {"allowed": frozenset()},
        {"allowed": frozenset({Jurisdiction("vn")})},
        {"revision": Revision(0)},
        {"out_since": {SG: Revision(3)}},
        {"out_since": {JP: Revision(8)}},
        {"out_since": {JP: Revision(0)}},
        {"authority_before": {Jurisdiction("singapore"): 3.0}},
    ],
)
def test_what_contradicts_itself_is_none_though_signed(change: dict[str, object]) -> None:
    policy = replace(POLICY, **change)  # pyright: ignore[reportArgumentType]
    assert fault_of(records.encode_tenant(replace(RECORD, policy=policy), signer_of(HOME), 1)) is Fault.VALUE


def test_a_home_that_no_region_file_knows_signs_nothing() -> None:
    value = records.encode_tenant(RECORD, signer_of(HOME), 1)
    unknown = replace(TRUST, homes={home: trust for home, trust in TRUST.homes.items() if home != HOME})
    assert fault_of(value, unknown) is Fault.HOME
    keyless = replace(TRUST, homes={**TRUST.homes, HOME: HomeTrust(jurisdiction=VN, keys=())})
    assert fault_of(value, keyless) is Fault.SIGNATURE


def test_a_key_counts_on_its_days_and_several_do() -> None:
    def trust(now: str, *keys: PolicyKey) -> Trust:
        day = date.fromisoformat(now)
        now_s = (day - date(1970, 1, 1)).days * 86_400 + 43_200
        return replace(trust_in(now_s=now_s), homes={HOME: HomeTrust(jurisdiction=VN, keys=keys)})

    first = policy_key_of(HOME, "k1", valid_until=date(2026, 3, 31))
    second = policy_key_of(HOME, "k2", valid_from=date(2026, 3, 1))
    old, new = (records.encode_tenant(RECORD, signer_of(HOME, key), 1) for key in ("k1", "k2"))
    cases = [("2026-02-28", None, Fault.SIGNATURE), ("2026-03-01", None, None), ("2026-03-31", None, None)]
    for day, one, two in [*cases, ("2026-04-01", Fault.SIGNATURE, None)]:
        assert (fault_of(old, trust(day, first, second)), fault_of(new, trust(day, first, second))) == (one, two), day


@given(st.lists(st.binary(max_size=3), max_size=4), st.lists(st.binary(max_size=3), max_size=4))
def test_different_fields_are_different_bytes(one: list[bytes], other: list[bytes]) -> None:
    assert (fields(b"d", *one) == fields(b"d", *other)) == (one == other)
    assert (fields(b"d", listed(one), b"") == fields(b"d", listed(other), b"")) == (one == other)


def test_a_private_key_is_the_regions_own_and_read_by_its_owner_only(tmp_path: Path) -> None:
    known = catalogue().regions[HOME]
    path = tmp_path / HOME / "policy.key"
    path.parent.mkdir()

    def refused(region: object = None) -> str:
        with pytest.raises(MeshError) as caught:
            Signer.load(tmp_path, region or replace(known, policy_keys=(policy_key_of(HOME),)))  # pyright: ignore[reportArgumentType]
        assert caught.value.code is Code.INVALID_SETTINGS
        return str(caught.value)

    assert "has no 'policy_keys'" in refused(known)
    assert "No such file" in refused()
    foreign: list[Ed25519PrivateKey | object] = [Ed25519PrivateKey.generate(), generate_private_key(SECP256R1())]
    for key, words in zip(foreign, ("its public part is not among", "not an Ed25519"), strict=True):
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # pyright: ignore[reportAttributeAccessIssue]
        path.write_bytes(pem)
        path.chmod(0o640)
        assert "others may read it" in refused()
        path.chmod(0o600)
        assert words in refused()
    path.write_bytes(b"x")
    assert "not an Ed25519" in refused()
