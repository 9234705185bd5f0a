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
from honmaru.services.logs import Logs, LogStore
from honmaru.services.logs.patterns import compiled
from honmaru.testing.keep import Keep, session

HIGH, LOW = session("SECRET"), session("UNCLASSIFIED")


class Desk:
    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.store = LogStore(keep.guard, keep.clock, keep.ids)
        self.logs = Logs(self.store)

    def ask(self, operation: str, who: Any = HIGH, **request: Any) -> dict[str, Any]:
        answer = getattr(self.logs, operation)(self.keep.call(who, operation, service="logs"), request)
        assert isinstance(answer, dict)
        return answer

    def write(self, *messages: str, who: Any = HIGH, stream: str = "s", at: int = 0, position: str = "") -> None:
        self.store.append(who, "g", stream, [LogEvent(at + i, m) for i, m in enumerate(messages)], position=position)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    keep = Keep(tmp_path)
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
    ],
)
def test_patterns(pattern: str, message: str, matches: bool) -> None:
    assert compiled(pattern)(message) is matches


@pytest.mark.parametrize("pattern", ['{ $.level = "x" }', "[a, b]", "%x+%", '"open'])
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
    for name, at in (("b", 5), ("a", 9), ("c", 1)):
        desk.ask("create_log_stream", logGroupName="g", logStreamName=name)
        events = [{"timestamp": at, "message": "m"}]
        desk.ask("put_log_events", logGroupName="g", logStreamName=name, logEvents=events)
    with pytest.raises(ValidationFault, match="chronological"):
        backward = [{"timestamp": 2, "message": "m"}, {"timestamp": 1, "message": "m"}]
        desk.ask("put_log_events", logGroupName="g", logStreamName="a", logEvents=backward)
    request = {"logGroupName": "g", "orderBy": "LastEventTime", "descending": True, "limit": 2}
    first = desk.ask("describe_log_streams", **request)
    second = desk.ask("describe_log_streams", **request, nextToken=first["nextToken"])
    names = [each["logStreamName"] for answer in (first, second) for each in answer["logStreams"]]
    assert names == ["a", "b", "c"]
    assert second["nextToken"] is None
    assert desk.ask("describe_log_groups", logGroupNamePrefix="g")["logGroups"][0]["storedBytes"] == 3 * 27
