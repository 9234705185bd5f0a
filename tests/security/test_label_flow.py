"""Non-interference: what a low session sees does not depend on what sessions that it does not dominate do.

Random operations of several sessions run twice over the same start: once all of them, once without those of the
sessions that the observer does not dominate. Everything the observer is shown (answers, lists, counts, errors, the
bytes of objects) must be byte-identical. Time and ids are a function of each action alone, so nothing may differ.

The sabotages remove one check each from the product, and the same search must then find a difference.
Source: Goguen & Meseguer, "Security Policies and Security Models" (1982); SP 800-53 AC-4.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name

from honmaru.core.errors import HonmaruError
from honmaru.core.sessions import Session
from honmaru.ports.events import Event
from honmaru.security.calls import Call
from honmaru.security.guard import Guard, GuardedRecords, Record
from honmaru.services.s3 import bucket as bucket_module
from honmaru.services.s3 import lifecycle_runner, versions
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.lifecycle_runner import LifecycleRunner
from honmaru.services.s3.notification import Outbox, bus_of
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import Keep, SeededIds, Upload, quick_directory, session

SESSIONS = [
    session(marking, name=f"user{number}")
    for number, marking in enumerate(
        ("UNCLASSIFIED", "CONFIDENTIAL", "SECRET", "SECRET//SI", "SECRET//TK", "TOP SECRET//SI/TK")
    )
]
BUCKETS, KEYS = ("bucket-1", "bucket-2"), ("a", "a/b", "d")
ROUNDS = 300 if os.environ.get("HONMARU_LONG") == "1" else 16
LENGTH = 80


@dataclass(frozen=True)
class Action:
    """One operation of one session; `draw` fixes every choice that it makes."""

    number: int
    who: Session
    draw: int


def actions(seed: int) -> list[Action]:
    chance = random.Random(seed)
    return [Action(number, chance.choice(SESSIONS), chance.getrandbits(64)) for number in range(LENGTH)]


class World:
    """One keep, and what each session was shown in it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.keep = Keep(directory)
        self.s3 = S3(self.keep.ids, BucketCommits())
        self.uploads: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.versions: dict[tuple[str, str, str], list[str]] = {}
        """Version ids that each session was shown, by (session, bucket, key)."""
        self.records: dict[str, list[Record]] = {}
        self.s3.create_bucket(self.keep.call(SESSIONS[0], "CreateBucket"), {"Bucket": BUCKETS[0]})

    def run(self, script: Sequence[Action], step: Callable[[World, Action], str]) -> dict[int, str]:
        shown: dict[int, str] = {}
        for action in script:
            self.keep.clock.seconds = float(action.number)
            self.keep.ids.reseed(f"action {action.number}")
            try:
                shown[action.number] = step(self, action)
            except HonmaruError as fault:
                shown[action.number] = repr((type(fault).__name__, fault.code, fault.message, fault.members))
        self.keep.close()
        return shown


def first_difference(
    directory: Path, script: Sequence[Action], observer: Session, step: Callable[[World, Action], str]
) -> str | None:
    """None when the observer is shown the same with and without the actions of sessions that it does not dominate."""
    low = [action for action in script if observer.label.dominates(action.who.label)]
    with_high = World(directory / "with").run(script, step)
    without = World(directory / "without").run(low, step)
    for action in low:
        if action.who == observer and with_high[action.number] != without[action.number]:
            return f"action {action.number}: {with_high[action.number]} != {without[action.number]}"
    return None


# The guard alone


def guard_step(world: World, action: Action) -> str:
    chance = random.Random(action.draw)
    records = world.keep.guard.records(action.who, "x")
    known = world.records.setdefault(action.who.principal_arn, [])
    name = chance.choice("abc")
    match chance.randrange(7):
        case 0 | 1:
            record = records.create("k", name, {"of": action.number}, chance.choice(["New", "Done"]))
            known.append(record)
            return repr(record)
        case 2:
            found = records.get("k", name)
            known += [found] if found else []
            return repr(found)
        case 3:
            return repr(records.list("k", prefix=chance.choice(["", "a"]), limit=chance.randrange(1, 4)))
        case 4:
            return repr(records.list("k", state=chance.choice(["New", "Done"])))
        case 5 if known:
            return repr(records.update(chance.choice(known), {"of": action.number}, chance.choice([None, "Done"])))
        case _ if known:
            return repr(records.delete(chance.choice(known)))
    return ""


# The S3 provider


def s3_request(world: World, action: Action) -> tuple[str, dict[str, Any]]:
    chance = random.Random(action.draw)
    bucket, key = chance.choice(BUCKETS), chance.choice(KEYS)
    place = {"Bucket": bucket, "Key": key}
    own = world.uploads.get((action.who.principal_arn, bucket), [])
    upload = (
        dict(zip(("Key", "UploadId"), chance.choice(own), strict=True)) if own else {"Key": key, "UploadId": "none"}
    )
    content = Upload(f"{action.number} {'x' * chance.randrange(50)}".encode())
    paging = chance.choice(
        [{}, {"MaxKeys": 1}, {"Delimiter": "/"}, {"Prefix": "a"}, {"Delimiter": "/", "StartAfter": "a"}]
    )
    known = world.versions.get((action.who.principal_arn, bucket, key), [])
    version = {"VersionId": chance.choice([*known[-4:], "null"])}
    versioning = {"Status": chance.choice(["Enabled", "Enabled", "Suspended"])}
    until = world.keep.clock.now() + timedelta(seconds=chance.choice([1, 40]))
    marker = {} if len(known) < 2 else {"KeyMarker": key, "VersionIdMarker": chance.choice(known)}
    table: list[tuple[str, dict[str, Any]]] = [
        ("CreateBucket", {"Bucket": bucket, "ObjectLockEnabledForBucket": True}),
        ("PutBucketVersioning", {"Bucket": bucket, "VersioningConfiguration": versioning}),
        ("PutBucketVersioning", {"Bucket": bucket, "VersioningConfiguration": versioning}),
        ("GetBucketVersioning", {"Bucket": bucket}),
        ("ListObjectVersions", {"Bucket": bucket, **chance.choice([{}, {"MaxKeys": 2}, {"Delimiter": "/"}, marker])}),
        ("ListObjectVersions", {"Bucket": bucket, "Prefix": chance.choice(["", "a"])}),
        ("GetObject", {**place, **version}),
        ("GetObject", {**place, **version}),
        ("DeleteObject", {**place, **version}),
        ("DeleteObject", {**place, **version, "BypassGovernanceRetention": True}),
        ("DeleteObject", {**place, "IfMatch": "*"}),
        ("CopyObject", {**place, "CopySource": f"{bucket}/{key}?versionId={version['VersionId']}"}),
        ("PutObjectTagging", {**place, **version, "Tagging": {"TagSet": [{"Key": "n", "Value": str(action.number)}]}}),
        ("PutObjectLegalHold", {**place, **version, "LegalHold": {"Status": chance.choice(["ON", "OFF"])}}),
        ("PutObjectRetention", {**place, "Retention": {"Mode": "GOVERNANCE", "RetainUntilDate": until}}),
        ("GetObjectRetention", place),
        ("CreateBucket", {"Bucket": bucket}),
        ("CreateBucket", {"Bucket": bucket}),
        ("DeleteBucket", {"Bucket": bucket}),
        ("HeadBucket", {"Bucket": bucket}),
        ("ListBuckets", {}),
        ("PutObject", {**place, "Body": content}),
        ("PutObject", {**place, "Body": content}),
        ("PutObject", {**place, "Body": content, "IfNoneMatch": "*"}),
        ("GetObject", place),
        ("GetObject", {**place, "Range": "bytes=1-"}),
        ("HeadObject", place),
        ("DeleteObject", place),
        ("DeleteObjects", {"Bucket": bucket, "Delete": {"Objects": [{"Key": key}, {"Key": "d"}]}}),
        ("ListObjectsV2", {"Bucket": bucket, **paging}),
        ("ListObjects", {"Bucket": bucket, "Delimiter": "/"}),
        ("CopyObject", {**place, "CopySource": f"{chance.choice(BUCKETS)}/{chance.choice(KEYS)}"}),
        ("PutObjectTagging", {**place, "Tagging": {"TagSet": [{"Key": "n", "Value": str(action.number)}]}}),
        ("GetObjectTagging", place),
        ("PutBucketTagging", {"Bucket": bucket, "Tagging": {"TagSet": [{"Key": "n", "Value": str(action.number)}]}}),
        ("GetBucketTagging", {"Bucket": bucket}),
        ("CreateMultipartUpload", place),
        ("UploadPart", {"Bucket": bucket, **upload, "PartNumber": 1, "Body": content}),
        ("ListParts", {"Bucket": bucket, **upload}),
        ("ListMultipartUploads", {"Bucket": bucket}),
        ("AbortMultipartUpload", {"Bucket": bucket, **upload}),
    ]
    return chance.choice(table)


def s3_step(world: World, action: Action) -> str:
    operation, request = s3_request(world, action)
    call = world.keep.call(action.who, operation)
    answer = dict(getattr(world.s3, xform_name(operation))(call, request))
    if operation == "CreateMultipartUpload":
        place = (action.who.principal_arn, request["Bucket"])
        world.uploads.setdefault(place, []).append((request["Key"], answer["UploadId"]))
    shown = [answer, *(answer.get("Versions") or ()), *(answer.get("DeleteMarkers") or ())]
    for one in shown:
        if one.get("VersionId"):
            place_of = (action.who.principal_arn, request["Bucket"], one.get("Key") or request.get("Key", ""))
            world.versions.setdefault(place_of, []).append(one["VersionId"])
    if "Body" in answer:
        answer["Body"] = b"".join(answer["Body"])
    return repr((operation, call.status, call.response_headers, answer))


# Settings of buckets, their events, and the lifecycle runner that works at every label


def settings_request(action: Action) -> tuple[str, dict[str, Any]]:
    chance = random.Random(action.draw)
    if _is_the_clocks(action):
        return "", {}
    place = {"Bucket": BUCKETS[0]}  # one bucket: what is looked for needs a rule, an object and a run to meet
    thing = {**place, "Key": chance.choice(KEYS)}
    number = action.number
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws-iso:s3:::{place['Bucket']}/{number}",
    }
    rule = {"Status": "Enabled", "Filter": {"Prefix": chance.choice(["", "a"])}, "ID": str(number)}
    expiry = {**rule, "Expiration": {"Date": world_epoch()}}
    cors = {"AllowedMethods": ["GET"], "AllowedOrigins": [f"http://{number}"]}
    status = {"Status": chance.choice(["Enabled", "Suspended"])}
    table: list[tuple[str, dict[str, Any]]] = [
        ("PutBucketPolicy", {**place, "Policy": json.dumps({"Statement": statement})}),
        *([("PutBucketLifecycleConfiguration", {**place, "LifecycleConfiguration": {"Rules": [expiry]}})] * 6),
        ("PutBucketCors", {**place, "CORSConfiguration": {"CORSRules": [cors]}}),
        ("PutPublicAccessBlock", {**place, "PublicAccessBlockConfiguration": {"BlockPublicAcls": bool(number % 2)}}),
        (
            "PutBucketNotificationConfiguration",
            {**place, "NotificationConfiguration": {"EventBridgeConfiguration": {}}},
        ),
        (
            "PutBucketNotificationConfiguration",
            {**place, "NotificationConfiguration": {"EventBridgeConfiguration": {}}},
        ),
        ("PutBucketVersioning", {**place, "VersioningConfiguration": status}),
        *((operation, place) for operation in _SETTINGS),
        *([("PutObject", {**thing, "Body": Upload(b"x")})] * 8),
        *([("DeleteObject", thing), ("ListObjectsV2", place), ("ListObjectVersions", place)] * 2),
        *([("CreateBucket", place), ("DeleteBucket", place)]),
        *([("", {})] * 8),
    ]
    return chance.choice(table)


_SETTINGS = (
    "GetBucketPolicy",
    "DeleteBucketPolicy",
    "GetBucketPolicyStatus",
    "GetBucketLifecycleConfiguration",
    "DeleteBucketLifecycle",
    "GetBucketCors",
    "DeleteBucketCors",
    "GetPublicAccessBlock",
    "GetBucketNotificationConfiguration",
    "GetBucketEncryption",
    "GetBucketAcl",
)


def _is_the_clocks(action: Action) -> bool:
    """Whether the lifecycle runner runs here: no session's doing, so it happens in both worlds or in neither."""
    return action.who == SESSIONS[0] and bool(action.draw % 2)


def world_epoch() -> datetime:
    return datetime(2030, 1, 1, tzinfo=UTC)


def settings_step(world: World, action: Action) -> str:
    operation, request = settings_request(action)
    if operation:
        return repr(
            (operation, dict(getattr(world.s3, xform_name(operation))(world.keep.call(action.who, operation), request)))
        )
    if _is_the_clocks(action):
        runner = LifecycleRunner(
            world.keep.guard,
            world.keep.clock,
            OneId(f"run {action.number}"),
            world.s3._commits,
            partition="aws-iso",
            region="us-iso-east-1",
        )
        runner.run()
        return ""
    outbox = Outbox(world.keep.guard)
    events = sorted(outbox.read(action.who, bus_of("aws-iso", "us-iso-east-1", action.who.account)), key=_told)
    own = [event for event in events if event.label == action.who.label]
    outbox.acknowledge(action.who, own[:1])
    return repr([_told(event) for event in events])


class OneId(SeededIds):
    """The same request id for everything that one run of the runner does: in life they are random, and drawn in a row
    they would tell here how many were drawn before."""

    def uuid(self) -> str:
        return self._seed


def _told(event: Event) -> str:
    return repr((event.detail["eventTime"], event.label.canonical, event.detail))


STEPS = {"guard": guard_step, "s3": s3_step, "settings": settings_step}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_directory() as directory:
        yield directory


@pytest.mark.parametrize("over", STEPS)
def test_what_a_session_sees_does_not_depend_on_sessions_it_does_not_dominate(tmp_path: Path, over: str) -> None:
    for seed in range(ROUNDS):
        observer = SESSIONS[seed % (len(SESSIONS) - 1)]
        difference = first_difference(tmp_path / f"{over}{seed}", actions(seed), observer, STEPS[over])
        assert difference is None, f"seed {seed}, observer {observer.label.banner}: {difference}"


def test_the_random_actions_reach_every_operation_and_many_outcomes(tmp_path: Path) -> None:
    """A search that only met errors would prove nothing."""
    done: dict[str, int] = {}
    for seed in range(30):
        world = World(tmp_path / str(seed))
        script = actions(seed)
        shown = world.run(script, s3_step)
        for action in script:
            if shown[action.number].startswith("('"):
                name = shown[action.number].split("'")[1]
                done[name] = done.get(name, 0) + 1
    for operation in (
        "PutObject",
        "GetObject",
        "ListObjectsV2",
        "DeleteObject",
        "DeleteBucket",
        "CopyObject",
        "UploadPart",
        "ListObjectVersions",
        "PutBucketVersioning",
    ):
        assert done.get(operation, 0) >= 1, done


def test_the_random_actions_reach_settings_events_and_expiry(tmp_path: Path) -> None:
    done: dict[str, int] = {}
    for seed in range(30):
        shown = World(tmp_path / str(seed)).run(actions(seed), settings_step)
        for answer in shown.values():
            for word in (*_SETTINGS, "ObjectCreated:Put", "ObjectRemoved:Delete", "LifecycleExpiration:Delete"):
                done[word] = done.get(word, 0) + (f"'{word}'" in answer and "NotFound" not in answer)
    assert all(done.values()), done


# Sabotage: each removes one check, and the search above must find it.


def _every_label_is_visible(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "visible_labels", lambda self, _: self.all_labels())


def _one_name_over_all_labels(patch: pytest.MonkeyPatch) -> None:
    """No polyinstantiation: a create conflicts with an instance at any label."""
    from honmaru.core.errors import Conflict

    create = GuardedRecords.create

    def checked(self: GuardedRecords, kind: str, name: str, body: Mapping[str, Any], state: str = "") -> Record:
        if self._guard.rows(self._session.account, self._service, kind, name, self._guard.all_labels()):
            raise Conflict(f"{kind} {name!r} already exists")
        return create(self, kind, name, body, state)

    patch.setattr(GuardedRecords, "create", checked)


def _write_down(patch: pytest.MonkeyPatch) -> None:
    """A session may change what it sees: a high session overwrites low records in place."""
    commit = Guard.commit

    def down(self: Guard, who: Session, account: str, label: Any, service: str, changes: Sequence[Any], *_: Any) -> Any:
        records = [change.record for change in changes if hasattr(change, "record")]
        return commit(self, who, account, records[0].label if records else label, service, changes)

    patch.setattr(GuardedRecords, "_check_own", lambda *_: None)
    patch.setattr(Guard, "commit", down)


def _count_everything_before_deleting_a_bucket(patch: pytest.MonkeyPatch) -> None:
    """The classic leak: "not empty" because of objects that the session cannot see."""
    delete = bucket_module.delete

    def counting(call: Call, request: Mapping[str, Any]) -> Any:
        from honmaru.core.errors import Conflict

        labels = call.guard.all_labels()
        bucket_module.require(call.records, request)
        if call.guard.page(call.session.account, "s3", "object", labels, f"{request['Bucket']}/", "", None, 1):
            raise Conflict("The bucket you tried to delete is not empty", code="BucketNotEmpty")
        return delete(call, request)

    patch.setattr(bucket_module, "delete", counting)


def _every_version_is_listed(patch: pytest.MonkeyPatch) -> None:
    """The new listing without its filter: every instance of a version, at whatever label."""

    def every(
        self: GuardedRecords, kind: str, *, prefix: str = "", after: str = "", page: int = 256
    ) -> Iterator[Record]:
        rows = self._guard.page(
            self._session.account, self._service, kind, self._guard.all_labels(), prefix, after, None, 999
        )
        return (self._guard.open(row) for row in rows)

    patch.setattr(GuardedRecords, "iterate_instances", every)


def _rules_act_on_all_that_is_visible(patch: pytest.MonkeyPatch) -> None:
    """A rule below that is carried out by somebody who sees, and may delete, everything."""
    due = lifecycle_runner._due

    def run(self: Any, bucket: Record, rules: Any, now: Any) -> Counter[str]:
        done: Counter[str] = Counter()
        for label in self._guard.all_labels():
            call = self._call(bucket.account, self._guard.label(label), now)
            for head in call.records.iterate("object", prefix=f"{bucket.name}/"):
                if head.label.canonical == label:
                    for _, request, check in due(rules, bucket, versions.key_of(head), [head], now):
                        done["x"] += self._remove(call, request, check)
        return done

    patch.setattr(LifecycleRunner, "_of_bucket", run)


SABOTAGES = {
    "a rule acts above its bucket": (_rules_act_on_all_that_is_visible, "settings"),
    "every label is visible": (_every_label_is_visible, "guard"),
    "every label is visible (S3)": (_every_label_is_visible, "s3"),
    "one name over all labels": (_one_name_over_all_labels, "guard"),
    "write down": (_write_down, "guard"),
    "a list of versions shows what is above": (_every_version_is_listed, "s3"),
    "deleting a bucket counts what is above": (_count_everything_before_deleting_a_bucket, "s3"),
}


@pytest.fixture(params=SABOTAGES)
def sabotaged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    sabotage, over = SABOTAGES[request.param]
    sabotage(monkeypatch)
    return over


def test_the_search_finds_every_sabotage(tmp_path: Path, sabotaged: str) -> None:
    for seed in range(200):
        observer = SESSIONS[seed % (len(SESSIONS) - 1)]
        if first_difference(tmp_path / str(seed), actions(seed), observer, STEPS[sabotaged]) is not None:
            return
    pytest.fail("200 random scripts did not find the missing check")
