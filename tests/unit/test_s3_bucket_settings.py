"""Settings of buckets: documents checked as S3 checks them, kept per instance and label; bucket policies; events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name

from honmaru.core.errors import AccessDenied, HonmaruError
from honmaru.core.sessions import Session
from honmaru.ports.events import EventOutbox
from honmaru.security.calls import Call, Resource
from honmaru.services.s3 import cors
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.notification import Outbox, bus_of
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import Keep, Upload, quick_directory, session

U, S = (session(marking) for marking in ("UNCLASSIFIED", "SECRET"))
QUEUE = "arn:aws-iso:sqs:us-iso-east-1:123456789012:"


class Queues:
    """Destinations of a test: queues whose names begin with "q"."""

    def takes(self, arn: str) -> bool:
        return arn.startswith(QUEUE + "q")


@dataclass
class Bench:
    keep: Keep
    s3: S3
    last: Call | None = None

    def __call__(self, who: Session, operation: str, /, **request: Any) -> Any:
        self.keep.clock.seconds += 1
        self.last = self.keep.call(who, operation)
        return getattr(self.s3, xform_name(operation))(self.last, {"Bucket": "bucket", **request})

    def put(self, who: Session, key: str, **request: Any) -> Any:
        return self(who, "PutObject", Key=key, Body=Upload(b"x"), **request)

    def policy(self, who: Session, *statements: Mapping[str, Any], **request: Any) -> None:
        document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        self(who, "PutBucketPolicy", Policy=document, **request)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with quick_directory() as directory:
        keep = Keep(Path(directory))
        made = Bench(keep, S3(keep.ids, BucketCommits(), Queues()))
        made(U, "CreateBucket")
        yield made
        keep.close()


def refused(code: str | None, attempt: Callable[[], object]) -> HonmaruError:
    with pytest.raises(HonmaruError) as fault:
        attempt()
    assert fault.value.code == code, (fault.value.code, fault.value)
    return fault.value


# Every setting alike

CORS = {"CORSConfiguration": {"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}]}}
AES = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
SETTINGS: list[tuple[str, str, str, dict[str, Any], str | None]] = [
    ("PutBucketCors", "GetBucketCors", "DeleteBucketCors", CORS, "NoSuchCORSConfiguration"),
    (
        "PutPublicAccessBlock",
        "GetPublicAccessBlock",
        "DeletePublicAccessBlock",
        {"PublicAccessBlockConfiguration": {"BlockPublicAcls": True}},
        "NoSuchPublicAccessBlockConfiguration",
    ),
    (
        "PutBucketOwnershipControls",
        "GetBucketOwnershipControls",
        "DeleteBucketOwnershipControls",
        {"OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}},
        "OwnershipControlsNotFoundError",
    ),
    (
        "PutBucketEncryption",
        "GetBucketEncryption",
        "DeleteBucketEncryption",
        {"ServerSideEncryptionConfiguration": {"Rules": [{**AES, "BucketKeyEnabled": True}]}},
        None,
    ),
]


@pytest.mark.parametrize(("put", "get", "delete", "request_", "missing"), SETTINGS)
def test_a_setting_is_kept_at_its_buckets_label(
    bench: Bench, put: str, get: str, delete: str, request_: dict[str, Any], missing: str | None
) -> None:
    bench(U, put, **request_)
    shown = bench(U, get)
    assert bench(S, get) == shown, "what is below is read"
    with pytest.raises(AccessDenied, match="sign in at UNCLASSIFIED"):
        bench(S, put, **request_)
    bench.put(S, "k")  # makes the higher instance, which begins with the lower one's settings
    assert bench(S, get) == shown
    bench(S, delete)
    if missing is None:
        assert bench(S, get) != shown
    else:
        refused(missing, lambda: bench(S, get))
    assert bench(U, get) == shown, "the instances are apart"
    bench(S, "CreateBucket", Bucket="high")
    for operation in (put, get, delete):
        refused("NoSuchBucket", lambda operation=operation: bench(U, operation, Bucket="high", **request_))


@pytest.mark.parametrize(
    ("rule", "code", "words"),
    [
        ({"AllowedMethods": ["PATCH"]}, "InvalidRequest", "Unsupported method is PATCH"),
        ({"AllowedMethods": []}, "MalformedXML", ""),
        ({"AllowedOrigins": ["https://*.a.*"]}, "InvalidRequest", "can not have more than one wildcard"),
        ({"AllowedHeaders": ["x-*-*"]}, "InvalidRequest", "can not have more than one wildcard"),
        ({"ExposeHeaders": ["x-*"]}, "InvalidRequest", "contains wildcard"),
        ({"ExposeHeaders": ["a\r\nb"]}, "InvalidRequest", "invalid character"),
        ({"ID": "i" * 256}, "InvalidRequest", "ID length"),
        ({"MaxAgeSeconds": -1}, "InvalidRequest", "MaxAgeSeconds"),
    ],
)
def test_cors_rules_that_are_refused(bench: Bench, rule: dict[str, Any], code: str, words: str) -> None:
    rules = [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"], **rule}]
    assert words in refused(code, lambda: bench(U, "PutBucketCors", CORSConfiguration={"CORSRules": rules})).message
    refused("MalformedXML", lambda: bench(U, "PutBucketCors", CORSConfiguration={"CORSRules": []}))
    refused("NoSuchCORSConfiguration", lambda: bench(U, "GetBucketCors"))


def test_the_first_cors_rule_that_matches_answers() -> None:
    rules = [
        {"AllowedMethods": ["PUT"], "AllowedOrigins": ["http://*.org"], "AllowedHeaders": ["*"]},
        {"AllowedMethods": ["GET", "PUT"], "AllowedOrigins": ["*"], "MaxAgeSeconds": 9},
    ]
    assert cors.headers_for(rules, "http://a.org", "PUT")["Access-Control-Allow-Origin"] == "http://a.org"
    other = cors.headers_for(rules, "http://a.com", "PUT")
    assert other["Access-Control-Allow-Origin"] == "*" and other["Access-Control-Max-Age"] == "9"
    assert "Access-Control-Allow-Credentials" not in other
    assert cors.headers_for(rules, "http://.org", "PUT")["Access-Control-Allow-Origin"] == "http://.org"
    assert cors.headers_for(rules, "HTTP://a.org", "PUT")["Access-Control-Allow-Origin"] == "*"
    assert cors.headers_for(rules, "http://a.com", "GET", ["x-a"]) == {}
    assert cors.headers_for(rules, "http://a.org", "DELETE") == {}


def test_encryption_that_is_refused(bench: Bench) -> None:
    def put(*rules: Any) -> Callable[[], object]:
        return lambda: bench(U, "PutBucketEncryption", ServerSideEncryptionConfiguration={"Rules": list(rules)})

    refused("MalformedXML", put())
    refused("MalformedXML", put(AES, AES))
    refused("MalformedXML", put({}))
    refused("NotImplemented", put({"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms:dsse"}}))
    keyed = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256", "KMSMasterKeyID": "k"}}
    assert "KMSMasterKeyID is not applicable" in refused("InvalidArgument", put(keyed)).message


def test_access_control_lists_are_disabled(bench: Bench) -> None:
    bench.put(U, "k")
    acl = bench(U, "GetBucketAcl")
    assert acl == bench(U, "GetObjectAcl", Key="k")
    assert acl["Grants"][0]["Permission"] == "FULL_CONTROL" and acl["Grants"][0]["Grantee"]["ID"] == acl["Owner"]["ID"]
    for request in ({"ACL": "private"}, {"GrantRead": "id=x"}, {"AccessControlPolicy": {}}):
        refused("AccessControlListNotSupported", lambda request=request: bench(U, "PutBucketAcl", **request))
        refused("AccessControlListNotSupported", lambda request=request: bench(U, "PutObjectAcl", Key="k", **request))
    refused("NoSuchKey", lambda: bench(U, "GetObjectAcl", Key="none"))
    for wanted in ("ObjectWriter", "BucketOwnerPreferred"):
        rules = {"Rules": [{"ObjectOwnership": wanted}]}
        refused("NotImplemented", lambda rules=rules: bench(U, "PutBucketOwnershipControls", OwnershipControls=rules))
        refused("NotImplemented", lambda wanted=wanted: bench(U, "CreateBucket", Bucket="b-2", ObjectOwnership=wanted))


# Bucket policies

ARN = "arn:aws-iso:s3:::bucket"
READ = {"Effect": "Allow", "Principal": {"AWS": "123456789012"}, "Action": "s3:GetObject", "Resource": f"{ARN}/*"}


def test_a_policy_is_kept_as_it_came(bench: Bench) -> None:
    refused("NoSuchBucketPolicy", lambda: bench(U, "GetBucketPolicy"))
    refused("NoSuchBucketPolicy", lambda: bench(U, "GetBucketPolicyStatus"))
    text = ' {"Version":"2012-10-17",\n "Statement":' + json.dumps(READ) + "}"
    bench(U, "PutBucketPolicy", Policy=text)
    assert bench(U, "GetBucketPolicy") == {"Policy": text} == bench(S, "GetBucketPolicy")
    assert bench(U, "GetBucketPolicyStatus") == {"PolicyStatus": {"IsPublic": False}}
    found = bench.s3.resource(bench.keep.guard.sight(S.label, "s3"), "bucket")
    account = {"s3:resourceaccount": U.account}
    assert found == Resource(U.account, U.label, policy=text, tags={}, context=account, confined=False)
    assert bench.s3.resource(bench.keep.guard.sight(U.label, "s3"), "other") is None
    assert bench.s3.resource_place("bucket/a/b") == "bucket" == bench.s3.resource_place("bucket")
    bench(U, "DeleteBucketPolicy")
    bench(U, "DeleteBucketPolicy")
    refused("NoSuchBucketPolicy", lambda: bench(U, "GetBucketPolicy"))


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ({"Principal": None}, "Missing required field Principal"),
        ({"Principal": {"AWS": "nobody"}}, "Invalid principal in policy"),
        ({"Principal": {"AWS": "arn:aws:iam::123456789012:root"}}, "Invalid principal in policy"),
        ({"Action": "s3:Fly"}, "Policy has invalid action"),
        ({"Action": "ec2:RunInstances"}, "Policy has invalid action"),
        ({"Action": ["s3:GetObject", "s3:ListBucket"]}, "Action does not apply to any resource(s) in statement"),
        ({"Action": "s3:GetObject", "Resource": ARN}, "Action does not apply to any resource(s) in statement"),
        ({"Resource": "arn:aws-iso:s3:::other/*"}, "Policy has invalid resource"),
        ({"Resource": "arn:aws:s3:::bucket/*"}, "Policy has invalid resource"),
        ({"Resource": [f"{ARN}/*", "*"]}, "Policy has invalid resource"),
        ({"Effect": "Perhaps"}, "Effect must be Allow or Deny"),
        ({"Condition": {"StringLikes": {"s3:prefix": "a"}}}, "Invalid Condition type"),
        ({"Extra": 1}, "'Extra' is not one of"),
    ],
)
def test_policies_that_are_malformed(bench: Bench, statement: dict[str, Any], words: str) -> None:
    given = {key: value for key, value in {**READ, **statement}.items() if value is not None}
    assert words in refused("MalformedPolicy", lambda: bench.policy(U, given)).message
    refused("NoSuchBucketPolicy", lambda: bench(U, "GetBucketPolicy"))


def test_another_account_does_not_read_or_write_the_policy_of_a_bucket(bench: Bench) -> None:
    bench.policy(U, READ)
    guest = session("UNCLASSIFIED", account="999999999999")
    for operation in (bench.s3.get_bucket_policy, bench.s3.put_bucket_policy, bench.s3.delete_bucket_policy):
        call = bench.keep.call(guest, "GetBucketPolicy").within(U.account)
        refused("MethodNotAllowed", lambda: operation(call, {"Bucket": "bucket", "Policy": "{}"}))  # noqa: B023


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "first byte must be '{'"),
        ("{", "JSON"),
        ("{}", "Statement"),
        ('{"Version": "2012-10-17", "Statement": []}', "Statement"),
        ('{"Statement": "' + "x" * 20480 + '"}', "maximum allowed size of 20480 bytes"),
    ],
)
def test_texts_that_are_no_policy(bench: Bench, text: str, words: str) -> None:
    fault = refused("MalformedPolicy", lambda: bench(U, "PutBucketPolicy", Policy=text))
    assert words.lower() in fault.message.lower()


def test_conditions_on_keys_that_are_never_supplied_are_refused(bench: Bench) -> None:
    tagged = {"StringEquals": {"s3:ExistingObjectTag/secret": "yes"}}
    fault = refused("NotImplemented", lambda: bench.policy(U, {**READ, "Effect": "Deny", "Condition": tagged}))
    assert "s3:ExistingObjectTag/secret" in fault.message
    bench.policy(U, {**READ, "Condition": {"StringEquals": {"S3:prefix": "a", "s3:RequestObjectTag/t": "1"}}})


def test_what_requests_bring_to_decisions(bench: Bench) -> None:
    context = bench.s3.context(
        "PutObject", {"Bucket": "b", "Key": "k", "Tagging": "a=1&b=", "StorageClass": "STANDARD"}
    )
    assert context["s3:requestobjecttag/a"] == "1" and context["aws:RequestTag/b"] == ""
    assert context["aws:TagKeys"] == ["a", "b"] == context["s3:requestobjecttagkeys"]
    assert context["s3:x-amz-storage-class"] == "STANDARD"
    assert bench.s3.context("ListObjectsV2", {"Bucket": "b"})["s3:prefix"] == ""
    tagging = {"TagSet": [{"Key": "a", "Value": "1"}]}
    assert bench.s3.context("PutBucketTagging", {"Bucket": "b", "Tagging": tagging})["aws:RequestTag/a"] == "1"


def test_resources_and_actions_with_wildcards(bench: Bench) -> None:
    bench.policy(U, {**READ, "Action": ["s3:*", "s3:Get*"], "Resource": [ARN, f"{ARN}/*"]})
    bench.policy(U, {**READ, "Action": "s3:List*", "Resource": ARN})
    bench.policy(U, {**READ, "Action": "S3:getobject", "Resource": "arn:aws-iso:s3:::buck*"})


@pytest.mark.parametrize(
    ("statement", "public"),
    [
        ({"Principal": "*"}, True),
        ({"Principal": {"AWS": "*"}}, True),
        ({"Principal": {"AWS": ["*"]}}, True),
        ({"Principal": "*", "Effect": "Deny"}, False),
        ({"Principal": "*", "Condition": {"StringEquals": {"aws:PrincipalOrgID": "o-1"}}}, False),
        ({"Principal": "*", "Condition": {"StringLike": {"aws:PrincipalOrgID": "o-*"}}}, True),
        ({"Principal": "*", "Condition": {"StringNotEquals": {"aws:PrincipalOrgID": "o-1"}}}, True),
        ({"Principal": "*", "Condition": {"StringEqualsIfExists": {"aws:PrincipalOrgID": "o-1"}}}, True),
        ({"Principal": "*", "Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}, False),
        ({"Principal": "*", "Condition": {"IpAddress": {"aws:SourceIp": "0.0.0.0/0"}}}, True),
        ({"Principal": "*", "Condition": {"IpAddress": {"aws:SourceIp": ["10.0.0.1", "::/0"]}}}, True),
        ({"Principal": "*", "Condition": {"Bool": {"aws:SecureTransport": "true"}}}, True),
        ({"Principal": "*", "Condition": {"StringLike": {"aws:userid": "AROA123:*"}}}, False),
        ({"Principal": "*", "Condition": {"StringEquals": {"aws:PrincipalAccount": "${aws:PrincipalAccount}"}}}, True),
    ],
)
def test_which_policies_are_public_and_blocked(bench: Bench, statement: dict[str, Any], public: bool) -> None:
    given = {**READ, **statement}
    if public:
        with pytest.raises(AccessDenied, match="BlockPublicPolicy"):
            bench.policy(U, given)
    bench(U, "PutPublicAccessBlock", PublicAccessBlockConfiguration={"RestrictPublicBuckets": True})
    bench.policy(U, given)
    assert bench(U, "GetBucketPolicyStatus")["PolicyStatus"]["IsPublic"] is public
    found = bench.s3.resource(bench.keep.guard.sight(U.label, "s3"), "bucket")
    assert found is not None and found.confined is public
    bench(U, "DeletePublicAccessBlock")
    found = bench.s3.resource(bench.keep.guard.sight(U.label, "s3"), "bucket")
    assert found is not None and not found.confined


def test_nobody_locks_himself_out_unless_he_confirms(bench: Bench) -> None:
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": [ARN, f"{ARN}/*"]}
    with pytest.raises(AccessDenied, match="x-amz-confirm-remove-self-bucket-access"):
        bench.policy(U, deny)
    bench.policy(U, {**deny, "Condition": {"Bool": {"aws:SecureTransport": "false"}}})
    bench.policy(U, deny, ConfirmRemoveSelfBucketAccess=True)


# Notifications


def configuration(**one: Any) -> dict[str, Any]:
    queue = {"QueueArn": QUEUE + "q", "Events": ["s3:ObjectCreated:*"], **one}
    return {"QueueConfigurations": [queue]}


def filtered(**rules: str) -> dict[str, Any]:
    return {"Key": {"FilterRules": [{"Name": name, "Value": value} for name, value in rules.items()]}}


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (configuration(QueueArn=QUEUE + "none"), "Unable to validate the following destination configurations"),
        (configuration(Events=["s3:Replication:*"]), "is not supported for notifications"),
        (
            {"QueueConfigurations": [*configuration()["QueueConfigurations"]] * 2},
            "Configurations overlap",
        ),
        (
            configuration(Filter={"Key": {"FilterRules": [{"Name": "prefix", "Value": "a"}] * 2}}),
            "more than one prefix rule",
        ),
        (configuration(Filter=filtered(prefix="a" * 1025)), "cannot exceed 1024 bytes"),
    ],
)
def test_notifications_that_are_refused(bench: Bench, stated: dict[str, Any], words: str) -> None:
    put = {"NotificationConfiguration": stated}
    assert words in refused("InvalidArgument", lambda: bench(U, "PutBucketNotificationConfiguration", **put)).message
    assert bench(U, "GetBucketNotificationConfiguration") == {}


def test_events_go_to_who_asked_for_them_at_their_label(bench: Bench) -> None:
    stated = configuration(Id="in", Filter=filtered(prefix="in/", suffix=".txt"))
    stated["QueueConfigurations"].append(
        {"Id": "gone", "QueueArn": QUEUE + "q2", "Events": ["s3:ObjectRemoved:Delete"]}
    )
    bench(U, "PutBucketNotificationConfiguration", NotificationConfiguration=stated)
    assert bench(U, "GetBucketNotificationConfiguration")["QueueConfigurations"][0]["Id"] == "in"
    for key in ("in/ü 1.txt", "in/2.dat", "out/3.txt"):
        bench.put(U, key)
    bench.put(S, "in/4.txt")
    bench(U, "DeleteObject", Key="in/2.dat")
    outbox: EventOutbox = Outbox(bench.keep.guard)
    found = outbox.read(U, QUEUE + "q")
    assert [event.detail["s3"]["object"]["key"] for event in found] == ["in/%C3%BC+1.txt"]
    detail = found[0].detail
    assert detail["eventName"] == "ObjectCreated:Put" and detail["s3"]["configurationId"] == "in"
    assert detail["s3"]["object"]["size"] == 1 and detail["s3"]["bucket"]["arn"] == ARN
    assert [event.detail["eventName"] for event in outbox.read(U, QUEUE + "q2")] == ["ObjectRemoved:Delete"]
    above = outbox.read(S, QUEUE + "q")
    assert [event.label for event in above] == [U.label, S.label], "above sees both, below its own"
    with pytest.raises(AccessDenied):
        outbox.acknowledge(S, above[:1])
    outbox.acknowledge(U, found)
    outbox.acknowledge(U, found)
    assert list(outbox.read(U, QUEUE + "q")) == []
    assert [event.label for event in outbox.read(S, QUEUE + "q")] == [S.label]


def test_the_event_bus_gets_everything_and_events_survive_a_restart(bench: Bench) -> None:
    bench(U, "PutBucketNotificationConfiguration", NotificationConfiguration={"EventBridgeConfiguration": {}})
    bench(U, "PutBucketVersioning", VersioningConfiguration={"Status": "Enabled"})
    first = bench.put(U, "k")["VersionId"]
    bench.put(U, "k")
    bench(U, "DeleteObject", Key="k")
    bench(U, "DeleteObject", Key="k", VersionId=first)
    upload = bench(U, "CreateMultipartUpload", Key="m")["UploadId"]
    etag = bench(U, "UploadPart", Key="m", UploadId=upload, PartNumber=1, Body=Upload(b"p"))["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    bench(U, "CompleteMultipartUpload", Key="m", UploadId=upload, MultipartUpload=parts)
    bench(U, "CopyObject", Key="c", CopySource="bucket/m")
    bench(U, "PutObjectTagging", Key="c", Tagging={"TagSet": [{"Key": "a", "Value": "1"}]})
    bench(U, "DeleteObjectTagging", Key="c")
    bus = bus_of("aws-iso", "us-iso-east-1", U.account)
    restarted = Keep(bench.keep.directory)
    found = Outbox(restarted.guard).read(U, bus)
    assert [event.detail["eventName"] for event in found] == [
        "ObjectCreated:Put",
        "ObjectCreated:Put",
        "ObjectRemoved:DeleteMarkerCreated",
        "ObjectRemoved:Delete",
        "ObjectCreated:CompleteMultipartUpload",
        "ObjectCreated:Copy",
        "ObjectTagging:Put",
        "ObjectTagging:Delete",
    ]
    orders = [event.order for event in found if event.detail["s3"]["object"]["key"] == "k"]
    assert orders == sorted(orders) and len(set(orders)) == 4, "the sequencer sorts the events of a key"
    assert found[0].detail["s3"]["object"]["versionId"] == first
    restarted.close()


def test_an_event_is_stored_with_its_change_or_not_at_all(bench: Bench) -> None:
    bench(U, "PutBucketNotificationConfiguration", NotificationConfiguration={"EventBridgeConfiguration": {}})
    bench.put(U, "k")
    refused("PreconditionFailed", lambda: bench.put(U, "k", IfNoneMatch="*"))
    bus = bus_of("aws-iso", "us-iso-east-1", U.account)
    assert len(Outbox(bench.keep.guard).read(U, bus)) == 1
