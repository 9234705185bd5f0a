"""Unmodified boto3 against a live enclave: logs, metrics, trails and what describes the enclave, at two labels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
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
        low.get_metric_data(MetricDataQueries=[{"Id": "e", "Expression": "ANOMALY_DETECTION_BAND(m)"}], **span)
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


def test_environments_appear_as_repositories_beside_ones_own(enclave: LiveEnclave) -> None:
    low, high = client(enclave, "ecr", LOW), client(enclave, "ecr", HIGH)
    names = [each["repositoryName"] for each in low.describe_repositories()["repositories"]]
    assert {"pytorch", "honmaru-lm", "serve"} <= set(names)
    (listed,) = low.list_images(repositoryName="pytorch")["imageIds"]
    (image,) = low.batch_get_image(repositoryName="pytorch", imageIds=[{"imageTag": "latest"}])["images"]
    assert image["imageId"]["imageDigest"] == listed["imageDigest"]
    manifest = json.loads(image["imageManifest"])
    assert manifest["annotations"]["org.opencontainers.image.title"] == "pytorch"
    made = high.create_repository(repositoryName="team/secret", tags=[{"Key": "a", "Value": "b"}])["repository"]
    assert made["repositoryUri"].endswith(".sc2s.sgov.gov/team/secret")
    for operation in (low.list_images, low.delete_repository, low.get_repository_policy):
        with pytest.raises(ClientError) as unknown:
            operation(repositoryName="team/secret")
        assert code_of(unknown) == "RepositoryNotFoundException"
    assert "team/secret" not in [each["repositoryName"] for each in low.describe_repositories()["repositories"]]
    statement = {"Effect": "Allow", "Principal": "*", "Action": "ecr:BatchGetImage"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    high.set_repository_policy(repositoryName="team/secret", policyText=policy)
    assert json.loads(high.get_repository_policy(repositoryName="team/secret")["policyText"]) == json.loads(policy)
    assert high.list_tags_for_resource(resourceArn=made["repositoryArn"])["tags"] == [{"Key": "a", "Value": "b"}]
    with pytest.raises(ClientError) as unpushed:
        high.initiate_layer_upload(repositoryName="team/secret")
    assert unpushed.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501
    with pytest.raises(ClientError) as fixed:
        low.delete_repository(repositoryName="pytorch")
    assert code_of(fixed) == "InvalidParameterException"
    high.delete_repository(repositoryName="team/secret")


def test_tags_of_every_service_and_nothing_of_what_is_above(enclave: LiveEnclave) -> None:
    for label in (LOW, HIGH):
        marks = label.split("//")[0].lower()
        tags = {"level": marks, f"only-{marks}": "x"}
        client(enclave, "logs", label).create_log_group(logGroupName=f"/tagged/{marks}", tags=tags)
        plain = [{"Key": key, "Value": value} for key, value in tags.items()]
        client(enclave, "ecr", label).create_repository(repositoryName=f"tagged/{marks}", tags=plain)
        s3 = client(enclave, "s3", label)
        bucket = f"tagged-{marks}"
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": enclave.region})
    low, high = (client(enclave, "resourcegroupstaggingapi", label) for label in (LOW, HIGH))
    bucket_arn = "arn:aws-iso-b:s3:::tagged-unclassified"
    missing = f"arn:aws-iso-b:logs:{enclave.region}:{enclave.account}:log-group:/tagged/secret"
    answer = low.tag_resources(ResourceARNList=[bucket_arn, missing, "arn:x"], Tags={"level": "unclassified"})
    assert sorted(answer["FailedResourcesMap"]) == sorted([missing, "arn:x"])
    pages = low.get_paginator("get_resources").paginate(TagFilters=[{"Key": "level"}], ResourcesPerPage=2)
    found = [each["ResourceARN"] for page in pages for each in page["ResourceTagMappingList"]]
    assert found == sorted(found)
    assert [arn.split(":", 5)[2] for arn in found] == ["ecr", "logs", "s3"]
    assert "only-secret" not in low.get_tag_keys()["TagKeys"]
    assert low.get_tag_values(Key="level")["TagValues"] == ["unclassified"]
    assert high.get_tag_values(Key="level")["TagValues"] == ["secret", "unclassified"]
    typed = high.get_resources(TagFilters=[{"Key": "level", "Values": ["secret"]}], ResourceTypeFilters=["logs"])
    assert [each["ResourceARN"] for each in typed["ResourceTagMappingList"]] == [missing]
    assert high.untag_resources(ResourceARNList=[missing], TagKeys=["level"])["FailedResourcesMap"] == {}
    below = high.untag_resources(ResourceARNList=[bucket_arn], TagKeys=["level"])["FailedResourcesMap"]
    assert below[bucket_arn]["StatusCode"] == 403
    assert low.untag_resources(ResourceARNList=[bucket_arn], TagKeys=["level"])["FailedResourcesMap"] == {}


def test_quotas_are_the_true_ones_and_requests_are_kept_for_an_administrator(enclave: LiveEnclave) -> None:
    low, high = client(enclave, "service-quotas", LOW), client(enclave, "service-quotas", HIGH)
    services = [each["ServiceCode"] for each in low.list_services()["Services"]]
    assert {"logs", "sagemaker", "s3"} <= set(services)
    quotas = {each["QuotaName"]: each for each in low.list_service_quotas(ServiceCode="cloudtrail")["Quotas"]}
    assert quotas["Trails"]["Value"] == 5.0
    jobs = next(q for q in low.list_service_quotas(ServiceCode="sagemaker")["Quotas"] if "at once" in q["QuotaName"])
    asked = {"ServiceCode": "sagemaker", "QuotaCode": jobs["QuotaCode"]}
    with pytest.raises(ClientError) as lower:
        high.request_service_quota_increase(**asked, DesiredValue=jobs["Value"])
    assert code_of(lower) == "IllegalArgumentException"
    made = high.request_service_quota_increase(**asked, DesiredValue=jobs["Value"] + 1)["RequestedQuota"]
    assert made["Status"] == "PENDING"
    with pytest.raises(ClientError) as twice:
        high.request_service_quota_increase(**asked, DesiredValue=jobs["Value"] + 2)
    assert code_of(twice) == "ResourceAlreadyExistsException"
    assert high.get_service_quota(**asked)["Quota"]["Value"] == jobs["Value"]
    assert low.list_requested_service_quota_change_history()["RequestedQuotas"] == []
    with pytest.raises(ClientError) as unknown:
        low.get_requested_service_quota_change(RequestId=made["Id"])
    assert code_of(unknown) == "NoSuchResourceException"
    (kept,) = high.list_requested_service_quota_change_history_by_quota(**asked)["RequestedQuotas"]
    assert kept["Id"] == made["Id"]


def test_a_trail_through_boto3(enclave: LiveEnclave) -> None:
    low, high = client(enclave, "cloudtrail", LOW), client(enclave, "cloudtrail", HIGH)
    s3 = client(enclave, "s3", HIGH)
    s3.create_bucket(Bucket="trail-logs", CreateBucketConfiguration={"LocationConstraint": enclave.region})
    with pytest.raises(ClientError) as closed:
        high.create_trail(Name="trail", S3BucketName="trail-logs")
    assert code_of(closed) == "InsufficientS3BucketPolicyException"
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "cloudtrail.amazonaws.com"},
        "Action": "s3:PutObject",
        "Resource": f"arn:aws-iso-b:s3:::trail-logs/AWSLogs/{enclave.account}/*",
        "Condition": {"StringEquals": {"aws:SourceAccount": enclave.account}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    s3.put_bucket_policy(Bucket="trail-logs", Policy=policy)
    made = high.create_trail(Name="trail", S3BucketName="trail-logs", EnableLogFileValidation=True)
    high.start_logging(Name=made["TrailARN"])
    assert high.get_trail_status(Name="trail")["IsLogging"]
    assert high.describe_trails()["trailList"][0]["LogFileValidationEnabled"]
    assert low.describe_trails()["trailList"] == []
    with pytest.raises(ClientError) as unknown:
        low.get_trail_status(Name="trail")
    assert code_of(unknown) == "TrailNotFoundException"
    assert len(low.list_public_keys()["PublicKeyList"][0]["Value"]) == 2592
    high.stop_logging(Name="trail")
    high.delete_trail(Name="trail")


def scrape(enclave: LiveEnclave, label: str = "", *, token: str | None = None) -> tuple[int, str]:
    import urllib3

    http = urllib3.PoolManager(ca_certs=enclave.facts["ca"])
    key = token if token is not None else enclave.credentials("ann", label)["bearer_token"]
    answer = http.request("GET", f"{enclave.endpoint}/metrics", headers={"Authorization": f"Bearer {key}"})
    return answer.status, answer.data.decode()


def test_prometheus_is_shown_what_its_key_dominates(enclave: LiveEnclave) -> None:
    client(enclave, "sts", HIGH).get_caller_identity()
    client(enclave, "sts", LOW).get_caller_identity()
    with pytest.raises(ClientError):
        client(enclave, "logs", HIGH).describe_log_streams(logGroupName="/no/such")
    (status, low), (_, high) = scrape(enclave, LOW), scrape(enclave, HIGH)
    assert status == 200
    assert "SECRET" not in low
    assert 'label="UNCLASSIFIED"' in low
    mark = (
        f'{{label="SECRET//NOFORN",account="{enclave.account}",service="sts",operation="GetCallerIdentity",code="ok"}}'
    )
    assert f"honmaru_requests_total{mark} 1" in high.splitlines()
    assert 'operation="DescribeLogStreams",code="ResourceNotFoundException"' in high
    assert 'honmaru_request_duration_seconds_bucket{label="SECRET//NOFORN"' in high
    assert 'honmaru_ledger_entries{label="SECRET//NOFORN"}' in high
    assert "process_resident_memory_bytes" in high
    assert "process_resident_memory_bytes" not in low  # its course tells of work above
    assert scrape(enclave, token="honmaru-none-none")[0] == 401
    enclave.user("nobody", "SECRET//NOFORN", policies=[])
    powerless = enclave.credentials("nobody", LOW)["bearer_token"]
    assert scrape(enclave, token=powerless)[0] == 403
    from honmaru.app.operator import ask

    assert "SECRET" not in ask(enclave.data, "GetMetrics")["text"]
    assert "SECRET//NOFORN" in ask(enclave.data, "GetMetrics", label=HIGH)["text"]


def test_a_bucket_of_the_name_metrics_is_not_shadowed(enclave: LiveEnclave) -> None:
    s3 = client(enclave, "s3", LOW)
    s3.create_bucket(Bucket="metrics", CreateBucketConfiguration={"LocationConstraint": enclave.region})
    s3.put_object(Bucket="metrics", Key="k", Body=b"x")
    assert [each["Key"] for each in s3.list_objects_v2(Bucket="metrics")["Contents"]] == ["k"]


@pytest.mark.skipif(not os.environ.get("HONMARU_OBSERVABILITY"), reason="starts many clients: make test-observability")
def test_the_aws_cli_speaks_to_each_of_these_services(enclave: LiveEnclave) -> None:
    program = Path(sys.executable).parent / "aws"
    environment = {"PATH": os.environ["PATH"], "HOME": str(enclave.data), **enclave.variables("ann", HIGH)}

    def aws(*arguments: str) -> Any:
        done = subprocess.run(
            [program, *arguments, "--output", "json"], capture_output=True, text=True, env=environment, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout or "{}")

    now = int(time.time() * 1000)
    aws("logs", "create-log-group", "--log-group-name", "/cli")
    aws("logs", "create-log-stream", "--log-group-name", "/cli", "--log-stream-name", "s")
    event = f"timestamp={now},message=hello"
    aws("logs", "put-log-events", "--log-group-name", "/cli", "--log-stream-name", "s", "--log-events", event)
    tail = ("--log-group-name", "/cli", "--start-time", str(now), "--filter-pattern", "hello")
    assert [each["message"] for each in aws("logs", "filter-log-events", *tail)["events"]] == ["hello"]
    aws("logs", "put-retention-policy", "--log-group-name", "/cli", "--retention-in-days", "7")
    aws("cloudwatch", "put-metric-data", "--namespace", "Cli", "--metric-name", "m", "--value", "1.5")
    assert aws("cloudwatch", "list-metrics", "--namespace", "Cli")["Metrics"][0]["MetricName"] == "m"
    assert "MetricAlarms" in aws("cloudwatch", "describe-alarms")
    assert "trailList" in aws("cloudtrail", "describe-trails")
    assert aws("cloudtrail", "lookup-events", "--max-items", "1")["Events"]
    names = [each["repositoryName"] for each in aws("ecr", "describe-repositories")["repositories"]]
    assert "pytorch" in names
    assert "TagKeys" in aws("resourcegroupstaggingapi", "get-tag-keys")
    assert aws("service-quotas", "list-services")["Services"]


def test_policies_may_ask_for_the_tags_of_groups_and_alarms(enclave: LiveEnclave) -> None:
    iam, logs = client(enclave, "iam", LOW), client(enclave, "logs", LOW)
    enclave.user("guest", "SECRET//NOFORN", policies=[])
    statement = {
        "Effect": "Allow",
        "Action": ["logs:DescribeLogStreams", "cloudwatch:SetAlarmState"],
        "Resource": "*",
        "Condition": {"StringEquals": {"aws:ResourceTag/open": "yes"}},
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="guest", PolicyName="p", PolicyDocument=document)
    watch = client(enclave, "cloudwatch", LOW)
    for name, mark in (("open", "yes"), ("closed", "no")):
        logs.create_log_group(logGroupName=f"/guest/{name}", tags={"open": mark})
        watch.put_metric_alarm(
            AlarmName=f"guest-{name}", Namespace="N", MetricName="m", Statistic="Sum", Period=60, Threshold=1.0,
            EvaluationPeriods=1, ComparisonOperator="GreaterThanThreshold", Tags=[{"Key": "open", "Value": mark}],
        )  # fmt: skip
    guest_logs, guest_watch = (enclave.client(service, "guest", LOW) for service in ("logs", "cloudwatch"))
    assert guest_logs.describe_log_streams(logGroupName="/guest/open")["logStreams"] == []
    guest_watch.set_alarm_state(AlarmName="guest-open", StateValue="OK", StateReason="r")
    for ask in (
        lambda: guest_logs.describe_log_streams(logGroupName="/guest/closed"),
        lambda: guest_watch.set_alarm_state(AlarmName="guest-closed", StateValue="OK", StateReason="r"),
    ):
        with pytest.raises(ClientError) as denied:
            ask()
        assert "AccessDenied" in code_of(denied)


def test_a_denied_group_or_alarm_is_denied_under_every_name(enclave: LiveEnclave) -> None:
    iam, logs, watch = (client(enclave, service, LOW) for service in ("iam", "logs", "cloudwatch"))
    enclave.user("warden", "SECRET//NOFORN", policies=[])
    own = f"{enclave.region}:{enclave.account}"
    denied = [f"arn:aws-iso-b:logs:{own}:log-group:/deny*", f"arn:aws-iso-b:cloudwatch:{own}:alarm:deny*"]
    denied += [f"arn:aws-iso-b:cloudtrail:{own}:trail/deny*", f"arn:aws-iso-b:ecr:{own}:repository/deny"]
    statements = [
        {"Effect": "Allow", "Action": ["logs:*", "cloudwatch:*", "cloudtrail:*", "ecr:*"], "Resource": "*"},
        {"Effect": "Deny", "Action": "*", "Resource": denied},
    ]
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    iam.put_user_policy(UserName="warden", PolicyName="p", PolicyDocument=document)
    for name in ("deny", "free"):
        logs.create_log_group(logGroupName=f"/{name}")
        logs.create_log_stream(logGroupName=f"/{name}", logStreamName="s")
        watch.put_metric_alarm(
            AlarmName=name, Namespace="N", MetricName="m", Statistic="Sum", Period=60, Threshold=1.0,
            EvaluationPeriods=1, ComparisonOperator="GreaterThanThreshold",
        )  # fmt: skip
    logs, watch, trail, ecr = (
        enclave.client(service, "warden", LOW) for service in ("logs", "cloudwatch", "cloudtrail", "ecr")
    )
    arn = f"arn:aws-iso-b:logs:{own}:log-group:/deny"
    span = {"startTime": 0, "endTime": int(time.time()), "queryString": "limit 1"}
    asked = (
        lambda: logs.filter_log_events(logGroupName="/deny"),
        lambda: logs.filter_log_events(logGroupIdentifier=arn),
        lambda: logs.filter_log_events(logGroupIdentifier="/deny"),
        lambda: logs.get_log_events(logGroupIdentifier=arn, logStreamName="s"),
        lambda: logs.describe_log_streams(logGroupIdentifier="/deny"),
        lambda: logs.start_query(logGroupNames=["/free", "/deny"], **span),
        lambda: logs.start_query(logGroupIdentifiers=[arn], **span),
        lambda: logs.tag_resource(resourceArn=arn, tags={"a": "b"}),
        lambda: watch.delete_alarms(AlarmNames=["free", "deny"]),
        lambda: watch.disable_alarm_actions(AlarmNames=["deny"]),
        lambda: watch.describe_alarms(AlarmNames=["free", "deny"]),
        lambda: watch.describe_alarm_history(AlarmName="deny"),
        lambda: trail.get_trail_status(Name="deny-trail"),
        lambda: trail.get_trail_status(Name=f"arn:aws-iso-b:cloudtrail:{own}:trail/deny-trail"),
        lambda: trail.list_tags(ResourceIdList=["deny-trail"]),
        lambda: ecr.describe_repositories(repositoryNames=["pytorch", "deny"]),
    )
    for ask in asked:
        with pytest.raises(ClientError) as refused:
            ask()
        assert "AccessDenied" in code_of(refused)
    logs.start_query(logGroupNames=["/free"], **span)
    logs.get_log_events(logGroupIdentifier="/free", logStreamName="s")
    watch.delete_alarms(AlarmNames=["free"])


@pytest.mark.skipif(not os.environ.get("HONMARU_OBSERVABILITY"), reason="restarts an enclave: make test-observability")
def test_what_was_acknowledged_survives_kill_9(enclave: LiveEnclave) -> None:
    logs, watch = client(enclave, "logs", HIGH), client(enclave, "cloudwatch", HIGH)
    logs.create_log_group(logGroupName="/kept")
    logs.create_log_stream(logGroupName="/kept", logStreamName="s")
    logs.put_retention_policy(logGroupName="/kept", retentionInDays=30)
    now = datetime.now(UTC)
    for number in range(10):
        event = {"timestamp": int(now.timestamp() * 1000) + number, "message": f"{number}"}
        logs.put_log_events(logGroupName="/kept", logStreamName="s", logEvents=[event])
        watch.put_metric_data(Namespace="Kept", MetricData=[{"MetricName": "m", "Value": 1.0, "Timestamp": now}])
    watch.put_metric_alarm(
        AlarmName="kept", Namespace="Kept", MetricName="m", Statistic="Sum", Period=60, Threshold=1.0,
        EvaluationPeriods=1, ComparisonOperator="GreaterThanThreshold",
    )  # fmt: skip
    enclave.kill()
    enclave.up()
    logs, watch = client(enclave, "logs", HIGH), client(enclave, "cloudwatch", HIGH)
    events = logs.get_log_events(logGroupName="/kept", logStreamName="s", startFromHead=True)["events"]
    assert [event["message"] for event in events] == [f"{number}" for number in range(10)]
    assert logs.describe_log_groups(logGroupNamePrefix="/kept")["logGroups"][0]["retentionInDays"] == 30
    span = {"StartTime": now - timedelta(minutes=2), "EndTime": now + timedelta(minutes=2)}
    points = watch.get_metric_statistics(Namespace="Kept", MetricName="m", Period=60, Statistics=["Sum"], **span)
    assert sum(point["Sum"] for point in points["Datapoints"]) == 10.0
    assert [each["AlarmName"] for each in watch.describe_alarms(AlarmNamePrefix="kept")["MetricAlarms"]] == ["kept"]


@pytest.mark.skipif(
    not os.environ.get("HONMARU_OBSERVABILITY"), reason="an enclave of its own: make test-observability"
)
def test_spans_of_a_live_enclave_lie_in_a_folder_of_their_label(tmp_path: Path) -> None:
    live = LiveEnclave(tmp_path / "data").up("--traces", "files")
    try:
        for label in (LOW, "SECRET"):
            live.client("sts", "admin", label).get_caller_identity()
            with pytest.raises(ClientError):
                live.client("logs", "admin", label).describe_log_streams(logGroupName="/none")
        live.down()
        found: dict[str, set[str]] = {}
        for file in (tmp_path / "data" / "traces").glob("*/*.jsonl"):
            for line in file.read_text().splitlines():
                for spans in json.loads(line)["resourceSpans"]:
                    marks = {each["key"]: each["value"]["stringValue"] for each in spans["resource"]["attributes"]}
                    names = {each["name"] for scope in spans["scopeSpans"] for each in scope["spans"]}
                    found.setdefault(f"{file.parent.name} {marks['honmaru.label']}", set()).update(names)
        assert len({name.split(" ")[0] for name in found}) == len(found) == 2
        for names in found.values():
            assert {"sts.GetCallerIdentity", "logs.DescribeLogStreams", "authorize", "dispatch", "record"} <= names
    finally:
        live.down()
