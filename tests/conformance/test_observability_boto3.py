"""Unmodified boto3 against a live enclave: logs, metrics, trails and what describes the enclave, at two labels."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave

LOW, HIGH = "UNCLASSIFIED", "SECRET//NOFORN"


@pytest.fixture(scope="module")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnclave]:
    live = LiveEnclave(tmp_path_factory.mktemp("observe") / "data").up()
    live.user("ann", "SECRET//NOFORN")
    yield live
    live.down()


def client(enclave: LiveEnclave, service: str, label: str, **config: Any) -> Any:
    return enclave.client(service, "ann", label, **config)


def code_of(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


def test_logs_are_put_filtered_and_queried(enclave: LiveEnclave) -> None:
    low, high = client(enclave, "logs", LOW), client(enclave, "logs", HIGH)
    low.create_log_group(logGroupName="/app", tags={"team": "a"})
    low.create_log_stream(logGroupName="/app", logStreamName="s")
    now = int(time.time() * 1000)
    lines = [{"level": "error", "ms": 250}, {"level": "info", "ms": 10}]
    events = [{"timestamp": now + place, "message": json.dumps(line)} for place, line in enumerate(lines)]
    answer = low.put_log_events(logGroupName="/app", logStreamName="s", logEvents=events)
    assert "rejectedLogEventsInfo" not in answer
    found = high.filter_log_events(logGroupName="/app", filterPattern='{ $.level = "error" && $.ms > 100 }')["events"]
    assert [event["message"] for event in found] == [events[0]["message"]]
    low.put_retention_policy(logGroupName="/app", retentionInDays=7)
    (group,) = low.describe_log_groups(logGroupNamePrefix="/app")["logGroups"]
    assert (group["retentionInDays"], group["metricFilterCount"]) == (7, 0)
    assert low.list_tags_for_resource(resourceArn=group["logGroupArn"])["tags"] == {"team": "a"}
    span = {"startTime": now // 1000 - 60, "endTime": now // 1000 + 60}
    text = "stats count(*) as n, max(ms) by level | sort level"
    query = low.start_query(logGroupName="/app", queryString=text, **span)["queryId"]
    answer = low.get_query_results(queryId=query)
    assert answer["status"] == "Complete"
    rows = [{field["field"]: field["value"] for field in row} for row in answer["results"]]
    assert rows == [{"level": "error", "n": "1", "max(ms)": "250"}, {"level": "info", "n": "1", "max(ms)": "10"}]
    with pytest.raises(ClientError) as unknown:
        low.start_query(logGroupName="/app", queryString="explode", **span)
    assert code_of(unknown) == "MalformedQueryException"


def test_live_tail_shows_what_arrives_and_nothing_above(enclave: LiveEnclave) -> None:
    low, high = client(enclave, "logs", LOW), client(enclave, "logs", HIGH)
    for logs in (low, high):
        logs.create_log_group(logGroupName="/tail")
        logs.create_log_stream(logGroupName="/tail", logStreamName=f"s-{logs is high}")
    arn = low.describe_log_groups(logGroupNamePrefix="/tail")["logGroups"][0]["logGroupArn"]
    tailing = client(enclave, "logs", LOW, inject_host_prefix=False)
    stream = tailing.start_live_tail(logGroupIdentifiers=[arn], logEventFilterPattern="ERROR")["responseStream"]
    now = int(time.time() * 1000)

    def write() -> None:
        time.sleep(0.2)
        for logs in (high, low):
            event = {"timestamp": now, "message": f"ERROR {logs is high}"}
            logs.put_log_events(logGroupName="/tail", logStreamName=f"s-{logs is high}", logEvents=[event])

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[str] = []
    started = False
    for event in stream:
        started = started or "sessionStart" in event
        seen += [each["message"] for each in event.get("sessionUpdate", {}).get("sessionResults", [])]
        if seen:
            break
    stream.close()
    writer.join()
    assert started
    assert seen == ["ERROR False"]


def test_metrics_are_put_listed_and_read_at_their_label(enclave: LiveEnclave) -> None:
    low, high = client(enclave, "cloudwatch", LOW), client(enclave, "cloudwatch", HIGH)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    for watch, factor in ((low, 1), (high, 100)):
        data = [
            {
                "MetricName": "Latency",
                "Dimensions": [{"Name": "Api", "Value": "x" if watch is low else "y"}],
                "Timestamp": now - timedelta(minutes=minute),
                "Values": [float(factor * value) for value in range(1, 101)],
                "Unit": "Milliseconds",
            }
            for minute in (2, 1)
        ]
        watch.put_metric_data(Namespace="App", MetricData=data)
    names = [
        {each["Dimensions"][0]["Value"] for each in watch.list_metrics(Namespace="App")["Metrics"]}
        for watch in (low, high)
    ]
    assert names == [{"x"}, {"x", "y"}]
    span = {"StartTime": now - timedelta(minutes=5), "EndTime": now + timedelta(minutes=1)}
    metric = {"Namespace": "App", "MetricName": "Latency", "Dimensions": [{"Name": "Api", "Value": "x"}]}
    points = low.get_metric_statistics(
        **metric, **span, Period=300, Statistics=["Sum", "SampleCount"], ExtendedStatistics=["p50"]
    )["Datapoints"]
    assert sum(point["Sum"] for point in points) == 10100.0
    assert points[0]["ExtendedStatistics"]["p50"] == pytest.approx(50.5)
    queries = [
        {"Id": "m", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Average"}, "ReturnData": False},
        {"Id": "e", "Expression": "IF(m > 10, m * 2, 0)", "Label": "twice"},
    ]
    (result,) = low.get_metric_data(MetricDataQueries=queries, **span, ScanBy="TimestampAscending")["MetricDataResults"]
    assert (result["Label"], result["Values"]) == ("twice", [101.0, 101.0])
    assert result["Timestamps"][0] == now - timedelta(minutes=2)
    above = {"Namespace": "App", "MetricName": "Latency", "Dimensions": [{"Name": "Api", "Value": "y"}]}
    assert low.get_metric_statistics(**above, **span, Period=60, Statistics=["Sum"])["Datapoints"] == []
    with pytest.raises(ClientError) as refused:
        low.get_metric_data(MetricDataQueries=[{"Id": "e", "Expression": "SEARCH('x', 'Sum')"}], **span)
    assert code_of(refused) == "ValidationError"
    with pytest.raises(ClientError) as refused:
        low.put_metric_data(Namespace="AWS/X", MetricData=[{"MetricName": "a", "Value": 1.0}])
    assert code_of(refused) == "InvalidParameterValue"


def test_a_large_put_is_compressed_by_the_client_and_taken(enclave: LiveEnclave) -> None:
    watch = client(enclave, "cloudwatch", LOW)
    data = [
        {"MetricName": f"m{n:03}", "Value": float(n), "Dimensions": [{"Name": "d", "Value": "v" * 60}]}
        for n in range(200)
    ]
    answer = watch.put_metric_data(Namespace="Many", MetricData=data)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
    listed = [
        each["MetricName"]
        for page in watch.get_paginator("list_metrics").paginate(Namespace="Many")
        for each in page["Metrics"]
    ]
    assert listed == [f"m{n:03}" for n in range(200)]


def test_an_alarm_goes_off_and_keeps_its_history(enclave: LiveEnclave) -> None:
    low, high = client(enclave, "cloudwatch", LOW), client(enclave, "cloudwatch", HIGH)
    alarm = {
        "AlarmName": "hot", "Namespace": "Room", "MetricName": "Heat", "Statistic": "Maximum", "Period": 10,
        "EvaluationPeriods": 1, "Threshold": 30.0, "ComparisonOperator": "GreaterThanThreshold",
        "AlarmActions": [f"arn:aws-iso-b:sns:{enclave.region}:{enclave.account}:t"],
        "Tags": [{"Key": "a", "Value": "b"}],
    }  # fmt: skip
    high.put_metric_alarm(**alarm)
    assert low.describe_alarms()["MetricAlarms"] == []
    (made,) = high.describe_alarms(AlarmNames=["hot"])["MetricAlarms"]
    assert made["StateValue"] == "INSUFFICIENT_DATA"
    for ago in (0, 10, 20):
        at = datetime.now(UTC) - timedelta(seconds=ago)
        high.put_metric_data(
            Namespace="Room",
            MetricData=[{"MetricName": "Heat", "Value": 40.0, "Timestamp": at, "StorageResolution": 1}],
        )
    deadline = time.monotonic() + 20
    while high.describe_alarms(StateValue="ALARM")["MetricAlarms"] == [] and time.monotonic() < deadline:
        time.sleep(0.3)
    (now,) = high.describe_alarms(StateValue="ALARM")["MetricAlarms"]
    assert "1 out of the last 1 datapoint [40.0" in now["StateReason"]
    kinds = [item["HistoryItemType"] for item in high.describe_alarm_history(AlarmName="hot")["AlarmHistoryItems"]]
    assert sorted(kinds) == ["Action", "ConfigurationUpdate", "StateUpdate"]
    assert low.describe_alarm_history(AlarmName="hot")["AlarmHistoryItems"] == []
    assert high.list_tags_for_resource(ResourceARN=now["AlarmArn"])["Tags"] == [{"Key": "a", "Value": "b"}]
    high.disable_alarm_actions(AlarmNames=["hot"])
    high.set_alarm_state(AlarmName="hot", StateValue="OK", StateReason="by hand")
    with pytest.raises(ClientError) as unknown:
        low.set_alarm_state(AlarmName="hot", StateValue="OK", StateReason="by hand")
    assert code_of(unknown) == "ResourceNotFound"
    high.delete_alarms(AlarmNames=["hot"])
