"""Logs Insights: the query language over rows, and queries over groups."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honmaru.core.errors import NotFound, ValidationFault
from honmaru.ports.logs import LogEvent
from honmaru.services.logs import Logs, LogStore
from honmaru.services.logs.insights import Moment, Row, parse
from honmaru.services.logs.insights.rows import shown
from honmaru.services.logs.linear_regex import Malformed, linear
from honmaru.testing.keep import Keep, quick_directory, session

HIGH, LOW = session("SECRET"), session("UNCLASSIFIED")
MINUTE = 60_000
LINES = [
    {"level": "error", "ms": 250, "user": "ann", "http": {"status": 500}},
    {"level": "info", "ms": 10, "user": "bob", "http": {"status": 200}},
    {"level": "error", "ms": 150, "user": "ann", "tags": ["x", "y"]},
    {"level": "info", "ms": 90, "user": "cy"},
]


def ask(text: str, limit: int = 100) -> list[dict[str, str]]:
    rows = [
        Row({"@timestamp": Moment(1_000_000 * MINUTE + place * MINUTE), "@message": json.dumps(line)})
        for place, line in enumerate(LINES)
    ]
    query = parse(text)
    return [
        {name: shown(value) for name in query.columns if (value := row.get(name)) is not None}
        for row in query.run(rows, limit)
    ]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (
            "fields user, ms | filter level = 'error' | sort ms",
            [{"user": "ann", "ms": "150"}, {"user": "ann", "ms": "250"}],
        ),
        ("fields user | limit 2", [{"user": "cy"}, {"user": "ann"}]),
        ("fields user | filter http.status >= 500", [{"user": "ann"}]),
        ("fields user | filter tags.1 = 'y'", [{"user": "ann"}]),
        ("fields user | filter user in ['bob', 'cy'] and not ms > 50", [{"user": "bob"}]),
        ("fields user | filter user like /^(b|c).$/", [{"user": "cy"}]),
        ("fields user | filter user not like 'n' | sort user desc", [{"user": "cy"}, {"user": "bob"}]),
        ("fields ms / 10 + 1 as x | sort x desc | limit 1", [{"x": "26"}]),
        (
            "fields concat(toupper(user), '-', level) as k | filter ispresent(http.status) | sort k",
            [{"k": "ANN-error"}, {"k": "BOB-info"}],
        ),
        (
            "stats count(*) by level | sort level",
            [{"level": "error", "count(*)": "2"}, {"level": "info", "count(*)": "2"}],
        ),
        (
            "stats avg(ms) as a, max(ms), pct(ms, 50) as p by level | sort a desc | limit 1",
            [{"level": "error", "a": "200", "max(ms)": "250", "p": "200"}],
        ),
        (
            "stats count(*) as n by bin(2m) | sort n",
            [{"bin(2m)": "1971-11-26 10:40:00.000", "n": "2"}, {"bin(2m)": "1971-11-26 10:42:00.000", "n": "2"}],
        ),
        ("stats sum(ms) as s by user | filter s > 100 | sort s desc", [{"user": "ann", "s": "400"}]),
        (
            "stats count_distinct(user), latest(user), earliest(user)",
            [{"count_distinct(user)": "3", "latest(user)": "cy", "earliest(user)": "ann"}],
        ),
        ("stats count(*) by user | sort count(*) desc | limit 1", [{"user": "ann", "count(*)": "2"}]),
        ("filter ms > 1000 | stats count(*) as n", [{"n": "0"}]),
        (
            'parse @message \'"user": "*"\' as who | dedup who | fields who | sort who',
            [{"who": "ann"}, {"who": "bob"}, {"who": "cy"}],
        ),
        (r'parse @message /"ms": (?<t>\d+)/ | stats max(t) as m', [{"m": "250"}]),
        ("fields user, ms | display ms | sort ms | limit 1", [{"ms": "10"}]),
    ],
)
def test_queries(text: str, answer: list[dict[str, str]]) -> None:
    assert ask(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "explode",
        "fields",
        "filter a =",
        "filter (a",
        "stats count(",
        "stats mode(a)",
        "limit x",
        "limit 0",
        "parse @message 'a'",
        "parse @message '*' as a, b",
        "parse @message /x/",
        "filter a like /(?=x)/",
        "fields nosuch(a)",
        "stats pct(a, 101)",
        "stats count(*) by bin(0m)",
        "filter " + "(" * 100 + "a",
        "fields a fields b",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValidationFault) as refused:
        parse(text)
    assert refused.value.code == "MalformedQueryException"


@given(st.text(alphabet="abfieldsrtp @|=<>'\"/(),*.0123-[]`\\", max_size=60))
@settings(max_examples=300)
def test_no_query_breaks_the_parser(text: str) -> None:
    try:
        query = parse("filter " + text)
    except ValidationFault:
        return
    query.run([Row({"@timestamp": Moment(0), "@message": "a b"})], 10)


@pytest.mark.parametrize("expression", ["(a+)+$", "(a|a)*b", "(a*)*b", "a{0,200}a{0,200}b", "(.*)(.*)(.*)x"])
def test_no_expression_holds_the_enclave_up(expression: str) -> None:
    started = time.process_time()
    assert not linear(expression).search("a" * 20_000 + "c")
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "expression", ["(a", "a)", "a{2", "a**", "*a", r"\1", "(?=a)", "(?<a>x)(?<a>y)", "[z-a]", "[a", "\\"]
)
def test_expressions_that_are_not_supported_say_so(expression: str) -> None:
    with pytest.raises(Malformed):
        linear(expression)


@pytest.mark.parametrize("expression", ["((a{1000}){1000}){1000}", "((?:){1000}){1000}", "(" * 200 + "a" + ")" * 200])
def test_expressions_that_are_too_large_are_refused(expression: str) -> None:
    with pytest.raises(Malformed):
        linear(expression)


@given(st.text(alphabet="ab|*+?()[]^$.-", max_size=8), st.text(alphabet="abc-", max_size=8))
@settings(max_examples=400)
def test_expressions_mean_what_re_says(expression: str, text: str) -> None:
    import re
    import warnings

    try:
        ours = linear(expression)
    except Malformed:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = re.compile(expression.replace("$", r"\Z"))
        except re.error:  # an anchor that is repeated
            return
    found = theirs.search(text)
    assert ours.search(text) is (found is not None)
    groups = ours.groups_of(text)
    assert (groups is None) is (found is None)
    if found is not None and groups is not None:
        assert groups[0] == found[0]


@pytest.fixture
def desk() -> Iterator[Desk]:
    with quick_directory() as directory:
        keep = Keep(directory)
        yield Desk(keep)
        keep.close()


class Desk:
    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.store = LogStore(keep.guard, keep.clock, keep.ids)
        self.logs = Logs(self.store, keep.clock)
        self.now = int(keep.clock.now().timestamp())

    def ask(self, operation: str, who: Any = HIGH, **request: Any) -> dict[str, Any]:
        answer = getattr(self.logs, operation)(self.keep.call(who, operation, service="logs"), request)
        assert isinstance(answer, dict)
        return answer

    def query(self, text: str, who: Any = HIGH) -> str:
        span = {"startTime": self.now - 60, "endTime": self.now + 60}
        return str(self.ask("start_query", who, logGroupName="g", queryString=text, **span)["queryId"])

    def write(self, *lines: str, who: Any = HIGH, stream: str = "s") -> None:
        self.store.append(who, "g", stream, [LogEvent(self.now * 1000, line) for line in lines])


def values(answer: dict[str, Any], name: str) -> list[str]:
    return [field["value"] for row in answer["results"] for field in row if field["field"] == name]


def test_a_query_sees_what_its_asker_dominates(desk: Desk) -> None:
    desk.write("low", who=LOW, stream="a")
    desk.write("high", who=HIGH, stream="b")
    low, high = desk.query("fields @message", LOW), desk.query("fields @message | sort @message", HIGH)
    assert values(desk.ask("get_query_results", LOW, queryId=low), "@message") == ["low"]
    assert values(desk.ask("get_query_results", HIGH, queryId=high), "@message") == ["high", "low"]
    with pytest.raises(NotFound):
        desk.ask("get_query_results", LOW, queryId=high)
    assert [each["queryId"] for each in desk.ask("describe_queries", LOW)["queries"]] == [low]
    pointer = values(desk.ask("get_query_results", HIGH, queryId=high), "@ptr")[0]
    assert desk.ask("get_log_record", HIGH, logRecordPointer=pointer)["logRecord"]["@message"] == "high"
    with pytest.raises(NotFound):
        desk.ask("get_log_record", LOW, logRecordPointer=pointer)


def test_a_query_is_stopped_before_its_results_are_asked_for(desk: Desk) -> None:
    desk.write("x")
    stopped, answered = desk.query("fields @message"), desk.query("fields @message")
    assert desk.ask("stop_query", queryId=stopped) == {"success": True}
    assert desk.ask("get_query_results", queryId=stopped)["status"] == "Cancelled"
    assert desk.ask("get_query_results", queryId=answered)["status"] == "Complete"
    with pytest.raises(ValidationFault, match="not running"):
        desk.ask("stop_query", queryId=answered)
    states = {each["queryId"]: each["status"] for each in desk.ask("describe_queries")["queries"]}
    assert states == {stopped: "Cancelled", answered: "Complete"}


def test_results_come_in_pages(desk: Desk) -> None:
    desk.write(*(f"{n:02}" for n in range(7)))
    query = desk.query("fields @message | sort @message")
    found: list[str] = []
    token: dict[str, str] = {}
    while True:
        answer = desk.ask("get_query_results", queryId=query, maxItems=3, **token)
        found += values(answer, "@message")
        if not answer["nextToken"]:
            break
        token = {"nextToken": answer["nextToken"]}
    assert found == [f"{n:02}" for n in range(7)]


def test_saved_queries_and_fields(desk: Desk) -> None:
    desk.write('{"a": 1}', '{"a": 2, "b": {"c": 3}}')
    fields = {
        each["name"]: each["percent"] for each in desk.ask("get_log_group_fields", logGroupName="g")["logGroupFields"]
    }
    assert (fields["a"], fields["b.c"], fields["@message"]) == (100, 50, 100)
    saved = desk.ask("put_query_definition", name="n", queryString="limit 1", logGroupNames=["g"])["queryDefinitionId"]
    desk.ask("put_query_definition", name="n2", queryString="limit 2", queryDefinitionId=saved)
    (found,) = desk.ask("describe_query_definitions", queryDefinitionNamePrefix="n2")["queryDefinitions"]
    assert (found["queryDefinitionId"], found["queryString"]) == (saved, "limit 2")
    assert desk.ask("describe_query_definitions", LOW)["queryDefinitions"] == []
    assert desk.ask("delete_query_definition", queryDefinitionId=saved) == {"success": True}
