"""Log groups under keys of KMS: sealed by CloudWatch Logs in its own name, and gone with the key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from honmaru.app.enclave import Enclave
from honmaru.app.settings import Settings
from honmaru.core.errors import AccessDenied, NotFound, ValidationFault
from honmaru.core.labels import Label
from honmaru.security.calls import Call
from honmaru.services.logs import seals
from honmaru.testing.keep import quick_directory

REGION = "us-isob-east-1"
LOW, HIGH = Label.parse("UNCLASSIFIED"), Label.parse("SECRET")


class Desk:
    """An enclave that is not served: its real logs, keys and clock, which can be put ahead."""

    def __init__(self, directory: Path) -> None:
        self.enclave = Enclave(Settings(directory, region=REGION))
        self.enclave.identity.bootstrap()
        self.providers = {each.service: each for each in self.enclave.providers}

    def ask(self, service: str, operation: str, label: Label = HIGH, **request: Any) -> Any:
        key, _ = self.enclave.identity.access_key("admin", label)
        name = "".join(part.title() for part in operation.split("_"))
        parts = (self.enclave.ids.uuid(), self.enclave.clock.now(), self.enclave.guard, {}, {})
        session = self.enclave.identity.credential(key, None).session
        call = Call(session, service, name, *parts, self.enclave.identity.require)
        return getattr(self.providers[service], operation)(call, request)

    def key(self, *groups: str) -> tuple[str, str]:
        """A key (id, ARN) whose policy lets CloudWatch Logs for some groups, as AWS's user guide writes it."""
        made = self.ask("kms", "create_key")["KeyMetadata"]
        everything = {"Sid": "o", "Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "kms:*", "Resource": "*"}
        arns = [f"arn:aws-iso-b:logs:{REGION}:{self.enclave.account}:log-group:{group}" for group in groups]
        service = {
            "Sid": "s",
            "Effect": "Allow",
            "Principal": {"Service": f"logs.{REGION}.amazonaws.com"},
            "Action": ["kms:Encrypt*", "kms:Decrypt*", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:Describe*"],
            "Resource": "*",
            "Condition": {"ArnEquals": {"kms:EncryptionContext:aws:logs:arn": arns}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [everything, service]})
        self.ask("kms", "put_key_policy", KeyId=made["KeyId"], Policy=policy)
        return made["KeyId"], made["Arn"]

    def put(self, group: str, *messages: str, label: Label = HIGH) -> None:
        now = int(self.enclave.clock.now().timestamp() * 1000)
        events = [{"timestamp": now, "message": each} for each in messages]
        self.ask("logs", "put_log_events", label, logGroupName=group, logStreamName="s", logEvents=events)

    def read(self, group: str, label: Label = HIGH) -> list[str]:
        answer = self.ask("logs", "get_log_events", label, logGroupName=group, logStreamName="s", startFromHead=True)
        return [event["message"] for event in answer["events"]]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(seals, "KEPT_S", 0.0)  # keys are opened for each use
    with quick_directory() as directory:
        made_desk = Desk(directory)
        yield made_desk
        made_desk.enclave.ledger.close()


def refused(run: Callable[[], object], match: str) -> None:
    with pytest.raises(ValidationFault, match=match) as refusal:
        run()
    assert refusal.value.code == "InvalidParameterException"


def made(desk: Desk, group: str, **more: Any) -> None:
    desk.ask("logs", "create_log_group", logGroupName=group, **more)
    desk.ask("logs", "create_log_stream", logGroupName=group, logStreamName="s")


def test_events_are_under_the_key_that_the_group_had_when_they_came(desk: Desk) -> None:
    first_id, first = desk.key("app")
    second_id, second = desk.key("app")
    made(desk, "app")
    desk.put("app", "before")
    named = {"logGroupName": "app"}
    desk.ask("logs", "associate_kms_key", **named, kmsKeyId=first)
    desk.put("app", "under the first", "and more")
    desk.ask("logs", "associate_kms_key", **named, kmsKeyId=second)
    desk.put("app", "under the second")
    desk.ask("logs", "disassociate_kms_key", **named)
    desk.put("app", "after")
    everything = ["before", "under the first", "and more", "under the second", "after"]
    assert desk.read("app") == everything
    found = desk.ask("logs", "filter_log_events", **named, filterPattern="under")["events"]
    assert [each["message"] for each in found] == ["under the first", "under the second"]
    backwards = desk.ask("logs", "get_log_events", **named, logStreamName="s", limit=2)["events"]
    assert [each["message"] for each in backwards] == everything[-2:]
    desk.ask("kms", "disable_key", KeyId=first_id)
    refused(lambda: desk.read("app"), "could not be used")
    desk.put("app", "still taken")  # the group has no key now
    desk.ask("kms", "enable_key", KeyId=first_id)
    desk.ask("kms", "disable_key", KeyId=second_id)
    refused(lambda: desk.ask("logs", "associate_kms_key", **named, kmsKeyId=second), "could not be used")
    desk.ask("logs", "associate_kms_key", **named, kmsKeyId=first)
    desk.ask("kms", "enable_key", KeyId=second_id)
    assert desk.read("app") == [*everything, "still taken"]
    described = desk.ask("logs", "describe_log_groups", logGroupNamePrefix="app")["logGroups"][0]
    assert described["kmsKeyId"] == first


def test_a_group_under_a_key_takes_nothing_while_the_key_is_off(desk: Desk) -> None:
    key_id, key = desk.key("app")
    made(desk, "app", kmsKeyId=key)
    desk.put("app", "one")
    desk.ask("kms", "disable_key", KeyId=key_id)
    refused(lambda: desk.put("app", "two"), "could not be used")
    refused(lambda: desk.read("app"), "could not be used")
    desk.ask("kms", "enable_key", KeyId=key_id)
    assert desk.read("app") == ["one"]


def test_the_keys_policy_must_name_the_service_and_the_group(desk: Desk) -> None:
    _, other = desk.key("another-group")
    plain = desk.ask("kms", "create_key")["KeyMetadata"]["Arn"]
    for key in (other, plain, "arn:aws-iso-b:kms:us-isob-east-1:000000000000:key/none", "alias/x"):
        refused(lambda key=key: made(desk, "app", kmsKeyId=key), "could not be used|must be the ARN")  # type: ignore[misc]
    with pytest.raises(NotFound):
        desk.ask("logs", "associate_kms_key", logGroupName="app", kmsKeyId=other)
    _, key = desk.key("app")
    made(desk, "app", kmsKeyId=key)
    identifier = desk.ask("logs", "describe_log_groups")["logGroups"][0]["logGroupArn"]
    desk.ask("logs", "disassociate_kms_key", resourceIdentifier=identifier)
    refused(lambda: desk.ask("logs", "associate_kms_key", resourceIdentifier="q", kmsKeyId=key), "query|queries")


def test_a_key_is_the_groups_own_label_and_what_lies_below_is_read(desk: Desk) -> None:
    key_id = desk.ask("kms", "create_key", LOW)["KeyMetadata"]["KeyId"]
    arn = f"arn:aws-iso-b:kms:{REGION}:{desk.enclave.account}:key/{key_id}"
    everybody = {"AWS": "*", "Service": f"logs.{REGION}.amazonaws.com"}
    statement = {"Sid": "a", "Effect": "Allow", "Principal": everybody, "Action": "kms:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    desk.ask("kms", "put_key_policy", LOW, KeyId=key_id, Policy=policy)
    desk.ask("logs", "create_log_group", LOW, logGroupName="low", kmsKeyId=arn)
    desk.ask("logs", "create_log_stream", LOW, logGroupName="low", logStreamName="s")
    desk.put("low", "seen from above", label=LOW)
    assert desk.read("low") == ["seen from above"]
    with pytest.raises(AccessDenied):
        desk.ask("logs", "disassociate_kms_key", logGroupName="low")


def test_sealed_events_expire_without_their_key_and_a_destroyed_key_shreds(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, key = desk.key("app")
    made(desk, "app", kmsKeyId=key)
    desk.put("app", "gone with the key")
    desk.ask("kms", "schedule_key_deletion", KeyId=key_id, PendingWindowInDays=7)
    refused(lambda: desk.read("app"), "could not be used")
    later = desk.enclave.clock.now() + timedelta(days=8)
    monkeypatch.setattr(type(desk.enclave.clock), "now", lambda _: later)
    custody = next(step for step in desk.enclave.background._steps if step.name == "custody of keys")
    custody.work()
    refused(lambda: desk.read("app"), "could not be used")
    store = desk.providers["logs"]._store
    session = desk.enclave.identity.credential(desk.enclave.identity.access_key("admin", HIGH)[0], None).session
    records = desk.enclave.guard.records(session, "logs")
    stream = store.stream(records, "app", "s")
    assert stream.body["bytes"] > 0
    assert store.expire(records, stream, int(datetime.timestamp(later) * 1000)) == 1
    assert store.stream(records, "app", "s").body["bytes"] == 0
    assert desk.read("app") == []
