"""Trails: each event once into the bucket, at the trail's label, with digests that the ledger covers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from honmaru.app.enclave import Enclave
from honmaru.app.service_deliveries import ServiceDeliveries
from honmaru.app.settings import Settings
from honmaru.core.errors import HonmaruError, NotFound, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.security.calls import Call
from honmaru.security.ledger.entries import api_call
from honmaru.services.cloudtrail import CloudTrail
from honmaru.services.cloudtrail.delivery import Delivery
from honmaru.services.cloudtrail.selectors import check_advanced, check_basic, selected
from honmaru.services.kms import Kms, KmsKeys
from honmaru.services.s3.access import S3Buckets
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import quick_directory

LOW, HIGH = Label.parse("UNCLASSIFIED"), Label.parse("SECRET")
REGION = "us-isob-east-1"


class ShiftedClock:
    def __init__(self, clock: Any) -> None:
        self.clock, self.ahead = clock, timedelta()

    def now(self) -> datetime:
        return self.clock.now() + self.ahead  # type: ignore[no-any-return]

    def monotonic(self) -> float:
        return float(self.clock.monotonic())


class Desk:
    """An enclave that is not served: its real guard, identity, ledger and buckets."""

    def __init__(self, directory: Path) -> None:
        self.enclave = Enclave(Settings(directory, region=REGION))
        self.enclave.identity.bootstrap()
        self.clock = ShiftedClock(self.enclave.clock)
        self.kms = next(each for each in self.enclave.providers if isinstance(each, Kms))
        keys = KmsKeys(self.kms._vault)
        commits = BucketCommits(keys)
        parts = (self.enclave.ledger, self.clock, self.enclave.ids, commits)
        self.deliveries = ServiceDeliveries(
            "cloudtrail.amazonaws.com", self.enclave.guard, self.enclave.identity, *parts
        )
        self.trail = CloudTrail(self.enclave.ledger, self.deliveries, keys)
        self.buckets = S3Buckets(self.enclave.guard, self.enclave.identity, *parts)
        self.s3 = S3(self.enclave.ids, commits)
        self.count = 0

    def step(self, deliveries: Any = None) -> Delivery:
        place = {"partition": "aws-iso-b", "region": REGION}
        parts = (self.enclave.guard, self.enclave.ledger, deliveries or self.deliveries, self.clock, self.enclave.ids)
        return Delivery(*parts, **place)

    def session(self, label: Label) -> Session:
        arn = f"arn:aws-iso-b:iam::{self.enclave.account}:user/admin"
        key, _ = self.enclave.identity.access_key("admin", label)
        session: Session = self.enclave.identity.credential(key, None).session
        assert session.principal_arn == arn
        return session

    def call(self, operation: str, label: Label, service: str = "cloudtrail") -> Call:
        session = self.session(label)
        identifier = self.enclave.ids.uuid()
        return Call(
            session, service, operation, identifier, self.clock.now(), self.enclave.guard, {}, {},
            self.enclave.identity.require,
        )  # fmt: skip

    def ask(self, operation: str, label: Label = HIGH, **request: Any) -> dict[str, Any]:
        answer = getattr(self.trail, operation)(self.call(operation, label), request)
        assert isinstance(answer, dict)
        return answer

    def bucket(self, name: str, label: Label, *, open_to_trails: bool = True) -> None:
        self.s3.create_bucket(self.call("CreateBucket", label, "s3"), {"Bucket": name})
        if open_to_trails:
            statement = {
                "Effect": "Allow",
                "Principal": {"Service": "cloudtrail.amazonaws.com"},
                "Action": "s3:PutObject",
                "Resource": f"arn:aws-iso-b:s3:::{name}/*",
                "Condition": {"StringEquals": {"s3:x-amz-acl": "bucket-owner-full-control"}},
            }
            policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
            self.s3.put_bucket_policy(self.call("PutBucketPolicy", label, "s3"), {"Bucket": name, "Policy": policy})

    def happen(self, label: Label, count: int = 1, **more: Any) -> list[str]:
        made = []
        for _ in range(count):
            self.count += 1
            entry = api_call(
                event_id=f"event-{self.count}", session=self.session(label), service="sagemaker",
                event_source="sagemaker.amazonaws.com", operation="CreateModel", request_id="r", at=self.clock.now(),
                decision="Allow", region=REGION, account=self.enclave.account,
                **{"read_only": False, **more},
            )  # fmt: skip
            self.enclave.ledger.append(label, entry).result(10)
            made.append(f"event-{self.count}")
        return made

    def files(self, name: str, label: Label = HIGH, kind: str = "CloudTrail/") -> dict[str, Any]:
        session = self.session(label)
        prefix = f"AWSLogs/{self.enclave.account}/{kind}"
        return {
            found.key: json.loads(gzip.decompress(b"".join(self.buckets.read(session, name, found.key))))
            for found in list(self.buckets.list(session, name, prefix))
        }

    def delivered(self, name: str, label: Label = HIGH) -> list[str]:
        """Ids of the delivered events that `happen` made."""
        records = [record for file in self.files(name, label).values() for record in file["Records"]]
        return sorted(
            (each["eventID"] for each in records if each["eventID"].startswith("event-")), key=lambda i: int(i[6:])
        )


@pytest.fixture
def desk() -> Iterator[Desk]:
    with quick_directory() as directory:
        made = Desk(directory)
        yield made
        made.enclave.gateway.close()
        made.enclave.ledger.close()
        made.enclave.records.close()


def test_each_event_is_delivered_once_at_the_trails_label(desk: Desk) -> None:
    desk.bucket("low-trail", LOW)
    desk.bucket("high-trail", HIGH)
    early = desk.happen(LOW)
    for name, label in (("low", LOW), ("high", HIGH)):
        desk.ask("create_trail", label, Name=f"{name}-trail", S3BucketName=f"{name}-trail")
        desk.ask("start_logging", label, Name=f"{name}-trail")
    step = desk.step()
    low, high = desk.happen(LOW, 3), desk.happen(HIGH, 2)
    assert step.deliver() > 0
    low += desk.happen(LOW)
    step.deliver()
    step.deliver()
    assert desk.delivered("low-trail", LOW) == low
    assert desk.delivered("high-trail", HIGH) == [*low[:3], *high, low[3]]
    assert not set(early) & set(desk.delivered("high-trail"))
    with pytest.raises(NotFound):
        desk.ask("get_trail", LOW, Name="high-trail")
    assert [each["Name"] for each in desk.ask("list_trails", LOW)["Trails"]] == ["low-trail"]
    status = desk.ask("get_trail_status", HIGH, Name="high-trail")
    assert (status["IsLogging"], status["LatestDeliveryError"]) == (True, None)
    for _ in range(20):  # what deliveries themselves leave in the ledger brings no further file
        if step.deliver() == 0:
            break
    assert step.deliver() == 0
    size = desk.enclave.ledger.size(HIGH)
    step.deliver()
    assert desk.enclave.ledger.size(HIGH) == size


class Crash(BaseException):
    pass


class Crashing:
    """Deliveries that end the process after a write, before anybody notes it."""

    def __init__(self, inner: ServiceDeliveries) -> None:
        self.inner = inner

    def check(self, *arguments: Any, **more: Any) -> None:
        self.inner.check(*arguments, **more)

    def write(self, *arguments: Any, **more: Any) -> Any:
        self.inner.write(*arguments, **more)
        raise Crash


def test_a_crash_between_file_and_note_delivers_nothing_twice(desk: Desk) -> None:
    desk.bucket("trail-bucket", HIGH)
    desk.ask("create_trail", Name="t-1", S3BucketName="trail-bucket", EnableLogFileValidation=True)
    desk.ask("start_logging", Name="t-1")
    first = desk.happen(HIGH, 2)
    with pytest.raises(Crash):
        desk.step(Crashing(desk.deliveries)).deliver()
    written = desk.files("trail-bucket")
    more = desk.happen(HIGH, 2)  # recorded before the restart: the file that was begun must not change
    desk.step().deliver()
    assert desk.delivered("trail-bucket") == first + more
    assert {key: desk.files("trail-bucket")[key] for key in written} == written


def test_stopping_delivers_the_rest_and_starting_again_leaves_the_gap_out(desk: Desk) -> None:
    desk.bucket("trail-bucket", HIGH)
    desk.ask("create_trail", Name="t-1", S3BucketName="trail-bucket", S3KeyPrefix="p")
    desk.ask("update_trail", Name="t-1", S3KeyPrefix="")
    desk.ask("start_logging", Name="t-1")
    before = desk.happen(HIGH)
    desk.ask("stop_logging", Name="t-1")
    desk.happen(HIGH)
    step = desk.step()
    step.deliver()
    assert desk.delivered("trail-bucket") == before
    desk.ask("start_logging", Name="t-1")
    after = desk.happen(HIGH)
    step.deliver()
    assert desk.delivered("trail-bucket") == before + after
    desk.ask("delete_trail", Name="t-1")
    desk.happen(HIGH)
    assert step.deliver() == 0


def test_digests_chain_and_the_ledger_covers_them(desk: Desk) -> None:
    import hashlib

    desk.bucket("trail-bucket", HIGH)
    desk.ask("create_trail", Name="t-1", S3BucketName="trail-bucket", EnableLogFileValidation=True)
    desk.ask("start_logging", Name="t-1")
    step = desk.step()
    for _ in range(2):
        desk.happen(HIGH, 2)
        desk.clock.ahead += timedelta(minutes=61)
        step.deliver()
    first, second = sorted(desk.files("trail-bucket", kind="CloudTrail-Digest").items())
    raw = {
        key: b"".join(desk.buckets.read(desk.session(HIGH), "trail-bucket", key))
        for key in [first[0], *(each["s3Object"] for each in first[1]["logFiles"])]
    }
    assert second[1]["previousDigestS3Object"] == first[0]
    assert second[1]["previousDigestHashValue"] == hashlib.sha256(raw[first[0]]).hexdigest()
    assert first[1]["logFiles"]
    for each in first[1]["logFiles"]:
        assert each["hashValue"] == hashlib.sha256(raw[each["s3Object"]]).hexdigest()
    checkpoints = first[1]["honmaru"]["checkpoints"]
    assert any(f"label {HIGH.canonical}\n" in note for note in checkpoints)
    covered = [
        entry["honmaru"]["details"]
        for entry in desk.enclave.ledger.entries(HIGH)
        if entry.get("eventName") == "DeliverDigest"
    ]
    assert [each["object"] for each in covered] == [first[0], second[0]]
    assert covered[0]["sha384"] == hashlib.sha384(raw[first[0]]).hexdigest()
    (key,) = desk.ask("list_public_keys")["PublicKeyList"]
    assert key["Fingerprint"] == first[1]["digestPublicKeyFingerprint"]


def test_a_trail_needs_a_bucket_that_lets_it_write(desk: Desk) -> None:
    desk.bucket("closed-bucket", HIGH, open_to_trails=False)
    desk.bucket("open-bucket", HIGH)
    refused: list[tuple[dict[str, Any], Label, str]] = [
        ({"Name": "t-1", "S3BucketName": "no-such-bucket"}, HIGH, "S3BucketDoesNotExistException"),
        ({"Name": "t-1", "S3BucketName": "open-bucket"}, LOW, "S3BucketDoesNotExistException"),
        ({"Name": "t-1", "S3BucketName": "closed-bucket"}, HIGH, "InsufficientS3BucketPolicyException"),
        ({"Name": "t", "S3BucketName": "open-bucket"}, HIGH, "InvalidTrailNameException"),
        ({"Name": "t-1", "S3BucketName": "open-bucket", "SnsTopicName": "s"}, HIGH, "InvalidSnsTopicNameException"),
    ]
    for request, label, code in refused:
        with pytest.raises(HonmaruError) as fault:
            desk.ask("create_trail", label, **request)
        assert fault.value.code == code
    desk.ask("create_trail", Name="t-1", S3BucketName="open-bucket")
    desk.ask("start_logging", Name="t-1")
    desk.happen(HIGH)
    desk.s3.delete_bucket_policy(desk.call("DeleteBucketPolicy", HIGH, "s3"), {"Bucket": "open-bucket"})
    step = desk.step()
    assert step.deliver() == 0
    assert desk.ask("get_trail_status", Name="t-1")["LatestDeliveryError"] == "AccessDenied"


def event(**more: Any) -> dict[str, Any]:
    return {"eventName": "PutObject", "eventSource": "s3.amazonaws.com", "readOnly": False, "resources": [], **more}


OBJECT = {"resources": [{"ARN": "arn:aws:s3:::b/k", "type": "AWS::S3::Object"}]}


@pytest.mark.parametrize(
    ("settings", "entry", "wanted"),
    [
        ({}, event(), True),
        ({}, event(**OBJECT), False),
        ({"selectors": [{"ReadWriteType": "ReadOnly"}]}, event(), False),
        ({"selectors": [{"ReadWriteType": "ReadOnly"}]}, event(readOnly=True), True),
        (
            {"selectors": [{"ExcludeManagementEventSources": ["kms.amazonaws.com"]}]},
            event(eventSource="kms.amazonaws.com"),
            False,
        ),
        (
            {"selectors": [{"DataResources": [{"Type": "AWS::S3::Object", "Values": ["arn:aws:s3:::b/"]}]}]},
            event(**OBJECT),
            True,
        ),
        (
            {"selectors": [{"DataResources": [{"Type": "AWS::S3::Object", "Values": ["arn:aws:s3:::c/"]}]}]},
            event(**OBJECT),
            False,
        ),
        (
            {"selectors": [{"DataResources": [{"Type": "AWS::S3::Object", "Values": ["arn:aws:s3"]}]}]},
            event(**OBJECT),
            True,
        ),
        ({"advanced": [{"FieldSelectors": [{"Field": "eventCategory", "Equals": ["Data"]}]}]}, event(**OBJECT), True),
        ({"advanced": [{"FieldSelectors": [{"Field": "eventCategory", "Equals": ["Data"]}]}]}, event(), False),
        ({"advanced": [{"FieldSelectors": [{"Field": "eventName", "NotStartsWith": ["Put"]}]}]}, event(), False),
        (
            {"advanced": [{"FieldSelectors": [{"Field": "resources.ARN", "StartsWith": ["arn:aws:s3:::b/"]}]}]},
            event(**OBJECT),
            True,
        ),
    ],
)
def test_selectors(settings: dict[str, Any], entry: dict[str, Any], wanted: bool) -> None:
    assert selected(entry, settings) is wanted


def test_selectors_that_are_refused(desk: Desk) -> None:
    for given in ([], [{}] * 6, [{"DataResources": [{"Type": "AWS::Lambda::Function"}]}]):
        with pytest.raises(ValidationFault):
            check_basic(given)
    for field in ({"Field": "eventName", "Equals": ["a"]}, {"Field": "eventCategory", "Equals": ["NetworkActivity"]}):
        with pytest.raises(ValidationFault):
            check_advanced([{"FieldSelectors": [field]}])
    desk.bucket("trail-bucket", HIGH)
    desk.ask("create_trail", Name="t-1", S3BucketName="trail-bucket", TagsList=[{"Key": "a", "Value": "b"}])
    desk.ask("put_event_selectors", TrailName="t-1", EventSelectors=[{"ReadWriteType": "WriteOnly"}])
    assert desk.ask("get_event_selectors", TrailName="t-1")["EventSelectors"][0]["ReadWriteType"] == "WriteOnly"
    (trail,) = desk.ask("describe_trails", trailNameList=["t-1", "nosuch"])["trailList"]
    assert trail["HasCustomEventSelectors"]
    desk.ask("add_tags", ResourceId=trail["TrailARN"], TagsList=[{"Key": "c"}])
    desk.ask("remove_tags", ResourceId="t-1", TagsList=[{"Key": "a"}])
    (tags,) = desk.ask("list_tags", ResourceIdList=["t-1"])["ResourceTagList"]
    assert tags["TagsList"] == [{"Key": "c", "Value": ""}]


def test_a_trail_seals_under_a_key_whose_policy_lets_cloudtrail(desk: Desk) -> None:
    """And a key that is off stops the delivery until it is on again; nothing is lost, nothing goes out unsealed."""

    def kms(operation: str, **request: Any) -> Any:
        name = "".join(part.title() for part in operation.split("_"))
        return getattr(desk.kms, operation)(desk.call(name, HIGH, "kms"), request)

    key = kms("create_key")["KeyMetadata"]["KeyId"]
    desk.bucket("sealed-trail", HIGH)
    given = {"Name": "sealed", "S3BucketName": "sealed-trail"}
    with pytest.raises(NotFound):
        desk.ask("create_trail", **given, KmsKeyId="alias/nothing")
    with pytest.raises(ValidationFault) as refusal:
        desk.ask("create_trail", **given, KmsKeyId=key)
    assert refusal.value.code == "InsufficientEncryptionPolicyException"
    everything = {"Sid": "o", "Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "kms:*", "Resource": "*"}
    trail = f"arn:aws-iso-b:cloudtrail:*:{desk.enclave.account}:trail/*"
    service = {
        "Sid": "s",
        "Effect": "Allow",
        "Principal": {"Service": "cloudtrail.amazonaws.com"},
        "Action": "kms:GenerateDataKey*",
        "Resource": "*",
        "Condition": {"StringLike": {"kms:EncryptionContext:aws:cloudtrail:arn": trail}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everything, service]})
    kms("put_key_policy", KeyId=key, Policy=policy)
    assert desk.ask("create_trail", **given, KmsKeyId=key)["KmsKeyId"].endswith(f":key/{key}")
    desk.ask("start_logging", Name="sealed")
    first = desk.happen(HIGH)
    step = desk.step()
    step.deliver()
    assert desk.delivered("sealed-trail") == first
    found = next(iter(desk.buckets.list(desk.session(HIGH), "sealed-trail", "AWSLogs/")))
    head = desk.s3.head_object(desk.call("HeadObject", HIGH, "s3"), {"Bucket": "sealed-trail", "Key": found.key})
    assert head["SSEKMSKeyId"].endswith(f":key/{key}")
    kms("disable_key", KeyId=key)
    second = desk.happen(HIGH)
    step.deliver()
    assert desk.ask("get_trail_status", Name="sealed")["LatestDeliveryError"] == "KMS.DisabledException"
    kms("enable_key", KeyId=key)
    step.deliver()
    assert desk.delivered("sealed-trail") == first + second
    assert desk.ask("update_trail", Name="sealed", KmsKeyId="").get("KmsKeyId") is None
