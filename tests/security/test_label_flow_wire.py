"""Non-interference over the live API: the same search as test_label_flow, with boto3 in front of the whole gateway.

Signature, IAM, validation, services, guard, serialisation, headers, ledger: what a low session receives (status, every
header, every byte) must not depend on sessions that it does not dominate. Time and ids are a function of each action.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import secrets
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError

from honmaru.app.service_deliveries import ServiceDeliveries
from honmaru.app.tag_sources import tag_sources
from honmaru.core.labels import Label
from honmaru.deployments import Engines, ModelServers
from honmaru.gateway.app import Gateway, Limits
from honmaru.jobs.environments import Environments
from honmaru.jobs.instances import Capacity
from honmaru.security.calls import Provider
from honmaru.security.guard import Guard
from honmaru.security.identity import Identity
from honmaru.security.ledger import Ledger
from honmaru.security.page_tokens import PageTokens
from honmaru.services.bedrock import Bedrock
from honmaru.services.bedrock_agent import BedrockAgent
from honmaru.services.bedrock_runtime import BedrockRuntime
from honmaru.services.cloudtrail.provider import CloudTrail
from honmaru.services.cloudwatch import CloudWatch, MetricStore
from honmaru.services.cloudwatch.watching import AlarmWatch
from honmaru.services.ecr import Ecr
from honmaru.services.iam import Iam
from honmaru.services.logs import Logs, LogStore
from honmaru.services.resourcegroupstaggingapi import ResourceTagging
from honmaru.services.s3.access import S3Buckets
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.cors import CrossOrigin
from honmaru.services.s3.provider import S3
from honmaru.services.sagemaker import SageMaker
from honmaru.services.service_quotas import Quota, ServiceQuotas
from honmaru.services.sts import Sts
from honmaru.testing.keep import ACCOUNT, Keep, quick_directory

REGION = "us-isob-east-1"
MARKINGS = ("UNCLASSIFIED", "CONFIDENTIAL", "SECRET", "SECRET//SI", "SECRET//TK")
ROUNDS = 100 if os.environ.get("HONMARU_LONG") == "1" else 3
LENGTH = 40
BUCKETS, KEYS, NAMES = ("bucket-1", "bucket-2"), ("a", "a/b", "d"), ("n1", "n2")


class World:
    """A whole gateway in this process, and a boto3 session for each label."""

    def __init__(self, directory: Path, base: datetime, cache: Path) -> None:
        directory.mkdir(parents=True)
        self.keep = keep = Keep(directory)
        self._base = keep.clock.seconds = (base - keep.clock.now()).total_seconds()
        (directory / "ledger").mkdir(mode=0o700)
        self.ledger = Ledger(
            directory / "ledger", heads=directory / "heads", clock=keep.clock, secret=secrets.token_bytes
        )
        keep.guard = guard = Guard(keep.store, keep.blob_store, keep.keyring, self.ledger, keep.clock, keep.ids)
        identity = Identity(
            guard,
            partition="aws-iso-b",
            region=REGION,
            account=ACCOUNT,
            clock=keep.clock,
            ids=keep.ids,
            keyring=keep.keyring,
        )
        identity.bootstrap()
        commits = BucketCommits()
        buckets = S3Buckets(guard, identity, self.ledger, keep.clock, keep.ids, commits)
        metrics = MetricStore(guard, keep.ids)
        self.alarms = AlarmWatch(guard, metrics, keep.clock, keep.ids, partition="aws-iso-b", region=REGION)
        logs = LogStore(guard, keep.clock, keep.ids, metrics)
        deliveries = ServiceDeliveries(
            "cloudtrail.amazonaws.com", guard, identity, self.ledger, keep.clock, keep.ids, commits
        )
        environments = Environments(directory / "environments.json")
        capacity = Capacity(cores=2, memory_bytes=8 << 30)
        place = {"url": "http://127.0.0.1:1", "account": ACCOUNT}
        replicas = [{**place, "label": marking} for marking in MARKINGS]
        (directory / "engines.json").write_text(
            json.dumps({f"acme.{name}": {"replicas": replicas, "quality": 1, "price": 1} for name in NAMES})
        )
        engines = Engines(directory / "engines.json", account=ACCOUNT, problem=print)
        servers = ModelServers(
            guard,
            None,  # type: ignore[arg-type]
            environments,
            keep.clock,
            keep.ids,
            directory / "models",
            engines=engines,
        )
        carried: tuple[Provider, ...] = (
            Sts(identity),
            Bedrock(identity, lambda: None, servers, keep.ids, engines),
            BedrockAgent(keep.ids),
            BedrockRuntime(servers, keep.clock, engines, keep.ids, lambda: None),
            Iam(identity),
            S3(keep.ids, commits),
            SageMaker(identity, buckets, environments, lambda: None, capacity, keep.ids),
            Logs(logs, keep.clock),
            CloudTrail(self.ledger, deliveries),
            CloudWatch(metrics),
            Ecr(environments),
            ServiceQuotas({"logs": "Logs"}, [Quota("logs", "L-1", "Things", 1.0, adjustable=True)]),
        )
        self.gateway = Gateway(
            providers=(*carried, ResourceTagging(tag_sources(carried))),
            identity=identity,
            guard=guard,
            ledger=self.ledger,
            clock=keep.clock,
            ids=keep.ids,
            region=REGION,
            partition="aws-iso-b",
            limits=Limits(),
            cache=cache,
            pages=PageTokens(keep.ids.secret(64)),
            cross_origin=CrossOrigin(guard),
        )
        self.loop = asyncio.new_event_loop()
        self.received: list[tuple[Any, ...]] = []
        self.keys: dict[str, tuple[str, str]] = {}
        for number, marking in enumerate(MARKINGS):
            keep.ids.reseed(f"user {number}")
            identity.create_user(f"user{number}", marking, ["AdministratorAccess"])
            self.keys[marking] = identity.access_key(f"user{number}", Label.parse(marking))

    def _written(self) -> None:
        """Changes are in the ledger: an entry states when it was written, so the clock stands until then."""
        self.keep.guard.drain_outbox()

    def at(self, number: int) -> None:
        self._written()
        self.keep.clock.seconds = self._base + number / 100
        self.keep.ids.reseed(f"action {number}")

    def step(self, number: int) -> None:
        """What the platform does by itself, at its own pace; the next action draws ids as if it had not."""
        self.at(number)
        if number % 4 == 0:
            self.keep.clock.seconds += 600  # periods of alarms end
            self.alarms.evaluate()
        self.at(number)

    def exchange(self, request: Any) -> AWSResponse:
        """Answer a signed request of botocore from the gateway, over ASGI."""
        body = request.body.read() if hasattr(request.body, "read") else request.body or b""
        body = body.encode() if isinstance(body, str) else bytes(body)
        url = urlsplit(request.url)
        headers = {name.lower(): value for name, value in request.headers.items()}
        headers.setdefault("host", url.netloc)
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": url.path,
            "raw_path": url.path.encode(),
            "query_string": url.query.encode(),
            "headers": [
                (name.encode(), value if isinstance(value, bytes) else str(value).encode())
                for name, value in headers.items()
            ],
            "client": ("127.0.0.1", 2),
            "server": ("127.0.0.1", 1),
        }
        incoming = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return incoming.pop() if incoming else await asyncio.sleep(3600, {"type": "http.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        self.loop.run_until_complete(asyncio.wait_for(self.gateway(scope, receive, send), 30))
        status = sent[0]["status"]
        answered = [(bytes(name), bytes(value)) for name, value in sent[0]["headers"]]
        content = b"".join(message.get("body", b"") for message in sent[1:])
        self.received.append((status, answered, content))
        shown = {name.decode(): value.decode() for name, value in answered}
        return AWSResponse(request.url, status, shown, _Raw(content))

    def close(self) -> None:
        self.gateway.close()
        self.ledger.close()
        self.keep.close()
        self.loop.close()


class _Raw(io.BytesIO):
    """What botocore reads a response from."""

    def stream(self, *_: object, **__: object) -> Any:
        while piece := self.read(65536):
            yield piece


class Clients:
    """boto3 clients by service and label, made once: keys depend on the seed only, so every world knows them."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.world: World | None = None
        self._session = boto3.Session(region_name=REGION)
        self._made: dict[tuple[str, tuple[str, str]], Any] = {}

    def get(self, service: str, marking: str) -> Any:
        assert self.world is not None
        place = (service, self.world.keys[marking])
        if place not in self._made:
            config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
            key, secret = place[1]
            made = self._session.client(
                service,
                endpoint_url="http://127.0.0.1:1",
                config=config,
                aws_access_key_id=key,
                aws_secret_access_key=secret,
            )
            made.meta.events.register("before-send", self._send)
            self._made[place] = made
        return self._made[place]

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        assert self.world is not None
        return self.world.exchange(request)


def perform(clients: Clients, world: World, marking: str, chance: random.Random, number: int) -> None:
    clients.world = world
    s3, logs, iam = (clients.get(service, marking) for service in ("s3", "logs", "iam"))
    sagemaker, trail = clients.get("sagemaker", marking), clients.get("cloudtrail", marking)
    bucket, key, name = chance.choice(BUCKETS), chance.choice(KEYS), chance.choice(NAMES)
    watch, ecr, tagging, quotas = (
        clients.get(service, marking) for service in ("cloudwatch", "ecr", "resourcegroupstaggingapi", "service-quotas")
    )
    now = world.keep.clock.now()
    hour = {"StartTime": now - timedelta(hours=1), "EndTime": now + timedelta(minutes=1)}
    tags = [{"Key": key.replace("/", "-"), "Value": f"{number % 3}"}]
    alarm = {"AlarmName": name, "Namespace": "N", "MetricName": name, "Statistic": "Sum", "Period": 60}
    alarm |= {"EvaluationPeriods": 1, "Threshold": 5.0, "ComparisonOperator": "GreaterThanThreshold", "Tags": tags}
    transformation = {"metricName": name, "metricNamespace": "N", "metricValue": "1"}
    place = {"Bucket": bucket, "Key": key}
    where = {"logGroupName": name, "logStreamName": "s"}
    bedrock, agent, runtime = (
        clients.get(service, marking) for service in ("bedrock", "bedrock-agent", "bedrock-runtime")
    )
    engine = f"arn:aws-iso-b:bedrock:{REGION}::foundation-model/acme.{name}"
    model_tags = [{"key": "n", "value": f"{number % 3}"}]
    body = {"prompt": f"{number}", "max_gen_len": 1}
    trust = '{"Version":"2012-10-17","Statement":[]}'
    choices: list[Callable[[], object]] = [
        lambda: s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION}),
        lambda: s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION}),
        lambda: s3.delete_bucket(Bucket=bucket),
        lambda: s3.list_buckets(),
        lambda: s3.put_object(**place, Body=f"{number}".encode()),
        lambda: s3.put_object(**place, Body=f"{number}".encode()),
        lambda: s3.get_object(**place)["Body"].read(),
        lambda: s3.head_object(**place),
        lambda: s3.delete_object(**place),
        lambda: s3.list_objects_v2(Bucket=bucket, MaxKeys=chance.choice([1, 10])),
        lambda: s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}),
        lambda: s3.list_object_versions(Bucket=bucket, MaxKeys=chance.choice([1, 10])),
        lambda: s3.get_object(**place, VersionId=_oldest(s3.list_object_versions(Bucket=bucket))),
        lambda: s3.delete_object(**place, VersionId="null"),
        lambda: logs.create_log_group(logGroupName=name),
        lambda: logs.create_log_stream(**where),
        lambda: logs.put_log_events(
            **where, logEvents=[{"timestamp": int(world.keep.clock.now().timestamp() * 1000), "message": f"{number}"}]
        ),
        lambda: logs.get_log_events(**where),
        lambda: logs.describe_log_groups(),
        lambda: iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust),
        lambda: iam.get_role(RoleName=name),
        lambda: iam.list_roles(),
        lambda: iam.delete_role(RoleName=name),
        lambda: sagemaker.create_model_package_group(ModelPackageGroupName=name),
        lambda: sagemaker.list_model_package_groups(),
        lambda: sagemaker.describe_model_package_group(ModelPackageGroupName=name),
        lambda: sagemaker.list_training_jobs(),
        lambda: trail.lookup_events(MaxResults=5),
        lambda: trail.describe_trails(),
        lambda: logs.filter_log_events(logGroupName=name, filterPattern="?1 ?2"),
        lambda: logs.put_retention_policy(logGroupName=name, retentionInDays=1),
        lambda: logs.put_metric_filter(
            logGroupName=name, filterName="f", filterPattern="", metricTransformations=[transformation]
        ),
        lambda: logs.describe_metric_filters(),
        lambda: watch.put_metric_data(Namespace="N", MetricData=[{"MetricName": name, "Value": float(number)}]),
        lambda: watch.put_metric_data(Namespace="N", MetricData=[{"MetricName": name, "Value": float(number)}]),
        lambda: watch.list_metrics(),
        lambda: watch.get_metric_statistics(Namespace="N", MetricName=name, Period=60, Statistics=["Sum"], **hour),
        lambda: watch.put_metric_alarm(**alarm),
        lambda: watch.describe_alarms(),
        lambda: watch.describe_alarm_history(),
        lambda: watch.delete_alarms(AlarmNames=[name]),
        lambda: ecr.create_repository(repositoryName=name, tags=tags),
        lambda: ecr.describe_repositories(),
        lambda: ecr.delete_repository(repositoryName=name),
        lambda: tagging.get_resources(),
        lambda: tagging.get_tag_keys(),
        lambda: tagging.tag_resources(ResourceARNList=[f"arn:aws-iso-b:s3:::{bucket}"], Tags={"t": f"{number % 3}"}),
        lambda: quotas.request_service_quota_increase(ServiceCode="logs", QuotaCode="L-1", DesiredValue=2.0),
        lambda: quotas.list_requested_service_quota_change_history(),
        lambda: runtime.start_async_invoke(
            modelId=f"acme.{name}",
            modelInput=body,
            outputDataConfig={"s3OutputDataConfig": {"s3Uri": f"s3://{bucket}/x"}},
            clientRequestToken=name,
        ),
        lambda: runtime.start_async_invoke(
            modelId=f"acme.{name}",
            modelInput=body,
            outputDataConfig={"s3OutputDataConfig": {"s3Uri": f"s3://{bucket}/x"}},
            tags=model_tags,
        ),
        lambda: runtime.list_async_invokes(maxResults=chance.choice([1, 10])),
        lambda: [
            runtime.get_async_invoke(invocationArn=one["invocationArn"])
            for one in runtime.list_async_invokes()["asyncInvokeSummaries"]
        ],
        lambda: bedrock.create_prompt_router(
            promptRouterName=name,
            models=[{"modelArn": engine}],
            fallbackModel={"modelArn": engine},
            routingCriteria={"responseQualityDifference": 5 * (number % 3)},
            tags=model_tags,
        ),
        lambda: bedrock.list_prompt_routers(maxResults=chance.choice([1, 10])),
        lambda: [
            bedrock.delete_prompt_router(promptRouterArn=one["promptRouterArn"])
            for one in bedrock.list_prompt_routers()["promptRouterSummaries"][:1]
        ],
        lambda: bedrock.create_inference_profile(inferenceProfileName=name, modelSource={"copyFrom": engine}),
        lambda: bedrock.list_inference_profiles(),
        lambda: bedrock.delete_inference_profile(inferenceProfileIdentifier=name),
        lambda: bedrock.create_provisioned_model_throughput(provisionedModelName=name, modelId=engine, modelUnits=1),
        lambda: bedrock.delete_provisioned_model_throughput(provisionedModelId=name),
        lambda: bedrock.list_provisioned_model_throughputs(),
        lambda: bedrock.list_model_copy_jobs(),
        lambda: bedrock.list_custom_models(),
        lambda: agent.create_prompt(name=name, description=f"{number}"),
        lambda: agent.list_prompts(),
    ]
    try:
        chance.choice(choices)()
    except ClientError:
        pass


def _oldest(page: Mapping[str, Any]) -> str:
    return str(page.get("Versions", [{"VersionId": "null"}])[-1]["VersionId"])


Script = list[tuple[int, str, int]]


def script_of(seed: int) -> Script:
    chance = random.Random(seed)
    return [(number, chance.choice(MARKINGS), chance.getrandbits(64)) for number in range(1, LENGTH + 1)]


def received(directory: Path, base: datetime, clients: Clients, script: Script, observer: str) -> Mapping[int, Any]:
    """What the observer received, by action."""
    world = World(directory, base, clients.cache)
    shown: dict[int, Any] = {}
    actions = {number: (marking, draw) for number, marking, draw in script}
    for number in range(1, LENGTH + 1):
        world.step(number)
        if number not in actions:
            continue
        marking, draw = actions[number]
        world.received.clear()
        perform(clients, world, marking, random.Random(draw), number)
        if marking == observer:
            shown[number] = list(world.received)
    world.close()
    return shown


def first_difference(directory: Path, clients: Clients, seed: int) -> str | None:
    script, base = script_of(seed), datetime.now(UTC).replace(microsecond=0)
    observer = MARKINGS[seed % len(MARKINGS)]
    label = Label.parse(observer)
    low = [action for action in script if label.dominates(Label.parse(action[1]))]
    with_high = received(directory / "with", base, clients, script, observer)
    without = received(directory / "without", base, clients, low, observer)
    for number, shown in without.items():
        if with_high[number] != shown:
            return f"seed {seed}, observer {observer}, action {number}: {with_high[number]} != {shown}"
    return None


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Clients:
    return Clients(tmp_path_factory.mktemp("cache"))


def test_the_random_actions_reach_successes_of_every_service(tmp_path: Path, clients: Clients) -> None:
    """A search that only met refusals would prove nothing."""
    world = World(tmp_path / "world", datetime.now(UTC).replace(microsecond=0), clients.cache)
    for seed in range(2):
        for number, marking, draw in script_of(seed):
            world.at(seed * LENGTH + number)
            perform(clients, world, marking, random.Random(draw), number)
    good = sum(1 for status, _, _ in world.received if status < 300)
    world.close()
    assert good > len(world.received) // 2, [status for status, _, _ in world.received]


def test_every_byte_a_session_receives_is_independent_of_sessions_it_does_not_dominate(
    tmp_path: Path, clients: Clients
) -> None:
    for seed in range(ROUNDS):
        assert first_difference(tmp_path / str(seed), clients, seed) is None


def test_the_search_finds_a_guard_that_shows_every_label(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard, "visible_labels", lambda self, _: self.all_labels())
    assert any(
        first_difference(tmp_path / str(seed), clients, seed) is not None
        for seed in dict.fromkeys((4, 6, 7, *range(20)))
    )
