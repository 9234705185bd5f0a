"""Versions of objects: stacks of versions against a plain model of what S3 documents; paging, labels, conditions."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore import xform_name

from honmaru.api.models import ServiceModels
from honmaru.core.errors import AccessDenied, HonmaruError
from honmaru.core.sessions import Session
from honmaru.gateway.permissions import questions, target_problems
from honmaru.security.calls import Call
from honmaru.security.guard import GuardedChange
from honmaru.services.s3 import contents
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.events import ObjectEvent
from honmaru.services.s3.provider import S3
from honmaru.services.s3.requests import check_write_conditions
from honmaru.testing.keep import Keep, SeededIds, Upload, quick_directory, session

U, S, TS = (session(marking) for marking in ("UNCLASSIFIED", "SECRET", "TOP SECRET"))


@dataclass
class Client:
    """Calls operations of S3 by their AWS names as one session; the clock moves with each call."""

    keep: Keep
    s3: S3
    who: Session
    asked: list[str] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    last: Call | None = None

    def __call__(self, operation: str, /, headers: Mapping[str, str] | None = None, **request: Any) -> Any:
        self.keep.clock.seconds += 1
        self.last = self.keep.call(self.who, operation, headers=headers, authorizer=self._authorize)
        return getattr(self.s3, xform_name(operation))(self.last, {"Bucket": "bucket", **request})

    def _authorize(self, _: Session, action: str, resource: str, context: Mapping[str, Any]) -> None:
        self.asked.append(action)
        if action in self.denied:
            raise AccessDenied("Access Denied")

    def put(self, key: str, content: bytes = b"", **request: Any) -> str | None:
        version: str | None = self("PutObject", Key=key, Body=Upload(content), **request)["VersionId"]
        return version

    def get(self, key: str, **request: Any) -> bytes:
        return b"".join(self("GetObject", Key=key, **request)["Body"])

    def delete(self, key: str, **request: Any) -> tuple[str | None, bool | None]:
        answer = self("DeleteObject", Key=key, **request)
        return answer["VersionId"], answer["DeleteMarker"]

    def versioning(self, status: str) -> None:
        self("PutBucketVersioning", VersioningConfiguration={"Status": status})

    def listed(self, **request: Any) -> list[tuple[str, str, bool, bool]]:
        """(key, version id, latest, is a marker) of every line of a list, read in pages."""
        lines: list[tuple[str, str, bool, bool]] = []
        place: dict[str, Any] = {}
        while True:
            page = self("ListObjectVersions", **request, **place)
            found = [(one, False) for one in page["Versions"] or ()] + [
                (one, True) for one in page["DeleteMarkers"] or ()
            ]
            order = {id(one): number for number, (one, _) in enumerate(found)}
            found.sort(key=lambda pair: (pair[0]["Key"], -pair[0]["LastModified"].timestamp(), order[id(pair[0])]))
            lines += [(one["Key"], one["VersionId"], one["IsLatest"], marker) for one, marker in found]
            assert len(found) + len(page["CommonPrefixes"] or ()) <= page["MaxKeys"]
            if not page["IsTruncated"]:
                return lines
            place = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}


@pytest.fixture
def keep() -> Iterator[Keep]:
    with quick_directory() as directory:
        made = Keep(directory)
        yield made
        made.close()


@pytest.fixture
def clients(keep: Keep) -> Callable[[Session], Client]:
    s3 = S3(keep.ids, BucketCommits())
    return lambda who: Client(keep, s3, who)


@pytest.fixture
def strangers(keep: Keep) -> Callable[[Session], Client]:
    """Clients that share the store and no lock, as those of several processes do."""
    return lambda who: Client(keep, S3(keep.ids, BucketCommits()), who)


@pytest.fixture
def client(clients: Callable[[Session], Client]) -> Client:
    made = clients(S)
    made("CreateBucket")
    made.versioning("Enabled")
    return made


def refused(code: str, attempt: Callable[[], object]) -> HonmaruError:
    with pytest.raises(HonmaruError) as fault:
        attempt()
    assert fault.value.code == code, fault.value
    return fault.value


def blobs_on_disk(keep: Keep) -> int:
    return len(list(keep.blob_store.paths("")))


def test_a_bucket_says_whether_it_keeps_versions(clients: Callable[[Session], Client]) -> None:
    client = clients(S)
    client("CreateBucket")
    assert client("GetBucketVersioning")["Status"] is None
    assert client.put("k") is None and client("HeadObject", Key="k")["VersionId"] is None
    for status in ("Enabled", "Suspended", "Enabled"):
        client.versioning(status)
        assert client("GetBucketVersioning")["Status"] == status
    refused("IllegalVersioningConfigurationException", lambda: client.versioning("Off"))
    enabled = {"VersioningConfiguration": {"Status": "Enabled"}}
    refused("NotImplemented", lambda: client("PutBucketVersioning", **enabled, MFA="serial 123456"))
    refused("NotImplemented", lambda: client("PutBucketVersioning", VersioningConfiguration={"MFADelete": "Enabled"}))


def test_an_overwrite_keeps_the_older_version(client: Client, keep: Keep) -> None:
    first, second = client.put("k", b"1", Metadata={"n": "1"}), client.put("k", b"2")
    assert first is not None and second is not None and first != second and second < first
    assert client.get("k") == b"2" and client.get("k", VersionId=first) == b"1"
    head = client("HeadObject", Key="k", VersionId=first)
    assert head["VersionId"] == first and head["Metadata"] == {"n": "1"}
    assert client.listed() == [("k", second, True, False), ("k", first, False, False)]
    assert blobs_on_disk(keep) == 2


def test_a_delete_marker_hides_a_key_and_gives_way_again(client: Client, keep: Keep) -> None:
    version = client.put("k", b"1")
    marker, made = client.delete("k")
    assert made and marker is not None
    refused("NoSuchKey", lambda: client.get("k"))
    assert client.last is not None
    assert client.last.response_headers == {"x-amz-delete-marker": "true", "x-amz-version-id": marker}
    assert client("ListObjectsV2")["KeyCount"] == 0
    fault = refused("MethodNotAllowed", lambda: client.get("k", VersionId=marker))
    assert fault.members["ResourceType"] == "DeleteMarker"
    assert client.last.response_headers["Allow"] == "DELETE"
    assert client.listed() == [("k", marker, True, True), ("k", version, False, False)]
    refused("BucketNotEmpty", lambda: client("DeleteBucket"))
    assert client.delete("k", VersionId=marker) == (marker, True)
    assert client.get("k") == b"1"
    assert client.delete("k", VersionId=version) == (version, None)
    assert blobs_on_disk(keep) == 0 and client.listed() == []
    assert client.delete("never")[1] is True  # a marker for a key that never was, as S3 makes it
    client.delete("never", VersionId=client.listed()[0][1])
    client("DeleteBucket")


def test_ids_that_are_not_there_or_cannot_be(client: Client) -> None:
    version = client.put("k", b"1")
    for operation in ("GetObject", "HeadObject", "GetObjectTagging"):
        refused("NoSuchVersion", lambda operation=operation: client(operation, Key="k", VersionId="0" * 32))
        refused("NoSuchVersion", lambda operation=operation: client(operation, Key="other", VersionId=version))
        refused("NoSuchVersion", lambda operation=operation: client(operation, Key="k", VersionId="null"))
        refused("InvalidArgument", lambda operation=operation: client(operation, Key="k", VersionId="../x"))
    assert client.delete("k", VersionId="0" * 32) == ("0" * 32, None) and client.get("k") == b"1"
    refused("InvalidArgument", lambda: client.delete("k", VersionId="x"))


def test_the_version_null(clients: Callable[[Session], Client], keep: Keep) -> None:
    client = clients(S)
    client("CreateBucket")
    client.put("k", b"before")
    client.versioning("Enabled")
    assert client("HeadObject", Key="k")["VersionId"] == "null"
    version = client.put("k", b"1")
    assert client.get("k", VersionId="null") == b"before"
    client.versioning("Suspended")
    assert client.put("k", b"2") == "null" and client.put("k", b"3") == "null"
    assert client.get("k", VersionId="null") == b"3" and blobs_on_disk(keep) == 2
    assert client.listed() == [("k", "null", True, False), ("k", version, False, False)]
    assert client.delete("k") == ("null", True) and blobs_on_disk(keep) == 1
    assert client.listed() == [("k", "null", True, True), ("k", version, False, False)]
    client.versioning("Enabled")
    newest = client.put("k", b"4")
    assert client.listed() == [
        ("k", newest, True, False),
        ("k", "null", False, True),
        ("k", version, False, False),
    ]
    client.delete("k", VersionId=newest)
    refused("NoSuchKey", lambda: client.get("k"))
    client.delete("k", VersionId="null")
    assert client.get("k") == b"1"


class Model:
    """What S3 documents about versions of keys, said as plainly as possible."""

    def __init__(self) -> None:
        self.status: str | None = None
        self.stacks: dict[str, list[tuple[str, bytes | None]]] = {}

    def write(self, key: str, version: str | None, content: bytes | None) -> None:
        stack = self.stacks.setdefault(key, [])
        if self.status != "Enabled":
            stack[:] = [one for one in stack if one[0] != "null"]
        if self.status is not None or content is not None:
            stack.insert(0, (version or "null", content))
        if not stack:
            del self.stacks[key]

    def destroy(self, key: str, version: str) -> None:
        self.stacks[key] = [one for one in self.stacks.get(key, []) if one[0] != version]
        if not self.stacks[key]:
            del self.stacks[key]

    def lines(self) -> list[tuple[str, str, bool, bool]]:
        return [
            (key, version, place == 0, content is None)
            for key in sorted(self.stacks)
            for place, (version, content) in enumerate(self.stacks[key])
        ]


KEYS = ("a", "a/b", "a\x01", "a\x01\x01b", "b/c/d", "é", "\U0010fffd")


@pytest.mark.parametrize("seed", range(4))
def test_stacks_agree_with_the_model(clients: Callable[[Session], Client], keep: Keep, seed: int) -> None:
    client, model, chance = clients(S), Model(), random.Random(seed)
    client("CreateBucket")
    for number in range(120):
        key = chance.choice(KEYS)
        known = [version for version, _ in model.stacks.get(key, [])]
        match chance.randrange(9):
            case 0 if number > 15:
                model.status = chance.choice(["Enabled", "Enabled", "Suspended"])
                client.versioning(model.status)
            case 1 | 2 | 3:
                content = str(number).encode()
                model.write(key, client.put(key, content), content)
            case 4:
                marker, _ = client.delete(key)
                model.write(key, marker, None)
            case 5 | 6 if known:
                version = chance.choice(known)
                client.delete(key, VersionId=version)
                model.destroy(key, version)
            case _:
                keep.clock.seconds -= chance.choice([0, 0, 5])  # a clock that is set back must not change the order
        for version, content in model.stacks.get(key, []):
            if content is not None:
                assert client.get(key, VersionId=version) == content
    shown = {(k, v): (latest, marker) for k, v, latest, marker in client.listed(MaxKeys=chance.choice([1, 2, 3, 1000]))}
    assert shown == {(k, v): (latest, marker) for k, v, latest, marker in model.lines()}
    current = [key for key in sorted(model.stacks) if model.stacks[key][0][1] is not None]
    assert [one["Key"] for one in client("ListObjectsV2")["Contents"] or ()] == current
    objects = sum(1 for stack in model.stacks.values() for _, content in stack if content is not None)
    assert blobs_on_disk(keep) == objects
    for key in list(model.stacks):
        for version, _ in model.stacks[key]:
            client.delete(key, VersionId=version)
    assert blobs_on_disk(keep) == 0 and not list(keep.store.list(U.account, "s3", "object", [S.label.canonical]))


def test_pages_of_versions_keep_their_order(client: Client) -> None:
    ids = [client.put("k", bytes([number])) for number in range(7)]
    for key in ("j", "l/1", "l/2", "m"):
        client.put(key)
    expected = [("j", None), *[("k", version) for version in reversed(ids)], ("l/", None), ("m", None)]
    for size in (1, 2, 3, 4, 1000):
        seen: list[tuple[str, str | None]] = []
        place: dict[str, Any] = {}
        while True:
            page = client("ListObjectVersions", Delimiter="/", MaxKeys=size, **place)
            lines = [(one["Key"], one["VersionId"] if one["Key"] == "k" else None) for one in page["Versions"] or ()]
            lines += [(one["Prefix"], None) for one in page["CommonPrefixes"] or ()]
            seen += sorted(lines, key=lambda line: (line[0], line[1] or ""))
            if not page["IsTruncated"]:
                break
            place = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}
        assert seen == expected
    assert [line[0] for line in client.listed(Prefix="l/")] == ["l/1", "l/2"]
    assert client.listed(KeyMarker="k", VersionIdMarker=ids[3], Prefix="k")[0][1] == ids[2]
    refused("InvalidArgument", lambda: client("ListObjectVersions", VersionIdMarker=ids[0]))
    assert client("ListObjectVersions", EncodingType="url", Prefix="l/")["Prefix"] == "l/"


def test_delete_objects_with_versions(client: Client) -> None:
    version = client.put("k", b"1")
    answer = client("DeleteObjects", Delete={"Objects": [{"Key": "k"}, {"Key": "k", "VersionId": version}]})
    first, second = answer["Deleted"]
    assert first["DeleteMarker"] and first["DeleteMarkerVersionId"] and first["VersionId"] is None
    assert (second["VersionId"], second["DeleteMarker"]) == (version, None)
    assert client.asked == ["s3:DeleteObject", "s3:DeleteObjectVersion"]
    answer = client("DeleteObjects", Delete={"Objects": [{"Key": "k", "VersionId": first["DeleteMarkerVersionId"]}]})
    assert answer["Deleted"][0]["DeleteMarker"] is True and client.listed() == []


def test_copies_and_tags_of_versions(client: Client) -> None:
    first = client.put("k", b"1", Tagging="n=1")
    second = client.put("k", b"2")
    restored = client("CopyObject", Key="k", CopySource=f"bucket/k?versionId={first}")
    assert restored["CopySourceVersionId"] == first and restored["VersionId"] not in (first, second)
    assert client.get("k") == b"1" and client.asked[-3:] == [
        "s3:GetObjectVersion",
        "s3:GetObjectVersionTagging",
        "s3:PutObjectTagging",
    ]
    client("PutObjectTagging", Key="k", VersionId=second, Tagging={"TagSet": [{"Key": "t", "Value": "v"}]})
    assert client("GetObjectTagging", Key="k", VersionId=second)["TagSet"] == [{"Key": "t", "Value": "v"}]
    assert client("GetObjectTagging", Key="k")["TagSet"] == [{"Key": "n", "Value": "1"}]
    client("DeleteObjectTagging", Key="k", VersionId=first)
    assert client("GetObjectTagging", Key="k", VersionId=first) == {"TagSet": [], "VersionId": first}
    attributes = client("GetObjectAttributes", Key="k", VersionId=first, ObjectAttributes=["ObjectSize"])
    assert (attributes["ObjectSize"], attributes["VersionId"]) == (1, first)
    marker, _ = client.delete("k")
    refused("InvalidRequest", lambda: client("CopyObject", Key="c", CopySource=f"bucket/k?versionId={marker}"))
    refused("NoSuchKey", lambda: client("CopyObject", Key="c", CopySource="bucket/k"))


def test_a_multipart_object_is_a_version_with_its_parts(client: Client, keep: Keep) -> None:
    first = client.put("k", b"plain")
    upload = client("CreateMultipartUpload", Key="k")["UploadId"]
    part = client("UploadPart", Key="k", UploadId=upload, PartNumber=1, Body=Upload(b"x" * 100))
    copied = client("UploadPartCopy", Key="k", UploadId=upload, PartNumber=1, CopySource=f"bucket/k?versionId={first}")
    assert copied["CopySourceVersionId"] == first and part["ETag"] != copied["CopyPartResult"]["ETag"]
    part = client("UploadPart", Key="k", UploadId=upload, PartNumber=1, Body=Upload(b"x" * 100))
    done = client(
        "CompleteMultipartUpload",
        Key="k",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    client.put("k", b"newer")
    assert client.get("k", VersionId=done["VersionId"]) == b"x" * 100
    assert client("HeadObject", Key="k", VersionId=done["VersionId"], PartNumber=1)["PartsCount"] == 1
    client.delete("k", VersionId=done["VersionId"])
    assert blobs_on_disk(keep) == 2


# Conditions


def test_conditions_look_at_the_current_version_only(client: Client) -> None:
    client.put("k", b"1")
    tag = f'"{hashlib.md5(b"1").hexdigest()}"'
    client.put("k", b"2")
    refused("PreconditionFailed", lambda: client.put("k", b"3", IfMatch=tag))
    refused("PreconditionFailed", lambda: client.delete("k", IfMatch=tag))
    refused("PreconditionFailed", lambda: client.put("k", b"3", IfNoneMatch="*"))
    refused("NoSuchKey", lambda: client.delete("none", IfMatch="*"))
    client.delete("k", IfMatch=f'"{hashlib.md5(b"2").hexdigest()}"')
    refused("PreconditionFailed", lambda: client.delete("k", IfMatch="*"))
    refused("NoSuchKey", lambda: client.put("k", b"3", IfMatch=tag))
    assert client.put("k", b"3", IfNoneMatch="*") and client.get("k") == b"3"


def test_who_states_an_entity_tag_must_be_allowed_to_read(client: Client) -> None:
    client.put("k", b"1")
    client.denied = {"s3:GetObject"}
    tag = f'"{hashlib.md5(b"1").hexdigest()}"'
    for attempt in (
        lambda: client.put("k", b"2", IfMatch=tag),
        lambda: client.delete("k", IfMatch=tag),
        lambda: client("CopyObject", Key="k", CopySource="bucket/o", IfMatch=tag),
    ):
        with pytest.raises(AccessDenied):
            attempt()
    client.delete("k", IfMatch="*")


@pytest.mark.parametrize(
    ("operation", "condition"),
    [
        *((operation, "none-match") for operation in ("PutObject", "CopyObject", "CompleteMultipartUpload")),
        *((operation, "match") for operation in ("PutObject", "CopyObject", "CompleteMultipartUpload", "DeleteObject")),
    ],
)
def test_of_many_conditional_writers_one_wins(
    client: Client, strangers: Callable[[Session], Client], condition: str, operation: str
) -> None:
    """The race is at its worst where all of them have passed the early check: there they wait for each other."""
    client.put("source", b"new")
    wanted: dict[str, str] = {"IfNoneMatch": "*"}
    if condition == "match":
        client.put("k", b"old")
        wanted = {"IfMatch": f'"{hashlib.md5(b"old").hexdigest()}"'}
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    class Late(Upload):
        def __iter__(self) -> Iterator[bytes]:
            barrier.wait()
            return super().__iter__()

    def write(number: int) -> None:
        one = strangers(S)
        try:
            if operation == "PutObject":
                one("PutObject", Key="k", Body=Late(f"new {number}".encode()), **wanted)
            elif operation == "CompleteMultipartUpload":
                upload = one("CreateMultipartUpload", Key="k")["UploadId"]
                part = one("UploadPart", Key="k", UploadId=upload, PartNumber=1, Body=Late(b"new"))
                parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
                one("CompleteMultipartUpload", Key="k", UploadId=upload, MultipartUpload=parts, **wanted)
            else:
                barrier.wait()
                one(operation, Key="k", CopySource="bucket/source", **wanted)
            outcomes.append("won")
        except HonmaruError as fault:
            outcomes.append(str(fault.code))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("won") == 1 and len(outcomes) == 8, outcomes
    assert set(outcomes) - {"won"} <= {"PreconditionFailed", "NoSuchKey"}, outcomes
    assert len(client.listed(Prefix="k")) == (2 if condition == "match" else 1)


def test_the_race_is_decided_where_the_write_is_stored(
    client: Client, clients: Callable[[Session], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: conditions checked early only, before the bytes are read. Then both writers win."""
    barrier = threading.Barrier(2)
    monkeypatch.setattr(contents, "check_write_conditions", _only_before(barrier))
    outcomes: list[str | None] = []

    def write() -> None:
        outcomes.append(clients(S).put("k", b"x", IfNoneMatch="*"))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 2 and len(client.listed()) == 2


def _only_before(barrier: threading.Barrier) -> Callable[..., None]:
    seen: set[int] = set()

    def check(request: Mapping[str, Any], etag: str | None) -> None:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            check_write_conditions(request, etag)
            barrier.wait(10)

    return check


def test_concurrent_changes_of_one_key_leave_a_whole_stack(
    client: Client, clients: Callable[[Session], Client], keep: Keep
) -> None:
    kept: dict[str, bytes | None] = {}

    def work(number: int) -> None:
        one, chance, own = clients(S), random.Random(number), dict[str, bytes | None]()
        for step in range(12):
            verb = chance.randrange(4)
            if verb < 2:
                content = f"{number} {step}".encode()
                own[str(one.put("k", content))] = content
            elif verb == 2:
                own[str(one.delete("k")[0])] = None
            elif own:
                version = chance.choice(sorted(own))
                one.delete("k", VersionId=version)
                del own[version]
        kept.update(own)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = client.listed()
    assert {version: None if marker else client.get("k", VersionId=version) for _, version, _, marker in lines} == kept
    assert [version for _, version, latest, _ in lines if latest] == [min(kept)], "ids sort newest first"
    assert blobs_on_disk(keep) == sum(content is not None for content in kept.values())


# Labels


def test_what_is_written_or_deleted_high_makes_an_instance_and_low_sees_nothing(
    clients: Callable[[Session], Client],
) -> None:
    low, high, top = clients(U), clients(S), clients(TS)
    low("CreateBucket")
    low.versioning("Enabled")
    first = low.put("k", b"low")
    before = low.listed()
    second = high.put("k", b"high")
    marker, _ = top.delete("k")
    assert low.listed() == before == [("k", first, True, False)]
    assert low.get("k") == b"low" and high.get("k") == b"high"
    refused("NoSuchKey", lambda: top.get("k"))
    refused("NoSuchVersion", lambda: low.get("k", VersionId=second))
    refused("NoSuchVersion", lambda: high.get("k", VersionId=marker))
    # An id that a session once saw stays valid when it makes an instance of its own.
    assert high.get("k", VersionId=first) == top.get("k", VersionId=first) == b"low"
    assert sorted(high.listed()) == sorted([("k", second, True, False), ("k", first, False, False)])
    assert [line[1] for line in top.listed() if line[2]] == [marker]
    third = low.put("k", b"low again")
    assert high.get("k") == b"high" and [line[1] for line in high.listed() if line[2]] == [second]
    with pytest.raises(AccessDenied, match="UNCLASSIFIED"):
        high.delete("k", VersionId=first)
    low.delete("k", VersionId=first)
    low.delete("k", VersionId=third)
    low("DeleteBucket")
    assert high.get("k") == b"high" and high.delete("k", VersionId=second) == (second, None)


def test_deleting_a_low_key_high_hides_it_high_only(clients: Callable[[Session], Client]) -> None:
    low, high = clients(U), clients(S)
    low("CreateBucket")
    low.put("plain", b"1")
    with pytest.raises(AccessDenied):
        high.delete("plain")
    low.versioning("Enabled")
    marker, made = high.delete("plain")
    assert made and low.get("plain") == b"1"
    refused("NoSuchKey", lambda: high.get("plain"))
    assert high("ListObjectsV2")["KeyCount"] == 0 and low("ListObjectsV2")["KeyCount"] == 1
    high.delete("plain", VersionId=marker)
    assert high.get("plain") == b"1"
    assert high.get("plain", VersionId="null") == b"1"


def test_only_the_buckets_own_label_changes_its_versioning(clients: Callable[[Session], Client]) -> None:
    low, high = clients(U), clients(S)
    low("CreateBucket")
    with pytest.raises(AccessDenied, match="UNCLASSIFIED"):
        high.versioning("Enabled")
    high.put("k", b"1")
    high.versioning("Enabled")
    assert low("GetBucketVersioning")["Status"] is None


# Events


def test_every_change_has_its_event_in_the_same_transaction(keep: Keep) -> None:
    commits = BucketCommits()
    client = Client(keep, S3(keep.ids, commits), S)
    client("CreateBucket")
    seen: list[tuple[str, str, str | None]] = []
    failing: list[bool] = []

    def listen(call: Call, event: ObjectEvent) -> list[GuardedChange]:
        if failing:
            raise HonmaruError("the listener refuses")
        seen.append((event.name, event.key, event.version_id))
        return []

    commits.events.on(listen)
    client.put("k", b"1")
    client("DeleteObject", Key="k")
    client.versioning("Enabled")
    version = client.put("k", b"1")
    client("CopyObject", Key="c", CopySource="bucket/k")
    marker, _ = client.delete("k")
    client.delete("k", VersionId=version)
    assert [name for name, _, _ in seen] == [
        "ObjectCreated:Put",
        "ObjectRemoved:Delete",
        "ObjectCreated:Put",
        "ObjectCreated:Copy",
        "ObjectRemoved:DeleteMarkerCreated",
        "ObjectRemoved:Delete",
    ]
    assert [one[2] for one in seen] == [None, None, version, seen[3][2], marker, version]
    failing.append(True)
    blobs = blobs_on_disk(keep)
    with pytest.raises(HonmaruError):
        client.put("n", b"1")
    failing.clear()
    refused("NoSuchKey", lambda: client.get("n"))
    assert blobs_on_disk(keep) == blobs


# What must not come apart


def both(*works: Callable[[], object]) -> list[str | None]:
    """Runs the works at the same instant; the error code of each, None where it succeeded."""
    start = threading.Barrier(len(works))
    codes: list[str | None] = [None] * len(works)

    def attempt(number: int) -> None:
        start.wait()
        try:
            works[number]()
        except HonmaruError as fault:
            codes[number] = fault.code

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return codes


def test_a_bucket_is_not_deleted_under_an_object_or_upload(strangers: Callable[[Session], Client], keep: Keep) -> None:
    client = strangers(S)
    outcomes = set()
    for number in range(40):
        client("CreateBucket")
        writers = [lambda: strangers(S).put("k", b"1"), lambda: strangers(S)("CreateMultipartUpload", Key="k")]
        codes = both(lambda: strangers(S)("DeleteBucket"), writers[number % 2])
        outcomes.add(tuple(codes))
        assert tuple(codes) in {(None, "NoSuchBucket"), ("BucketNotEmpty", None), (None, None)}, codes
        if codes == ["BucketNotEmpty", None]:
            client.delete("k")
            client("DeleteBucket")
        assert not keep.store.list(S.account, "s3", "bucket", [S.label.canonical])
        for kind in ("object", "upload", "part"):
            assert not keep.store.list(S.account, "s3", kind, [S.label.canonical]), (codes, kind)
    assert blobs_on_disk(keep) == 0 and len(outcomes) > 1, outcomes


def test_a_part_never_outlives_its_upload(client: Client, strangers: Callable[[Session], Client], keep: Keep) -> None:
    for number in range(30):
        place = {"Key": "k", "UploadId": client("CreateMultipartUpload", Key="k")["UploadId"]}
        part = client("UploadPart", **place, PartNumber=1, Body=Upload(b"1"))
        end = {"MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}}
        ends = [
            lambda place=place: strangers(S)("AbortMultipartUpload", **place),
            lambda place=place, end=end: strangers(S)("CompleteMultipartUpload", **place, **end),
        ]
        late = lambda place=place, number=number: strangers(S)(  # noqa: E731
            "UploadPart", **place, PartNumber=1 + number // 2 % 2, Body=Upload(b"1")
        )
        codes = both(ends[number % 2], late)
        assert codes[0] is None and codes[1] in (None, "NoSuchUpload"), codes
        assert not keep.store.list(S.account, "s3", "part", [S.label.canonical])
    assert blobs_on_disk(keep) == 15, "one for each that was completed"


# What IAM is asked


def test_a_request_that_names_a_version_is_asked_for_the_versions_action(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    service = ServiceModels(tmp_path_factory.mktemp("models"), ("s3",))["s3"]
    provider = S3(SeededIds(), BucketCommits())

    def asked(operation: str, **members: str) -> list[str]:
        place = {"Bucket": "b", "Key": "k", **members}
        found = questions(provider, service.operations[operation])
        return [action for action, resource in found if resource(S, place) == "arn:aws-iso:s3:::b/k"]

    assert asked("GetObject") == ["s3:GetObject"]
    assert asked("GetObject", VersionId="null") == ["s3:GetObjectVersion"]
    assert asked("DeleteObject", VersionId="x") == ["s3:DeleteObjectVersion"]
    assert asked("PutObjectTagging", VersionId="x") == ["s3:PutObjectVersionTagging"]
    assert asked("GetObjectAttributes", VersionId="x") == ["s3:GetObjectVersion", "s3:GetObjectVersionAttributes"]
    assert target_problems(provider, service.operations) == []
    for operation in provider.targets:
        for members in ({}, {"VersionId": "x"}):
            stated = {"Bucket": "b", "Key": "k", **members}
            assert any(resource(S, stated) for _, resource in questions(provider, service.operations[operation]))
