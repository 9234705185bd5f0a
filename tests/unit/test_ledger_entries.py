"""Entries: CloudTrail's shape, no content, never too large."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from honmaru.core.labels import BOTTOM
from honmaru.core.sessions import Session
from honmaru.security.ledger.entries import MAX_ENTRY_BYTES, api_call, state_change
from honmaru.security.ledger.ledger import encode

AT = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
ROLE = "arn:aws-iso-b:iam::123456789012:role/trainer"


def session(kind: str = "user", arn: str = "arn:aws-iso-b:iam::123456789012:user/team/alice", **more: Any) -> Session:
    issuer = ROLE if kind in ("assumed-role", "service") else arn
    return Session("123456789012", "aws-iso-b", "us-isob-east-1", arn, "AIDAX:s", kind, BOTTOM, issuer, **more)


def call(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "event_id": "e1", "session": session(), "service": "s3", "event_source": "s3.amazonaws.com",
        "operation": "GetObject", "request_id": "r1", "at": AT, "decision": "Allow", "region": "us-isob-east-1",
        "account": "123456789012", "read_only": True,
    }  # fmt: skip
    return api_call(**{**arguments, **changes})


def test_an_api_call_has_cloudtrails_record_shape() -> None:
    entry = call(resources=[("arn:aws-iso-b:s3:::b/k", "AWS::S3::Object")], source_ip="127.0.0.1", user_agent="Boto3")
    assert entry["eventTime"] == "2026-11-23T12:00:00Z"
    assert entry["userIdentity"]["type"] == "IAMUser"
    assert entry["userIdentity"]["userName"] == "alice"
    assert entry["resources"] == [
        {"ARN": "arn:aws-iso-b:s3:::b/k", "accountId": "123456789012", "type": "AWS::S3::Object"}
    ]
    assert (entry["requestParameters"], entry["responseElements"]) == (None, None)
    assert entry["honmaru"]["label"] == BOTTOM.canonical
    assert "errorCode" not in entry
    present = (
        "eventVersion eventSource eventName awsRegion sourceIPAddress userAgent requestID eventID eventType "
        "recipientAccountId readOnly managementEvent eventCategory"
    )
    for name in present.split():
        assert entry[name] not in (None, ""), name


def test_a_refused_call_says_why() -> None:
    entry = call(session=None, error_code="AccessDenied", error_message="no", decision={"effect": "Deny"})
    assert entry["userIdentity"] == {"type": "Unknown"}
    assert (entry["errorCode"], entry["errorMessage"]) == ("AccessDenied", "no")
    assert entry["honmaru"]["decision"] == {"effect": "Deny"}


def test_a_role_session_names_its_role_and_the_human_behind_it() -> None:
    arn = "arn:aws-iso-b:sts::123456789012:assumed-role/trainer/job-1"
    identity = call(session=session("assumed-role", arn, human="arn:aws-iso-b:iam::123456789012:user/alice"))[
        "userIdentity"
    ]
    assert identity["type"] == "AssumedRole"
    assert identity["sessionContext"]["sessionIssuer"]["arn"] == ROLE
    assert identity["sessionContext"]["sourceIdentity"].endswith("user/alice")


def test_many_resources_are_counted_and_digested() -> None:
    resources = [(f"arn:aws-iso-b:s3:::bucket/{'k' * 900}{number}", "AWS::S3::Object") for number in range(1000)]
    entry = call(resources=resources)
    left_out = entry["honmaru"]["resourcesOmitted"]
    assert len(entry["resources"]) + left_out["count"] == 1000
    assert len(left_out["sha384"]) == 96


texts = st.one_of(st.text(max_size=100), st.integers(0, 70_000).map(lambda n: "x" * n), st.just("\udcff" * 2000))


@given(texts, texts, texts, st.dictionaries(st.text(max_size=10), texts, max_size=4))
def test_no_call_is_too_large_or_too_strange_to_record(
    agent: str, message: str, operation: str, details: dict[str, Any]
) -> None:
    entry = call(user_agent=agent, error_message=message, operation=operation, details=details,
                 resources=[(message, operation)] * 50, request_id="r", decision={"why": message})  # fmt: skip
    assert len(encode(entry)) < MAX_ENTRY_BYTES


@given(texts, texts)
def test_no_state_change_is_too_large(name: str, state: str) -> None:
    entry = state_change(
        event_id="e", at=AT, account="123456789012", service="s3", kind="object", name=name, label="U", change="create",
        state=state, version=1, body_digest="0" * 96,
    )  # fmt: skip
    assert len(encode(entry)) < MAX_ENTRY_BYTES
    assert entry["eventType"] == "HonmaruStateChange"
