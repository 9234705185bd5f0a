"""LookupEvents: what a session sees of the ledger, newest first, page by page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from honmaru.core.errors import ValidationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.sessions import Session
from honmaru.security.ledger import Ledger
from honmaru.security.ledger.entries import api_call, state_change
from honmaru.services.cloudtrail import lookup as lookups
from honmaru.services.cloudtrail.lookup import Lookup

SECRET = Label.parse("SECRET")
ACCOUNT = "123456789012"
START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class SecondsClock:
    """Advances one second a call."""

    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


def session(label: Label, name: str = "alice", account: str = ACCOUNT) -> Session:
    arn = f"arn:aws-iso-b:iam::{account}:user/{name}"
    return Session(account, "aws-iso-b", "us-isob-east-1", arn, "AIDAX", "user", label, arn, f"AKIA{name.upper()}")


def record(ledger: Ledger, label: Label, event_id: str, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "event_id": event_id, "session": session(label), "service": "s3", "event_source": "s3.amazonaws.com",
        "operation": "GetObject", "request_id": f"r-{event_id}", "at": START, "decision": "Allow",
        "region": "us-isob-east-1", "account": ACCOUNT, "read_only": True,
    }  # fmt: skip
    ledger.append(label, api_call(**{**arguments, **changes})).result(10)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger", clock=SecondsClock(), secret=os.urandom)
    yield ledger
    ledger.close()


def lookup(ledger: Ledger, label: Label = BOTTOM, account: str = ACCOUNT, **request: Any) -> dict[str, Any]:
    call: Any = SimpleNamespace(session=session(label, account=account))
    return Lookup(ledger).events(call, request)


def ids(answer: dict[str, Any]) -> list[str]:
    return [event["EventId"] for event in answer["Events"]]


def every_id(ledger: Ledger, label: Label = BOTTOM, **request: Any) -> list[str]:
    found: list[str] = []
    answer = lookup(ledger, label, **request)
    found += ids(answer)
    while answer["NextToken"]:
        answer = lookup(ledger, label, NextToken=answer["NextToken"], **request)
        found += ids(answer)
    return found


def by(key: str, value: str) -> list[dict[str, str]]:
    return [{"AttributeKey": key, "AttributeValue": value}]


def test_newest_first_with_cloudtrails_members(ledger: Ledger) -> None:
    record(ledger, BOTTOM, "a")
    record(ledger, BOTTOM, "b", resources=[("arn:aws-iso-b:s3:::bucket", "AWS::S3::Bucket")])
    answer = lookup(ledger)
    assert ids(answer) == ["b", "a"]
    event = answer["Events"][0]
    assert event["EventName"] == "GetObject"
    assert event["ReadOnly"] == "true"
    assert event["Username"] == "alice"
    assert event["AccessKeyId"] == "AKIAALICE"
    assert event["EventTime"].tzinfo is not None
    assert event["Resources"] == [{"ResourceType": "AWS::S3::Bucket", "ResourceName": "arn:aws-iso-b:s3:::bucket"}]
    assert json.loads(event["CloudTrailEvent"])["requestID"] == "r-b"
    assert answer["NextToken"] is None


def test_a_session_sees_its_own_level_and_below_and_no_trace_of_more(ledger: Ledger) -> None:
    for number in range(6):
        record(ledger, BOTTOM, f"low{number}")
    before = [lookup(ledger, BOTTOM), lookup(ledger, BOTTOM, MaxResults=2)]
    for number in range(6):
        record(ledger, SECRET, f"high{number}")
    assert [lookup(ledger, BOTTOM), lookup(ledger, BOTTOM, MaxResults=2)] == before
    assert every_id(ledger, SECRET, MaxResults=5) == [
        *(f"high{n}" for n in range(5, -1, -1)),
        *(f"low{n}" for n in range(5, -1, -1)),
    ]


def test_other_accounts_and_state_changes_are_not_events(ledger: Ledger) -> None:
    record(ledger, BOTTOM, "mine")
    record(ledger, BOTTOM, "theirs", account="999999999999")
    change = state_change(
        event_id="change", at=START, account=ACCOUNT, service="s3", kind="bucket", name="b", label=BOTTOM.canonical,
        change="create", state="", version=1,
    )  # fmt: skip
    ledger.append(BOTTOM, change).result(10)
    assert ids(lookup(ledger)) == ["mine"]
    assert ids(lookup(ledger, account="999999999999")) == ["theirs"]


def test_pages_show_each_event_once_while_the_ledger_grows(ledger: Ledger) -> None:
    for number in range(30):
        record(ledger, (BOTTOM, SECRET)[number % 2], f"e{number}")
    answer = lookup(ledger, SECRET, MaxResults=7)
    found = ids(answer)
    while answer["NextToken"]:
        record(ledger, BOTTOM, f"later{len(found)}")
        answer = lookup(ledger, SECRET, MaxResults=7, NextToken=answer["NextToken"])
        found += ids(answer)
    assert found == [f"e{n}" for n in range(29, -1, -1)]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("EventId", "e3", ["e3"]),
        ("EventName", "PutObject", ["e4", "e2", "e0"]),
        ("ReadOnly", "false", ["e4", "e2", "e0"]),
        ("Username", "bob", ["e3"]),
        ("AccessKeyId", "AKIABOB", ["e3"]),
        ("EventSource", "bedrock.amazonaws.com", ["e1"]),
        ("ResourceType", "AWS::S3::Object", ["e2"]),
        ("ResourceName", "arn:aws-iso-b:s3:::bucket/key", ["e2"]),
        ("ResourceName", "bucket/key", ["e2"]),
        ("ResourceName", "key", ["e2"]),
        ("EventName", "DeleteObject", []),
    ],
)
def test_every_attribute_selects(ledger: Ledger, key: str, value: str, expected: list[str]) -> None:
    for number in range(5):
        record(
            ledger, BOTTOM, f"e{number}",
            operation="GetObject" if number % 2 else "PutObject",
            read_only=bool(number % 2),
            session=session(BOTTOM, "bob" if number == 3 else "alice"),
            event_source="bedrock.amazonaws.com" if number == 1 else "s3.amazonaws.com",
            resources=[("arn:aws-iso-b:s3:::bucket/key", "AWS::S3::Object")] if number == 2 else [],
        )  # fmt: skip
    assert ids(lookup(ledger, LookupAttributes=by(key, value))) == expected


def test_times_select_inclusively(ledger: Ledger) -> None:
    for number in range(40):
        record(ledger, BOTTOM, f"e{number}")
    times = {event["EventId"]: event["EventTime"] for event in lookup(ledger, MaxResults=50)["Events"]}
    chosen = every_id(ledger, StartTime=times["e10"], EndTime=times["e20"], MaxResults=4)
    assert chosen == [f"e{n}" for n in range(20, 9, -1)]
    assert every_id(ledger, EndTime=times["e0"]) == ["e0"]
    assert every_id(ledger, StartTime=times["e39"] + timedelta(hours=1)) == []


def test_a_call_looks_at_a_bounded_number_of_entries_and_goes_on_later(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "SCAN_LIMIT", 10)
    for number in range(60):
        record(
            ledger, (BOTTOM, SECRET)[number % 3 == 0], f"e{number}", operation="Rare" if number in (1, 6, 33) else "Get"
        )
    first = lookup(ledger, SECRET, LookupAttributes=by("EventName", "Rare"))
    assert first["Events"] == []
    assert first["NextToken"]
    assert every_id(ledger, SECRET, LookupAttributes=by("EventName", "Rare")) == ["e33", "e6", "e1"]
    assert every_id(ledger, SECRET) == [f"e{n}" for n in range(59, -1, -1)]


def test_long_logs_are_searched_in_bundles(ledger: Ledger) -> None:
    futures = [
        ledger.append(BOTTOM, {"eventID": f"f{n}", "eventType": "AwsApiCall", "recipientAccountId": ACCOUNT, "n": n})
        for n in range(3000)
    ]
    for future in futures:
        future.result(10)
    ledger.checkpoint(BOTTOM)
    assert ids(lookup(ledger, LookupAttributes=by("EventId", "f17"))) == ["f17"]
    assert every_id(ledger) == [f"f{n}" for n in range(2999, -1, -1)]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"LookupAttributes": by("EventId", "a") + by("EventName", "b")}, "InvalidLookupAttributesException"),
        ({"LookupAttributes": by("ReadOnly", "maybe")}, "InvalidLookupAttributesException"),
        ({"StartTime": START + timedelta(1), "EndTime": START}, "InvalidTimeRangeException"),
        ({"MaxResults": 51}, "InvalidMaxResultsException"),
        ({"NextToken": "bm9uc2Vuc2U="}, "InvalidNextTokenException"),
        ({"NextToken": "é"}, "InvalidNextTokenException"),
    ],
)
def test_bad_questions_get_cloudtrails_errors(ledger: Ledger, request_: dict[str, Any], code: str) -> None:
    record(ledger, BOTTOM, "a")
    with pytest.raises(ValidationFault) as refused:
        lookup(ledger, **request_)
    assert refused.value.code == code


def test_a_token_is_bound_to_its_question_and_label(ledger: Ledger) -> None:
    for number in range(5):
        record(ledger, BOTTOM, f"e{number}")
        record(ledger, SECRET, f"s{number}")
    token = lookup(ledger, SECRET, MaxResults=1)["NextToken"]
    with pytest.raises(ValidationFault):
        lookup(ledger, BOTTOM, NextToken=token)
    with pytest.raises(ValidationFault):
        lookup(ledger, SECRET, NextToken=token, LookupAttributes=by("EventName", "x"))


def test_insight_events_do_not_exist(ledger: Ledger) -> None:
    record(ledger, BOTTOM, "a")
    assert lookup(ledger, EventCategory="insight") == {"Events": []}
