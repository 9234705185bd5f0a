"""CloudWatch Logs over the guard: order, tokens, patterns, labels, exactly-once appends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from honmaru.core.errors import AccessDenied, Conflict, NotFound, ValidationFault
from honmaru.ports.logs import LogEvent
from honmaru.security.guard import GuardedRecords
from honmaru.services.logs import Logs, LogStore, reading
from honmaru.services.logs.patterns import compiled
from honmaru.services.logs.retention import Retention
from honmaru.testing.keep import Keep, quick_directory, session

HIGH, LOW = session("SECRET"), session("UNCLASSIFIED")


class Desk:
    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.store = LogStore(keep.guard, keep.clock, keep.ids)
        self.logs = Logs(self.store, keep.clock)

    def ask(self, operation: str, who: Any = HIGH, **request: Any) -> dict[str, Any]:
        answer = getattr(self.logs, operation)(self.keep.call(who, operation, service="logs"), request)
        assert isinstance(answer, dict)
        return answer

    def write(self, *messages: str, who: Any = HIGH, stream: str = "s", at: int = 0, position: str = "") -> None:
        self.store.append(who, "g", stream, [LogEvent(at + i, m) for i, m in enumerate(messages)], position=position)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with quick_directory() as directory:
        keep = Keep(directory)
        yield Desk(keep)
        keep.close()


def messages(answer: dict[str, Any]) -> list[str]:
    return [event["message"] for event in answer["events"]]


def test_reading_forward_ends_with_the_same_token_and_goes_on_later(desk: Desk) -> None:
    desk.write("a", "b", "c")
    first = desk.ask("get_log_events", logGroupName="g", logStreamName="s", startFromHead=True, limit=2)
    assert messages(first) == ["a", "b"]
    second = desk.ask("get_log_events", logGroupName="g", logStreamName="s", nextToken=first["nextForwardToken"])
    assert messages(second) == ["c"]
    end = desk.ask("get_log_events", logGroupName="g", logStreamName="s", nextToken=second["nextForwardToken"])
    assert (messages(end), end["nextForwardToken"]) == ([], second["nextForwardToken"])
    desk.write("d")
    later = desk.ask("get_log_events", logGroupName="g", logStreamName="s", nextToken=end["nextForwardToken"])
    assert messages(later) == ["d"]


def test_reading_backward_from_the_end(desk: Desk) -> None:
    desk.write("a", "b", "c")
    desk.write("d", "e", at=3)
    last = desk.ask("get_log_events", logGroupName="g", logStreamName="s", limit=2)
    assert messages(last) == ["d", "e"]
    before = desk.ask(
        "get_log_events", logGroupName="g", logStreamName="s", nextToken=last["nextBackwardToken"], limit=2
    )
    assert messages(before) == ["b", "c"]
    head = desk.ask("get_log_events", logGroupName="g", logStreamName="s", nextToken=before["nextBackwardToken"])
    assert messages(head) == ["a"]
    none = desk.ask("get_log_events", logGroupName="g", logStreamName="s", nextToken=head["nextBackwardToken"])
    assert (messages(none), none["nextBackwardToken"]) == ([], head["nextBackwardToken"])
    again = desk.ask("get_log_events", logGroupName="g", logStreamName="s", nextToken=head["nextForwardToken"])
    assert messages(again) == ["b", "c", "d", "e"]


def test_a_long_stream_is_read_whole_in_pages(desk: Desk) -> None:
    wanted = [f"{i} {'x' * 3000}" for i in range(1500)]
    desk.write(*wanted)
    found: list[str] = []
    answer = desk.ask("get_log_events", logGroupName="g", logStreamName="s", startFromHead=True)
    while messages(answer):
        assert sum(map(len, messages(answer))) < 2 << 20
        found += messages(answer)
        token = answer["nextForwardToken"]
        answer = desk.ask("get_log_events", logGroupName="g", logStreamName="s", nextToken=token)
    assert found == wanted


def test_time_bounds(desk: Desk) -> None:
    desk.write("a", "b", "c", "d", at=100)
    answer = desk.ask("get_log_events", logGroupName="g", logStreamName="s", startTime=101, endTime=103)
    assert messages(answer) == ["b", "c"]


def test_filter_goes_over_streams_by_time_and_pages(desk: Desk) -> None:
    desk.write("ERROR 1", "fine", "ERROR 2", at=10, stream="one")
    desk.write("ERROR 3", "ERROR 4", at=11, stream="two")
    found: list[str] = []
    token: dict[str, str] = {}
    while True:
        answer = desk.ask("filter_log_events", logGroupName="g", filterPattern="ERROR", limit=1, **token)
        found += messages(answer)
        if not answer["nextToken"]:
            break
        token = {"nextToken": answer["nextToken"]}
    assert found == ["ERROR 1", "ERROR 3", "ERROR 2", "ERROR 4"]
    only = desk.ask("filter_log_events", logGroupName="g", logStreamNames=["two"])
    assert messages(only) == ["ERROR 3", "ERROR 4"]


@pytest.mark.parametrize(
    ("pattern", "message", "matches"),
    [
        ("", "anything", True),
        ("ERROR", "an ERROR here", True),
        ("ERROR", "an error here", False),
        ("ERROR disk", "disk ERROR", True),
        ("ERROR disk", "net ERROR", False),
        ('"disk full"', "disk full now", True),
        ('"disk full"', "full disk", False),
        ("?ERROR ?WARN", "WARN x", True),
        ("?ERROR ?WARN", "INFO x", False),
        ("ERROR -retry", "ERROR retry", False),
        ('-"try again"', "ERROR", True),
        (r'"say \"no\""', 'they say "no"', True),
        ("%code [45]\\d+%", "a code 503 here", True),
        ("%^code%", "a code 503 here", False),
        ('{ $.a = 1 && $.b = "x*y" }', '{"a": 1.0, "b": "x--y"}', True),
        ('{ $.a = 1 && $.b != "x*" }', '{"a": 1, "b": "xy"}', False),
        ("{ $.a.b[1] >= 3 || ($.t IS TRUE) }", '{"t": true}', True),
        ("{ $.a.b[1] >= 3 }", '{"a": {"b": [0, 3]}}', True),
        ("{ $.a != 1 }", "{}", False),
        ("{ $.a NOT EXISTS }", "{}", True),
        ("{ $.a IS NULL }", '{"a": null}', True),
        ("{ $.a = 1 }", "a = 1", False),
        ("[ip, user, request = *.html*, status = 4*]", '::1 bob "GET /x.html" 404', True),
        ("[ip, user, request = *.html*, status = 4*]", '::1 bob "GET /x.png" 404', False),
        ("[ip, status = 404 || status = 5*]", "a 503", True),
        ("[ip, status >= 400 && status < 500]", "a 503", False),
        ("[..., size > 100]", "a b c 200", True),
        ("[a, b]", "one two three", False),
    ],
)
def test_patterns(pattern: str, message: str, matches: bool) -> None:
    assert compiled(pattern)(message) is matches


@pytest.mark.parametrize("pattern", ['{ $.level = "x"', "{ $.a ~ 1 }", "[a, b", "[a = ]", "%x(?=y)%", '"open'])
def test_patterns_that_are_not_supported_say_so(pattern: str) -> None:
    with pytest.raises(ValidationFault) as refused:
        compiled(pattern)
    assert refused.value.code == "InvalidParameterException"


@given(st.text(), st.text())
def test_no_pattern_breaks_the_parser(pattern: str, message: str) -> None:
    try:
        matches = compiled(pattern)
    except ValidationFault:
        return
    assert matches(message) in (True, False)


def test_the_writers_position_is_stored_with_the_events(desk: Desk) -> None:
    assert desk.store.position(HIGH, "g", "s") == ""
    desk.write("a", position="17")
    assert desk.store.position(HIGH, "g", "s") == "17"
    assert desk.store.position(LOW, "g", "s") == ""


def test_labels_keep_streams_apart(desk: Desk) -> None:
    desk.write("low", who=LOW)
    assert messages(desk.ask("get_log_events", logGroupName="g", logStreamName="s")) == ["low"]
    desk.write("high")
    assert messages(desk.ask("get_log_events", logGroupName="g", logStreamName="s")) == ["high"]
    assert messages(desk.ask("get_log_events", LOW, logGroupName="g", logStreamName="s")) == ["low"]
    desk.ask("delete_log_group", LOW, logGroupName="g")
    assert messages(desk.ask("get_log_events", logGroupName="g", logStreamName="s")) == ["high"]
    with pytest.raises(NotFound, match="log group does not exist"):
        desk.ask("get_log_events", LOW, logGroupName="g", logStreamName="s")


def test_a_group_above_is_not_there_and_one_below_is_not_deleted(desk: Desk) -> None:
    desk.ask("create_log_group", logGroupName="above")
    assert desk.ask("describe_log_groups", LOW)["logGroups"] == []
    with pytest.raises(NotFound):
        desk.ask("describe_log_streams", LOW, logGroupName="above")
    desk.ask("create_log_group", LOW, logGroupName="above")
    desk.ask("create_log_group", LOW, logGroupName="below")
    with pytest.raises(AccessDenied):
        desk.ask("delete_log_group", logGroupName="below")


def test_a_deleted_stream_comes_back_empty(desk: Desk) -> None:
    desk.write("a", "b")
    desk.ask("delete_log_stream", logGroupName="g", logStreamName="s")
    desk.ask("create_log_stream", logGroupName="g", logStreamName="s")
    assert messages(desk.ask("get_log_events", logGroupName="g", logStreamName="s")) == []


def test_put_and_describe(desk: Desk) -> None:
    desk.ask("create_log_group", logGroupName="g")
    with pytest.raises(Conflict) as taken:
        desk.ask("create_log_group", logGroupName="g")
    assert taken.value.code == "ResourceAlreadyExistsException"
    now = int(desk.keep.clock.now().timestamp() * 1000)
    for name, at in (("b", now + 5), ("a", now + 9), ("c", now + 1)):
        desk.ask("create_log_stream", logGroupName="g", logStreamName=name)
        events = [{"timestamp": at, "message": "m"}]
        desk.ask("put_log_events", logGroupName="g", logStreamName=name, logEvents=events)
    with pytest.raises(ValidationFault, match="chronological"):
        backward = [{"timestamp": now + 2, "message": "m"}, {"timestamp": now + 1, "message": "m"}]
        desk.ask("put_log_events", logGroupName="g", logStreamName="a", logEvents=backward)
    request = {"logGroupName": "g", "orderBy": "LastEventTime", "descending": True, "limit": 2}
    first = desk.ask("describe_log_streams", **request)
    second = desk.ask("describe_log_streams", **request, nextToken=first["nextToken"])
    names = [each["logStreamName"] for answer in (first, second) for each in answer["logStreams"]]
    assert names == ["a", "b", "c"]
    assert second["nextToken"] is None
    assert desk.ask("describe_log_groups", logGroupNamePrefix="g")["logGroups"][0]["storedBytes"] == 3 * 27


def test_events_that_are_too_old_expired_or_too_new_are_turned_away_one_by_one(desk: Desk) -> None:
    day, hour = 86_400_000, 3_600_000
    now = int(desk.keep.clock.now().timestamp() * 1000)
    desk.ask("create_log_group", logGroupName="g")
    desk.ask("create_log_stream", logGroupName="g", logStreamName="s")

    def put(*times: int) -> dict[str, Any]:
        events = [{"timestamp": at, "message": str(at)} for at in times]
        answer = desk.ask("put_log_events", logGroupName="g", logStreamName="s", logEvents=events)
        return dict(answer["rejectedLogEventsInfo"] or {})

    assert put(now - 14 * day - hour, now - 14 * day + hour) == {"tooOldLogEventEndIndex": 1}
    assert put(now, now + 3 * hour) == {"tooNewLogEventStartIndex": 1}
    desk.ask("put_retention_policy", logGroupName="g", retentionInDays=1)
    assert put(now - day - 1, now - hour) == {"expiredLogEventEndIndex": 1}
    assert put(now - 20 * day) == {"tooOldLogEventEndIndex": 1}
    with pytest.raises(ValidationFault, match="24 hours"):
        put(now - day - hour, now)
    stored = desk.ask("get_log_events", logGroupName="g", logStreamName="s", startFromHead=True)
    assert messages(stored) == [str(now - 14 * day + hour), str(now), str(now - hour)]


def test_expiry_deletes_what_is_over_at_its_own_label_and_nothing_else(desk: Desk) -> None:
    day = 86_400_000
    now = int(desk.keep.clock.now().timestamp() * 1000)
    step = Retention(desk.keep.guard, desk.store, desk.keep.clock, partition="aws-iso", region="us-iso-east-1")
    for who in (LOW, HIGH):
        desk.store.append(who, "g", "s", [LogEvent(now - 3 * day, "old")])
        desk.store.append(who, "g", "s", [LogEvent(now - 2 * day, "older than a day"), LogEvent(now, "mixed")])
        desk.store.append(who, "g", "s", [LogEvent(now, "new")])
    desk.ask("put_retention_policy", LOW, logGroupName="g", retentionInDays=1)
    with pytest.raises(ValidationFault, match="expected one of"):
        desk.ask("put_retention_policy", LOW, logGroupName="g", retentionInDays=2)
    before = desk.ask("get_log_events", LOW, logGroupName="g", logStreamName="s", startFromHead=True, limit=1)
    assert step.expire() == 1
    assert step.expire() == 0
    left = ["older than a day", "mixed", "new"]
    read = {"logGroupName": "g", "logStreamName": "s"}
    assert messages(desk.ask("get_log_events", LOW, **read, startFromHead=True)) == left
    assert messages(desk.ask("get_log_events", LOW, **read)) == left
    assert messages(desk.ask("get_log_events", LOW, **read, nextToken=before["nextForwardToken"])) == left
    assert messages(desk.ask("get_log_events", HIGH, **read, startFromHead=True)) == ["old", *left]
    desk.ask("delete_retention_policy", LOW, logGroupName="g")
    desk.keep.clock.seconds += 10 * 86400
    assert step.expire() == 0


def test_settings_and_tags_of_a_group_below_are_not_changed(desk: Desk) -> None:
    desk.ask("create_log_group", LOW, logGroupName="g", tags={"a": "1"}, deletionProtectionEnabled=True)
    arn = "arn:aws-iso:logs:us-iso-east-1:123456789012:log-group:g"
    for operation, request in (
        ("put_retention_policy", {"logGroupName": "g", "retentionInDays": 7}),
        ("tag_resource", {"resourceArn": arn, "tags": {"b": "2"}}),
        ("untag_log_group", {"logGroupName": "g", "tags": ["a"]}),
    ):
        with pytest.raises(AccessDenied):
            desk.ask(operation, HIGH, **request)
    assert desk.ask("list_tags_for_resource", HIGH, resourceArn=arn) == {"tags": {"a": "1"}}
    desk.ask("tag_resource", LOW, resourceArn=arn, tags={"b": "2"})
    desk.ask("untag_resource", LOW, resourceArn=arn, tagKeys=["a"])
    assert desk.ask("list_tags_log_group", LOW, logGroupName="g") == {"tags": {"b": "2"}}
    with pytest.raises(ValidationFault, match="deletion protection"):
        desk.ask("delete_log_group", LOW, logGroupName="g")
    desk.ask("put_log_group_deletion_protection", LOW, logGroupIdentifier=arn, deletionProtectionEnabled=False)
    desk.ask("delete_log_group", LOW, logGroupName="g")


class Sink:
    def __init__(self) -> None:
        self.data: list[tuple[str, str, Any]] = []

    def put(self, who: Any, namespace: str, data: Any) -> None:
        self.data += [(who.label.canonical, namespace, each) for each in data]


def test_metric_filters_make_metrics_at_the_label_of_the_events(tmp_path: Path) -> None:
    keep, sink = Keep(tmp_path), Sink()
    desk = Desk(keep)
    desk.store = LogStore(keep.guard, keep.clock, keep.ids, sink)
    desk.logs = Logs(desk.store, keep.clock)
    desk.ask("create_log_group", LOW, logGroupName="g")
    transformation = {"metricName": "Ms", "metricNamespace": "App", "metricValue": "$.ms", "dimensions": {"P": "$.p"}}
    filtered = {"logGroupName": "g", "filterName": "slow", "filterPattern": "{ $.ms > 100 && $.p = * }"}
    desk.ask("put_metric_filter", LOW, **filtered, metricTransformations=[transformation])
    count = {"metricName": "Errors", "metricNamespace": "App", "metricValue": "1", "defaultValue": 0.0}
    desk.ask(
        "put_metric_filter", LOW, logGroupName="g", filterName="n", filterPattern="ERROR", metricTransformations=[count]
    )
    desk.write('{"ms": 250, "p": "/a"}', '{"ms": 5, "p": "/a"}', '{"ms": "x", "p": "/a"}', "ERROR", who=HIGH, at=1000)
    made = [(label, namespace, each.name, each.value, dict(each.dimensions)) for label, namespace, each in sink.data]
    high = HIGH.label.canonical
    assert made == [(high, "App", "Errors", 1.0, {}), (high, "App", "Ms", 250.0, {"P": "/a"})]
    desk.write("fine", who=LOW, at=2000)
    assert [(each[0], each[2].name, each[2].value) for each in sink.data[2:]] == [(LOW.label.canonical, "Errors", 0.0)]
    described = desk.ask("describe_metric_filters", LOW, metricName="Ms", metricNamespace="App")["metricFilters"]
    assert [each["filterName"] for each in described] == ["slow"]
    tested = desk.ask(
        "test_metric_filter", filterPattern="[ip, ms > 10]", logEventMessages=["a 5", "b 50", "one two three"]
    )
    assert tested["matches"] == [
        {"eventNumber": 2, "eventMessage": "b 50", "extractedValues": {"$ip": "b", "$ms": "50"}}
    ]
    desk.ask("delete_log_group", LOW, logGroupName="g")
    assert desk.ask("describe_metric_filters", LOW)["metricFilters"] == []
    keep.close()


def test_following_a_long_stream_reads_its_end_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    day = 86_400_000
    for number in range(64):  # a chunk a day
        now = int(desk.keep.clock.now().timestamp() * 1000)
        desk.store.append(HIGH, "g", "s", [LogEvent(now, f"{number}")])
        desk.keep.clock.seconds += day / 1000
    desk.write("idle", stream="other", at=int(desk.keep.clock.now().timestamp() * 1000) - 100 * day)
    reads: list[str] = []
    get = GuardedRecords.get
    monkeypatch.setattr(GuardedRecords, "get", lambda self, kind, name: reads.append(kind) or get(self, kind, name))
    start = int(desk.keep.clock.now().timestamp() * 1000) - 2 * day
    found = desk.ask("filter_log_events", logGroupName="g", startTime=start)
    assert messages(found) == ["62", "63"]
    assert reads.count("log-chunk") < 12
    assert len(messages(desk.ask("filter_log_events", logGroupName="g"))) == 65


def test_one_call_looks_at_a_bounded_number_of_events(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SCAN_EVENTS", 7)
    now = int(desk.keep.clock.now().timestamp() * 1000)
    for stream in ("a", "b", "c"):
        for number in range(10):  # times that go forth and back
            desk.write(f"{stream}{number}", stream=stream, at=now + (number * 7) % 10)
    found: list[str] = []
    pages = 0
    token: dict[str, str] = {}
    while True:
        answer = desk.ask("filter_log_events", logGroupName="g", filterPattern="?3 ?9", **token)
        found += messages(answer)
        pages += 1
        if not answer["nextToken"]:
            break
        token = {"nextToken": answer["nextToken"]}
    assert sorted(found) == ["a3", "a9", "b3", "b9", "c3", "c9"]
    assert 4 <= pages <= 6


@given(st.sampled_from("{["), st.text(alphabet='$.ab01=!<>&|()[]"%*, ISNULTRE-', max_size=40), st.text(max_size=20))
def test_no_pattern_of_members_or_columns_breaks_the_parser(opening: str, inside: str, message: str) -> None:
    try:
        matches = compiled(opening + inside + {"{": "}", "[": "]"}[opening])
    except ValidationFault:
        return
    assert matches(message) in (True, False)
    assert matches('{"a": [{"b": 1}], "ab": null}') in (True, False)
    matches.values(message)
