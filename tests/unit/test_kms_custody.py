"""What time does to keys, and what never leaves their seal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honmaru.core.errors import HonmaruError, NotFound
from honmaru.core.sessions import Session
from honmaru.security.crypto import ciphertexts
from honmaru.services.kms import Custodian, Kms, Vault
from honmaru.testing.keep import Keep, quick_directory, session

DAY = 86400.0
LONG = bool(os.environ.get("HONMARU_LONG"))
SECRET, LOW = session("SECRET"), session("UNCLASSIFIED")


class Service:
    """The operations of a Kms over a keep, with IAM allowing everything."""

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.kms = Kms(Vault(keep.keyring, keep.ids), keep.ledger)
        self.custodian = Custodian(
            keep.guard, Vault(keep.keyring, keep.ids), keep.ledger, keep.clock, keep.ids,
            partition="aws-iso", region="us-iso-east-1",
        )  # fmt: skip

    def __call__(self, operation: str, who: Session = SECRET, **request: Any) -> Any:
        call = self.keep.call(who, operation, service="kms")
        return getattr(self.kms, operation)(call, request)

    def key(self, who: Session = SECRET, **request: Any) -> str:
        return str(self("create_key", who, **request)["KeyMetadata"]["KeyId"])


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with quick_directory() as directory:
        keep = Keep(directory)
        yield Service(keep)
        keep.close()


def events(service: Service, name: str) -> list[Any]:
    return [one for log in service.keep.ledger.entries.values() for one in log if one["eventName"] == name]


def test_deletion_destroys_when_its_time_has_come_and_says_so(service: Service) -> None:
    key = service.key()
    blob = service("encrypt", KeyId=key, Plaintext=b"gone with the key")["CiphertextBlob"]
    service("create_alias", AliasName="alias/doomed", TargetKeyId=key)
    service("schedule_key_deletion", KeyId=key, PendingWindowInDays=7)
    service.keep.clock.seconds += 7 * DAY - 1
    assert service.custodian.step() == 0
    assert service("describe_key", KeyId=key)["KeyMetadata"]["KeyState"] == "PendingDeletion"
    service.keep.clock.seconds += 1
    with pytest.raises(NotFound):  # from that instant, before the custodian came
        service("cancel_key_deletion", KeyId=key)
    assert service.custodian.step() == 1
    with pytest.raises(HonmaruError) as error:
        service("decrypt", CiphertextBlob=blob)
    assert error.value.code == "InvalidCiphertextException"
    assert not list(service.keep.guard.records(SECRET, "kms").iterate("material", prefix=key))
    assert service.keep.guard.records(SECRET, "kms").get("alias", "alias/doomed") is None
    entry = events(service, "DeleteKey")[-1]
    assert entry["resources"][0]["ARN"].endswith(key) and entry["honmaru"]["details"]["shredded"] is True
    assert service.custodian.step() == 0


def test_automatic_rotation_comes_with_time_and_opens_the_old(service: Service) -> None:
    key = service.key(LOW)
    service("enable_key_rotation", LOW, KeyId=key, RotationPeriodInDays=90)
    blob = service("encrypt", LOW, KeyId=key, Plaintext=b"old")["CiphertextBlob"]
    service.keep.clock.seconds += 90 * DAY
    assert service.custodian.step() == 1
    assert service.custodian.step() == 0
    newer = service("encrypt", LOW, KeyId=key, Plaintext=b"new")["CiphertextBlob"]
    assert newer[20:52] != blob[20:52]
    assert service("decrypt", LOW, CiphertextBlob=blob)["Plaintext"] == b"old"
    assert service("decrypt", SECRET, CiphertextBlob=newer)["Plaintext"] == b"new"
    assert service("list_key_rotations", LOW, KeyId=key)["Rotations"][0]["RotationType"] == "AUTOMATIC"


def test_what_the_platform_made_cannot_be_changed(service: Service) -> None:
    key = service("describe_key", KeyId="alias/aws/s3")["KeyMetadata"]
    assert key["KeyManager"] == "AWS"
    for operation in ("schedule_key_deletion", "disable_key", "rotate_key_on_demand"):
        with pytest.raises(HonmaruError) as error:
            service(operation, KeyId=key["KeyId"])
        assert error.value.code == "UnsupportedOperationException"
    assert service("describe_key", KeyId="alias/aws/s3")["KeyMetadata"]["KeyId"] == key["KeyId"]
    assert service("describe_key", LOW, KeyId="alias/aws/s3")["KeyMetadata"]["KeyId"] != key["KeyId"]


@settings(max_examples=20_000 if LONG else 150, deadline=None)
@given(st.data())
def test_a_changed_bit_is_found(service: Service, data: st.DataObject) -> None:
    context = {"a": "b"}
    cache: dict[str, bytes] = service.__dict__.setdefault("flips", {})
    if not cache:
        cache["key"] = service.key().encode()
        made = service("encrypt", KeyId=cache["key"].decode(), Plaintext=b"x" * 40, EncryptionContext=context)
        cache["blob"] = made["CiphertextBlob"]
    blob = bytearray(cache["blob"])
    bit = data.draw(st.integers(0, len(blob) * 8 - 1))
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(HonmaruError) as error:
        service("decrypt", CiphertextBlob=bytes(blob), EncryptionContext=context)
    assert error.value.code == "InvalidCiphertextException"


@settings(max_examples=20_000 if LONG else 100, deadline=None)
@given(context=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
       other=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))  # fmt: skip
def test_only_the_same_context_opens(context: dict[str, str], other: dict[str, str]) -> None:
    material = b"m" * 32
    blob = ciphertexts.seal(material, "0" * 32, "0" * 64, "label", context, b"x", os.urandom)
    found = ciphertexts.read(blob)
    assert ciphertexts.unseal(material, found, context) == b"x"
    if other != context:
        with pytest.raises(ciphertexts.Unreadable):
            ciphertexts.unseal(material, found, other)


def test_a_wrapped_key_with_a_changed_bit_does_not_open(service: Service) -> None:
    key = service.key()
    records = service.keep.guard.records(SECRET, "kms")
    record = next(records.iterate("material", prefix=key))
    wrapped = bytearray.fromhex(record.body["wrapped"])
    for bit in range(0, len(wrapped) * 8, 1 if LONG else 37):
        changed = bytearray(wrapped)
        changed[bit // 8] ^= 1 << bit % 8
        record = records.update(record, {"wrapped": changed.hex()})
        with pytest.raises(HonmaruError):
            service("encrypt", KeyId=key, Plaintext=b"x")
    records.update(record, {"wrapped": wrapped.hex()})
    service("encrypt", KeyId=key, Plaintext=b"x")


def test_material_of_another_key_does_not_open(service: Service) -> None:
    records = service.keep.guard.records(SECRET, "kms")
    one, other = (next(records.iterate("material", prefix=service.key())) for _ in range(2))
    records.update(one, other.body)
    with pytest.raises(HonmaruError):
        service("encrypt", KeyId=one.name.partition("/")[0], Plaintext=b"x")


def test_concurrent_changes_of_one_key_all_count(service: Service) -> None:
    key = service.key()

    def tag(number: int) -> None:
        service("tag_resource", KeyId=key, Tags=[{"TagKey": f"k{number}", "TagValue": "v"}])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(tag, range(18)))
    assert len(service("list_resource_tags", KeyId=key)["Tags"]) == 18
