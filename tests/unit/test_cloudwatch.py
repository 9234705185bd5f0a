"""CloudWatch over the guard: points, chunks and roll-ups, metric math, alarms, labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honmaru.core.errors import AccessDenied, HonmaruError, NotFound, ValidationFault
from honmaru.ports.metrics import Datum
from honmaru.services.cloudwatch import CloudWatch, MetricStore
from honmaru.services.cloudwatch.composite import Rule as ComposedRule
from honmaru.services.cloudwatch.evaluation import Rule, judge
from honmaru.services.cloudwatch.metric_math import Environment, evaluate
from honmaru.services.cloudwatch.points import MAX_VALUES, Point, percentile, statistic
from honmaru.services.cloudwatch.series import Values
from honmaru.services.cloudwatch.store import TIERS, Expiry
from honmaru.services.cloudwatch.watching import AlarmWatch
from honmaru.testing.keep import Keep, quick_directory, session

HIGH, LOW = session("SECRET"), session("UNCLASSIFIED")
X = 5.0


class Desk:
    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.store = MetricStore(keep.guard, keep.ids)
        self.watch = CloudWatch(self.store)
        place = {"partition": "aws-iso", "region": "us-iso-east-1"}
        self.alarms = AlarmWatch(keep.guard, self.store, keep.clock, keep.ids, **place)
        self.expiry = Expiry(keep.guard, keep.clock, **place)
        keep.clock.seconds = 100 * 86400.0

    @property
    def now(self) -> Any:
        return self.keep.clock.now()

    def ask(self, operation: str, who: Any = HIGH, **request: Any) -> dict[str, Any]:
        answer = getattr(self.watch, operation)(self.keep.call(who, operation, service="cloudwatch"), request)
        assert isinstance(answer, dict)
        return answer

    def put(self, *values: float, who: Any = HIGH, ago_s: float = 0, name: str = "m", **more: Any) -> None:
        at = self.now - timedelta(seconds=ago_s)
        self.store.put(who, "N", [Datum(name, value, at, **more) for value in values])

    def sums(self, hours: float, period: int, who: Any = HIGH, stat: str = "Sum") -> list[float]:
        answer = self.ask(
            "get_metric_statistics", who, Namespace="N", MetricName="m", Period=period, Statistics=[stat],
            StartTime=self.now - timedelta(hours=hours), EndTime=self.now + timedelta(seconds=1),
        )  # fmt: skip
        return [point[stat] for point in answer["Datapoints"]]


@pytest.fixture
def desk() -> Iterator[Desk]:
    with quick_directory() as directory:
        keep = Keep(directory)
        yield Desk(keep)
        keep.close()


# Points


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=MAX_VALUES), st.sampled_from([0.0, 10.0, 50.0, 99.0, 100.0]))
@settings(max_examples=100)
def test_few_values_are_exact(values: list[float], share: float) -> None:
    point = Point.of(values[0])
    for value in values[1:]:
        point = Point.read(Point.of(value).plain()).merged(point)
    assert (point.count, point.low, point.high) == (len(values), min(values), max(values))
    assert math.isclose(point.total, math.fsum(values), rel_tol=1e-9, abs_tol=1e-3)
    if len(values) > 1:
        cut = statistics.quantiles(values, n=100, method="inclusive")[int(share) - 1] if 0 < share < 100 else None
        wanted = {0.0: min(values), 100.0: max(values)}.get(share, cut)
        assert percentile(point, share) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_many_values_are_within_a_percent_and_bounded() -> None:
    point = Point.of(1.0)
    for value in range(2, 5001):
        point = point.merged(Point.of(value * 1.0001))
    assert len(point.values or ()) <= MAX_VALUES
    assert percentile(point, 50) == pytest.approx(2500, rel=0.05)
    assert (point.count, point.high) == (5000, 5000 * 1.0001)
    wild = Point.of(1.0)
    for exponent in range(-90, 90):
        wild = wild.merged(Point.of(10.0**exponent)).merged(Point.of(-(10.0**exponent)))
    assert len(wild.values or ()) <= MAX_VALUES
    assert sum(count for _, count in wild.values or ()) == wild.count


def test_statistic_sets_have_no_percentiles_unless_all_values_are_the_same() -> None:
    mixed, same = Point.statistics(3, 6, 1, 3), Point.statistics(3, 6, 2, 2)
    assert (percentile(mixed, 50), percentile(same, 50)) == (None, 2)
    assert percentile(mixed.merged(same), 50) is None
    assert statistic("p101") is None and statistic("p-1") is None and statistic("nonsense") is None
    tens = Point.of(0.0)
    for value in range(1, 10):
        tens = tens.merged(Point.of(float(value)))
    assert [f(tens) for f in map(statistic, ("tm50", "tc50", "ts50", "IQM")) if f] == [2.0, 5.0, 10.0, 4.5]


# Storage


def test_observations_are_gathered_in_their_periods_across_puts_and_labels(desk: Desk) -> None:
    for ago in (0, 60, 61, 3600):
        desk.put(1.0, 2.0, ago_s=ago)
    desk.put(50.0, who=LOW)
    assert sum(desk.sums(2, 60)) == 12.0
    assert desk.sums(2, 60, LOW) == [50.0]
    assert sum(desk.sums(2, 7200, stat="SampleCount")) == 8.0
    other = desk.ask("list_metrics", LOW, Namespace="N")["Metrics"]
    assert other == [{"Namespace": "N", "MetricName": "m", "Dimensions": []}]
    desk.put(1.0, name="above")
    assert [each["MetricName"] for each in desk.ask("list_metrics", LOW)["Metrics"]] == ["m"]
    assert [each["MetricName"] for each in desk.ask("list_metrics", HIGH)["Metrics"]] == ["above", "m"]


def test_units_are_kept_apart(desk: Desk) -> None:
    desk.put(1.0, unit="Seconds")
    desk.put(2.0, unit="Bytes")
    request = {"Namespace": "N", "MetricName": "m", "Period": 60, "Statistics": ["Sum"]}
    span = {"StartTime": desk.now - timedelta(hours=1), "EndTime": desk.now + timedelta(hours=1)}
    points = desk.ask("get_metric_statistics", **request, **span)["Datapoints"]
    assert [(point["Unit"], point["Sum"]) for point in points] == [("Bytes", 2.0), ("Seconds", 1.0)]
    only = desk.ask("get_metric_statistics", **request, **span, Unit="Seconds")["Datapoints"]
    assert [point["Sum"] for point in only] == [1.0]


def test_seconds_are_kept_for_three_hours_and_counted_once(desk: Desk) -> None:
    for ago in (1, 2, 3):
        desk.put(float(ago), ago_s=ago, resolution_s=1)
    assert desk.sums(0.1, 1) == [3.0, 2.0, 1.0]
    assert sum(desk.sums(0.1, 60)) == 6.0
    desk.keep.clock.seconds += 4 * 3600
    assert desk.expiry.expire() == 1
    assert sum(desk.sums(5, 300)) == 6.0


def test_old_points_are_rolled_up_and_at_last_deleted(desk: Desk) -> None:
    for minute in range(180):
        desk.put(1.0, 3.0, ago_s=minute * 60)
    desk.put(10.0, who=LOW)
    records = desk.store.records(HIGH)

    def chunks() -> list[int]:
        return [sum(1 for _ in records.iterate(tier.kind)) for tier in TIERS]

    total = 180 * 4.0
    assert chunks()[1] >= 3
    for days, minutes, fives, hours in ((16, 0, 1, 0), (64, 0, 0, 1), (455, 0, 0, 0)):
        desk.keep.clock.seconds += days * 86400
        desk.expiry.expire()
        found = chunks()
        assert found[1] == minutes and bool(found[2]) is bool(fives) and bool(found[3]) is bool(hours)
        whole = desk.sums(24 * 600, 86400)
        assert sum(whole) == (total if days < 400 else 0)
    desk.keep.clock.seconds += 60 * 86400
    desk.expiry.expire()
    assert list(records.iterate("metric")) == []


def test_what_put_metric_data_refuses(desk: Desk) -> None:
    good = {"MetricName": "m", "Value": 1.0}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"MetricName": "m"}, "MissingParameter"),
        ({**good, "Values": [1.0]}, "InvalidParameterCombination"),
        ({**good, "Value": math.nan}, "InvalidParameterValue"),
        ({**good, "Value": 2.0**361}, "InvalidParameterValue"),
        ({**good, "Timestamp": desk.now - timedelta(days=15)}, "InvalidParameterValue"),
        ({**good, "Timestamp": desk.now + timedelta(hours=3)}, "InvalidParameterValue"),
        ({**good, "StorageResolution": 5}, "InvalidParameterValue"),
        ({**good, "Dimensions": [{"Name": "a", "Value": "1"}] * 2}, "InvalidParameterValue"),
        ({"MetricName": "m", "Values": [1.0, 2.0], "Counts": [1.0]}, "InvalidParameterValue"),
        ({"MetricName": "m", "Values": [1.0] * 151}, "InvalidParameterValue"),
        (
            {"MetricName": "m", "StatisticValues": {"SampleCount": 0.0, "Sum": 0.0, "Minimum": 0.0, "Maximum": 0.0}},
            "InvalidParameterValue",
        ),
    ]
    for datum, code in bad:
        with pytest.raises(ValidationFault) as refused:
            desk.ask("put_metric_data", Namespace="N", MetricData=[good, datum])
        assert refused.value.code == code
    assert desk.ask("list_metrics")["Metrics"] == []
    with pytest.raises(ValidationFault):
        desk.ask("put_metric_data", Namespace="N", MetricData=[good] * 1001)


# Math


def series(*values: float | None, period: int = 60) -> Values:
    return Values({place * period: value for place, value in enumerate(values) if value is not None}, period)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a + b", [11.0, 22.0]),
        ("a / b * 100", [10.0, 10.0]),
        ("(a + 1) ^ 2", [4.0, 9.0, 16.0]),
        ("-a + 10", [9.0, 8.0, 7.0]),
        ("a / 0 + a", []),
        ("IF(a > 1, a, 0)", [0.0, 2.0, 3.0]),
        ("IF(a == 2 OR a == 3, 1, 0)", [0.0, 1.0, 1.0]),
        ("IF(a > 1 && a < 3, a)", [2.0]),
        ("FILL(c, 0)", [7.0, 0.0, 9.0]),
        ("FILL(c, REPEAT)", [7.0, 7.0, 9.0]),
        ("FILL(c, LINEAR)", [7.0, 8.0, 9.0]),
        ("RATE(a) * 60", [1.0, 1.0]),
        ("DIFF(c)", [2.0]),
        ("RUNNING_SUM(a)", [1.0, 3.0, 6.0]),
        ("SUM([a, b])", [11.0, 22.0, 3.0]),
        ("MAX([a, b])", [10.0, 20.0, 3.0]),
        ("SUM(METRICS())", [18.0, 22.0, 12.0]),
        ("a - AVG(a)", [-1.0, 0.0, 1.0]),
        ("a * METRIC_COUNT(METRICS())", [3.0, 6.0, 9.0]),
        ("a * PERIOD(a)", [60.0, 120.0, 180.0]),
        ("e2 * 2", [4.0, 6.0, 8.0]),
        ("ABS(a - 2)", [1.0, 0.0, 1.0]),
    ],
)
def test_metric_math(text: str, answer: list[float]) -> None:
    known = {"a": series(1.0, 2.0, 3.0), "b": series(10.0, 20.0), "c": series(7.0, None, 9.0)}
    environment = Environment(known, {"e1": text, "e2": "a + 1"}, {}, 0, 180)
    ((_, values),) = evaluate("e1", environment)
    assert [value for _, value in values.ordered()] == pytest.approx(answer)


@pytest.mark.parametrize(
    "text",
    [
        *("e1", "nosuch", "SEARCH('a', 'Sum')", "a +", "1 + 2", "AVG(a)", "METRICS() + METRICS()", "a ? b", '"x"'),
        "(" * 60 + "a",
    ],
)
def test_math_that_is_refused(text: str) -> None:
    with pytest.raises(ValidationFault) as refused:
        evaluate("e1", Environment({"a": series(1.0)}, {"e1": text}, {}, 0, 60))
    assert refused.value.code == "ValidationError"
    assert refused.value.message.startswith("Error in expression 'e1'")


@given(st.text(alphabet="abe12 +-*/^()<>=!&|,[]METRICSUFLIO\"'.", max_size=40))
@settings(max_examples=300)
def test_no_expression_breaks_the_parser(text: str) -> None:
    try:
        evaluate("e1", Environment({"a": series(1.0, 2.0)}, {"e1": text}, {}, 0, 120))
    except HonmaruError:
        return


# Alarms


@pytest.mark.parametrize(
    ("datapoints", "newest", "missing", "ignore", "breaching", "not_breaching"),
    [
        # The tables of the user guide, newest last there and first here. X is over the threshold.
        (3, [X, None, X, None, 0.0], "OK", "OK", "OK", "OK"),
        (3, [0.0, None, None, None, None], "OK", "OK", "OK", "OK"),
        (3, [None] * 5, "INSUFFICIENT_DATA", None, "ALARM", "OK"),
        (3, [X, None, X, X, 0.0], "ALARM", "ALARM", "ALARM", "ALARM"),
        (3, [None, None, X, None, None], "ALARM", None, "ALARM", "OK"),
        (2, [X, None, X, None, 0.0], "ALARM", "ALARM", "ALARM", "ALARM"),
        (2, [X, 0.0, X, 0.0, 0.0], "ALARM", "ALARM", "ALARM", "ALARM"),
        (2, [None, None, X, None, 0.0], "OK", "OK", "ALARM", "OK"),
        (2, [0.0, None, None, None, None], "OK", "OK", "ALARM", "OK"),
        (2, [None, X, None, None, None], "ALARM", None, "ALARM", "OK"),
    ],
)
def test_missing_data_counts_as_the_user_guide_says(
    datapoints: int,
    newest: list[float | None],
    missing: str,
    ignore: str | None,
    breaching: str,
    not_breaching: str,
) -> None:
    wanted = {"missing": missing, "ignore": ignore, "breaching": breaching, "notBreaching": not_breaching}
    for treatment, state in wanted.items():
        rule = Rule(3, datapoints, 1.0, "GreaterThanThreshold", treatment)
        assert judge(rule, newest).state == state, treatment


ALARM = {
    "AlarmName": "a", "Namespace": "N", "MetricName": "m", "Statistic": "Sum", "Period": 60, "EvaluationPeriods": 1,
    "Threshold": 10.0, "ComparisonOperator": "GreaterThanThreshold",
}  # fmt: skip


def state(desk: Desk, who: Any = HIGH) -> str:
    return str(desk.ask("describe_alarms", who)["MetricAlarms"][0]["StateValue"])


def test_an_alarm_follows_its_metric(desk: Desk) -> None:
    desk.ask("put_metric_alarm", **ALARM, TreatMissingData="missing")
    assert (desk.alarms.evaluate(), state(desk)) == (0, "INSUFFICIENT_DATA")
    desk.put(20.0)
    desk.keep.clock.seconds += 61
    assert (desk.alarms.evaluate(), state(desk)) == (1, "ALARM")
    assert desk.alarms.evaluate() == 0
    desk.put(5.0)
    desk.keep.clock.seconds += 61
    assert (desk.alarms.evaluate(), state(desk)) == (1, "OK")
    desk.keep.clock.seconds += 600
    assert (desk.alarms.evaluate(), state(desk)) == (1, "INSUFFICIENT_DATA")
    history = desk.ask(
        "describe_alarm_history", AlarmName="a", HistoryItemType="StateUpdate", ScanBy="TimestampAscending"
    )
    assert [item["HistorySummary"] for item in history["AlarmHistoryItems"]] == [
        "Alarm updated from INSUFFICIENT_DATA to ALARM",
        "Alarm updated from ALARM to OK",
        "Alarm updated from OK to INSUFFICIENT_DATA",
    ]
    desk.keep.clock.seconds += 31 * 86400
    desk.alarms.evaluate()
    assert desk.ask("describe_alarm_history")["AlarmHistoryItems"] == []


def test_an_alarm_sees_no_metric_above_it_and_is_not_changed_from_above(desk: Desk) -> None:
    desk.ask("put_metric_alarm", LOW, **ALARM, TreatMissingData="notBreaching")
    desk.put(1000.0, who=HIGH)
    desk.keep.clock.seconds += 61
    desk.alarms.evaluate()
    assert state(desk, LOW) == "OK"
    for operation, request in (
        ("set_alarm_state", {"AlarmName": "a", "StateValue": "ALARM", "StateReason": "r"}),
        ("delete_alarms", {"AlarmNames": ["a"]}),
        ("disable_alarm_actions", {"AlarmNames": ["a"]}),
    ):
        with pytest.raises(AccessDenied):
            desk.ask(operation, HIGH, **request)
    desk.ask("put_metric_alarm", HIGH, **ALARM)
    desk.alarms.evaluate()
    assert (state(desk, HIGH), state(desk, LOW)) == ("ALARM", "OK")
    desk.ask("delete_alarms", HIGH, AlarmNames=["a"])
    assert state(desk, HIGH) == "OK"
    with pytest.raises(NotFound):
        desk.ask("delete_alarms", LOW, AlarmNames=["a", "b"])
    assert state(desk, LOW) == "OK"


def test_an_alarm_on_metric_math(desk: Desk) -> None:
    metric = {"Metric": {"Namespace": "N", "MetricName": "m"}, "Period": 60, "Stat": "Sum"}
    queries = [
        {"Id": "m1", "MetricStat": metric, "ReturnData": False},
        {"Id": "e1", "Expression": "m1 * 2", "ReturnData": True},
    ]
    plain = {key: ALARM[key] for key in ("AlarmName", "EvaluationPeriods", "Threshold", "ComparisonOperator")}
    desk.ask("put_metric_alarm", **plain, Metrics=queries)
    desk.put(6.0)
    desk.keep.clock.seconds += 61
    desk.alarms.evaluate()
    assert state(desk) == "ALARM"
    for broken in (
        queries[:1],
        [queries[0], {**queries[1], "Expression": "m9"}],
        [{**queries[0], "ReturnData": True}, queries[1]],
    ):
        with pytest.raises(ValidationFault):
            desk.ask("put_metric_alarm", **plain, Metrics=broken)


def test_an_alarm_whose_numbers_overflow_holds_no_other_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = {"Metric": {"Namespace": "N", "MetricName": "m"}, "Period": 60, "Stat": "Sum"}
    plain = {key: ALARM[key] for key in ("EvaluationPeriods", "Threshold", "ComparisonOperator")}
    for number, text in enumerate(("STDDEV([m1 * 1e200, m1])", "SUM([m1 * 1e308, m1 * 1e308])", "AVG([m1/0, m1])")):
        queries = [
            {"Id": "m1", "MetricStat": metric, "ReturnData": False},
            {"Id": "e1", "Expression": text, "ReturnData": True},
        ]
        desk.ask("put_metric_alarm", LOW, **plain, AlarmName=f" {number}", Metrics=queries)  # the first of all names
    desk.ask("put_metric_alarm", **ALARM)
    desk.put(1.5, who=LOW)
    desk.put(6.0)
    desk.keep.clock.seconds += 61
    desk.alarms.evaluate()
    name = ALARM["AlarmName"]
    assert desk.ask("describe_alarms", AlarmNames=[name])["MetricAlarms"][0]["StateValue"] != "INSUFFICIENT_DATA"

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    desk.put(0.0)
    desk.keep.clock.seconds += 3600
    monkeypatch.setattr("honmaru.services.cloudwatch.watching.measured", broken)
    desk.alarms.evaluate()  # it says so in the log, and looks at the next one


def test_a_search_in_periods_of_nothing_is_refused(desk: Desk) -> None:
    query = {"Id": "s", "Expression": "SEARCH('{N}', 'Sum', 0)"}
    with pytest.raises(ValidationFault):
        desk.ask(
            "get_metric_data", MetricDataQueries=[query], StartTime=desk.now - timedelta(hours=1), EndTime=desk.now
        )


@pytest.mark.parametrize(
    "change",
    [
        {"Threshold": None}, {"Period": 7}, {"Statistic": None}, {"ExtendedStatistic": "p99"}, {"DatapointsToAlarm": 2},
        {"ComparisonOperator": "LessThanLowerThreshold"}, {"TreatMissingData": "x"}, {"EvaluationPeriods": 2000},
        {"EvaluationCriteria": {"PromQLCriteria": {"Query": "up"}}},
    ],
)  # fmt: skip
def test_alarms_that_are_refused(desk: Desk, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationFault):
        desk.ask("put_metric_alarm", **{**ALARM, **change})


def test_data_comes_in_pages_and_both_orders(desk: Desk) -> None:
    for minute in range(5):
        desk.put(float(minute), ago_s=minute * 60)
    query = {"Id": "m", "MetricStat": {"Metric": {"Namespace": "N", "MetricName": "m"}, "Period": 60, "Stat": "Sum"}}
    span = {"StartTime": desk.now - timedelta(hours=1), "EndTime": desk.now + timedelta(minutes=1)}
    found: list[float] = []
    token: dict[str, str] = {}
    while True:
        answer = desk.ask("get_metric_data", MetricDataQueries=[query], **span, MaxDatapoints=2, **token)
        found += answer["MetricDataResults"][0]["Values"]
        if not answer["NextToken"]:
            break
        assert answer["MetricDataResults"][0]["StatusCode"] == "PartialData"
        token = {"NextToken": answer["NextToken"]}
    assert found == [0.0, 1.0, 2.0, 3.0, 4.0]
    with pytest.raises(ValidationFault, match="exceeds the limit"):
        desk.sums(48, 60)


def test_dashboards(desk: Desk) -> None:
    desk.ask("put_dashboard", DashboardName="d", DashboardBody='{"widgets": []}')
    assert desk.ask("get_dashboard", DashboardName="d")["DashboardBody"] == '{"widgets": []}'
    assert desk.ask("list_dashboards", LOW)["DashboardEntries"] == []
    with pytest.raises(NotFound):
        desk.ask("get_dashboard", LOW, DashboardName="d")
    with pytest.raises(ValidationFault):
        desk.ask("put_dashboard", DashboardName="d", DashboardBody="[]")
    desk.ask("delete_dashboards", DashboardNames=["d"])
    assert desk.ask("list_dashboards")["DashboardEntries"] == []


@pytest.mark.parametrize(
    ("text", "alarms", "wanted"),
    [
        ('ALARM("a") AND NOT OK(b)', {"a": "ALARM", "b": "ALARM"}, True),
        ('ALARM("a") AND NOT OK(b)', {"a": "ALARM", "b": "OK"}, False),
        ("ALARM(a) OR ALARM(b) AND FALSE", {"a": "ALARM"}, True),
        ("(ALARM(a) OR ALARM(b)) AND FALSE", {"a": "ALARM"}, False),
        ("NOT NOT INSUFFICIENT_DATA(a)", {"a": "INSUFFICIENT_DATA"}, True),
        ("ALARM(arn:aws:cloudwatch:r:1:alarm:a)", {"a": "ALARM"}, True),
        ("ALARM(nosuch) OR OK(nosuch)", {}, False),
    ],
)
def test_rules(text: str, alarms: dict[str, str], wanted: bool) -> None:
    assert ComposedRule(text).holds(alarms.get) is wanted


@pytest.mark.parametrize(
    "text",
    ["", "ALARM", "ALARM(", "ALARM()", "alarm(a)", "ALARM(a) ALARM(b)", "(" * 60, "TRUE AND", 'OK("a)', "RED(a)"],
)
def test_rules_that_are_refused(text: str) -> None:
    with pytest.raises(ValidationFault) as refused:
        ComposedRule(text)
    assert refused.value.code == "ValidationError"


def test_a_composite_alarm_follows_what_its_label_sees(desk: Desk) -> None:
    for name in ("a", "b"):
        desk.ask("put_metric_alarm", LOW, **{**ALARM, "AlarmName": name}, TreatMissingData="ignore")
    desk.ask("put_metric_alarm", HIGH, **{**ALARM, "AlarmName": "c"}, TreatMissingData="ignore")
    with pytest.raises(ValidationFault, match="do not exist"):
        desk.ask("put_composite_alarm", LOW, AlarmName="all", AlarmRule="ALARM(a) AND ALARM(c)")
    desk.ask("put_composite_alarm", LOW, AlarmName="all", AlarmRule="ALARM(a) AND ALARM(b)")
    desk.ask("put_composite_alarm", HIGH, AlarmName="any", AlarmRule="ALARM(a) OR ALARM(c)")

    def composites(who: Any) -> dict[str, str]:
        found = desk.ask("describe_alarms", who, AlarmTypes=["CompositeAlarm"])
        assert found["MetricAlarms"] == []
        return {each["AlarmName"]: each["StateValue"] for each in found["CompositeAlarms"]}

    desk.alarms.evaluate()
    assert (composites(LOW), composites(HIGH)) == ({"all": "OK"}, {"all": "OK", "any": "OK"})
    desk.ask("set_alarm_state", HIGH, AlarmName="c", StateValue="ALARM", StateReason="r")
    desk.ask("set_alarm_state", LOW, AlarmName="a", StateValue="ALARM", StateReason="r")
    desk.keep.clock.seconds += 11
    desk.alarms.evaluate()
    assert composites(HIGH) == {"all": "OK", "any": "ALARM"}
    desk.ask("set_alarm_state", LOW, AlarmName="b", StateValue="ALARM", StateReason="r")
    desk.ask("set_alarm_state", LOW, AlarmName="a", StateValue="ALARM", StateReason="r")
    desk.keep.clock.seconds += 11
    desk.alarms.evaluate()
    assert composites(LOW) == {"all": "ALARM"}
    children = desk.ask("describe_alarms", LOW, ChildrenOfAlarmName="all")["MetricAlarms"]
    assert [each["AlarmName"] for each in children] == ["a", "b"]
    parents = desk.ask("describe_alarms", LOW, ParentsOfAlarmName="a")["CompositeAlarms"]
    assert [each["AlarmName"] for each in parents] == ["all"]
    lines = desk.ask("describe_alarm_history", LOW, AlarmTypes=["CompositeAlarm"], HistoryItemType="StateUpdate")
    assert [each["AlarmName"] for each in lines["AlarmHistoryItems"]] == ["all", "all"]
    assert [each["AlarmName"] for each in desk.ask("describe_alarms", LOW)["MetricAlarms"]] == ["a", "b"]
    with pytest.raises(ValidationFault):
        desk.ask("put_metric_alarm", LOW, **{**ALARM, "AlarmName": "all"})
    desk.ask("delete_alarms", LOW, AlarmNames=["all"])
    assert composites(LOW) == {}


def test_search_finds_what_its_session_sees(desk: Desk) -> None:
    for who, api in ((LOW, "read"), (LOW, "write"), (HIGH, "secret")):
        desk.put(2.0, who=who, name="Calls", dimensions={"Api": api})
    desk.put(5.0, who=LOW, name="Errors", dimensions={"Api": "read", "Code": "x"})
    span = {"StartTime": desk.now - timedelta(hours=1), "EndTime": desk.now + timedelta(minutes=1)}

    def ask(text: str, who: Any = LOW, id_: str = "e") -> list[tuple[str, float]]:
        queries = [{"Id": id_, "Expression": text}]
        found = desk.ask("get_metric_data", who, MetricDataQueries=queries, **span)["MetricDataResults"]
        return [(each["Label"], sum(each["Values"])) for each in found]

    assert ask("SEARCH('{N,Api} MetricName=\"Calls\"', 'Sum', 60)") == [("e read Calls", 2.0), ("e write Calls", 2.0)]
    assert ask("SUM(SEARCH('{N,Api} calls', 'Sum', 60))") == [("e", 4.0)]
    assert ask("SUM(SEARCH('{N,Api} calls', 'Sum', 60))", HIGH) == [("e", 6.0)]
    assert ask("SEARCH('Namespace=\"N\" Api=rea AND errors', 'Maximum')") == [("e", 5.0)]
    assert ask("SEARCH('{N} calls', 'Sum', 60)") == []
    for bad in ("SEARCH('a OR b', 'Sum', 60)", "SEARCH('', 'Sum', 60)", "SEARCH('a', 'Sum', x)", "SEARCH(a, 'Sum')"):
        with pytest.raises(ValidationFault):
            ask(bad)
