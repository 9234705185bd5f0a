"""Page tokens of every implemented list: opaque, refused when they are forged or belong to another question, and steady
while items come and go between pages. Through the gateway of a real enclave, with unmodified boto3."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from honmaru.core.labels import Label

sys.path.insert(0, str(Path(__file__).parent.parent / "security"))
from test_door_walk import REGION, Door, enclave  # noqa: F401 - a fixture

LEVELS = ("UNCLASSIFIED", "CUI")


@pytest.fixture(scope="module")
def served(enclave):  # noqa: F811
    """(the gateway, a function of (service, level) that gives a boto3 client)."""
    door = Door(enclave, list(enclave.providers))
    keys = {level: enclave.identity.access_key("admin", Label.parse(level)) for level in LEVELS}
    with door.served() as port:

        @functools.cache
        def client(service, level="UNCLASSIFIED"):
            key, secret = keys[level]
            return boto3.client(
                service,
                endpoint_url=f"http://127.0.0.1:{port}",
                region_name=REGION,
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                config=Config(retries={"total_max_attempts": 1}, parameter_validation=False),
            )

        yield door, client
    door.gateway.close()


def code_of(call, **members):
    with pytest.raises(ClientError) as caught:
        call(**members)
    status = caught.value.response["ResponseMetadata"]["HTTPStatusCode"]
    assert 400 <= status < 500, (status, caught.value)
    return caught.value.response["Error"]["Code"]


FORGED = "MZXXEZ3FMQ" * 4


def test_forged_tokens_are_refused_by_every_list(served):
    """With an error that the operation models, or the service's own for a bad value; never as a first page."""
    door, client = served
    tried = {}
    for _provider, operation in door.implemented():
        plan = operation.plan
        if not plan.pages_in:
            continue
        assert plan.pages_out, f"{operation} takes a page token and never gives one"
        token = plan.pages_in[0]
        request = door.members_of(operation)
        assert request is not None, operation
        if "Bucket" in request:
            request["Bucket"] = "page-tokens"  # botocore looks at names itself
        call = client(operation.service.name)._make_api_call
        with pytest.raises(ClientError) as caught:
            call(operation.name, {**request, token: FORGED})
        said = caught.value.response
        assert said["ResponseMetadata"]["HTTPStatusCode"] in (400, 404), (operation, said)
        tried[f"{operation.service.name}:{operation.name}"] = said["Error"]["Code"], said["Error"]["Message"]
    assert len(tried) > 40
    odd = {name: said for name, said in tried.items() if "token" not in said[1].lower()}
    assert odd == {}
    assert tried["cloudtrail:LookupEvents"][0] == "InvalidNextTokenException"
    assert tried["iam:ListUsers"][0] == "ValidationError"
    assert tried["kms:ListKeys"][0] == "InvalidMarkerException"
    assert tried["logs:DescribeLogGroups"][0] == "InvalidParameterException"
    assert tried["s3:ListObjectsV2"][0] == "InvalidArgument"
    assert tried["sagemaker:ListTrainingJobs"][0] == "ValidationException"


LISTS = {
    # service: (make, delete, list, page member, size member, token member, next member, names of a page)
    "iam": (
        lambda c, name: c.create_user(UserName=name),
        lambda c, name: c.delete_user(UserName=name),
        lambda c, **page: c.list_users(PathPrefix="/", **page),
        ("MaxItems", "Marker", "Marker"),
        lambda answer: [user["UserName"] for user in answer["Users"] if user["UserName"].startswith("page-")],
    ),
    "logs": (
        lambda c, name: c.create_log_group(logGroupName=name),
        lambda c, name: c.delete_log_group(logGroupName=name),
        lambda c, **page: c.describe_log_groups(logGroupNamePrefix="page-", **page),
        ("limit", "nextToken", "nextToken"),
        lambda answer: [group["logGroupName"] for group in answer["logGroups"]],
    ),
    "s3": (
        lambda c, name: c.put_object(Bucket="page-tokens", Key=name, Body=b""),
        lambda c, name: c.delete_object(Bucket="page-tokens", Key=name),
        lambda c, **page: c.list_objects_v2(Bucket="page-tokens", Prefix="page-", **page),
        ("MaxKeys", "ContinuationToken", "NextContinuationToken"),
        lambda answer: [found["Key"] for found in answer.get("Contents", [])],
    ),
    "sagemaker": (
        lambda c, name: c.create_model_package_group(ModelPackageGroupName=name),
        lambda c, name: c.delete_model_package_group(ModelPackageGroupName=name),
        lambda c, **page: c.list_model_package_groups(SortBy="Name", SortOrder="Ascending", **page),
        ("MaxResults", "NextToken", "NextToken"),
        lambda answer: [group["ModelPackageGroupName"] for group in answer["ModelPackageGroupSummaryList"]],
    ),
}


def pages(lister, size_member, token_member, next_member, names_of, between):
    """Names of all pages of two, `between` run after the first."""
    answer = lister(**{size_member: 2})
    found, tokens = [names_of(answer)], [answer[next_member]]
    between()
    while answer.get(next_member):
        answer = lister(**{size_member: 2, token_member: answer[next_member]})
        found.append(names_of(answer))
        tokens.append(answer.get(next_member))
    return found, tokens


@pytest.mark.parametrize("service", ["iam", "logs", "s3", "sagemaker"])
def test_lists_are_steady_while_items_come_and_go(served, service):
    _door, client = served
    low = client(service)
    make, delete, lister, members, names_of = LISTS[service]
    if service == "s3":
        low.create_bucket(Bucket="page-tokens", CreateBucketConfiguration={"LocationConstraint": REGION})
    for number in range(1, 8):
        make(low, f"page-{number}")

    def come_and_go():
        delete(low, "page-1")  # before the place: shifts every index
        delete(low, "page-5")  # behind it
        make(low, "page-0")
        make(low, "page-35")

    found, tokens = pages(lambda **page: lister(low, **page), *members, names_of, come_and_go)
    flat = [name for page in found for name in page]
    assert len(flat) == len(set(flat)), "an item was given twice"
    steady = {"page-2", "page-3", "page-4", "page-6", "page-7"}
    assert steady <= set(flat), "an item that was there all along was passed over"
    assert "page-5" not in flat
    for token in tokens[:-1]:
        assert token.isalnum()
        assert not any(name.encode().hex() in token.lower() for name in flat)
    first = tokens[0]
    high = client(service, "CUI")
    code_of(lambda **page: lister(high, **page), **{members[1]: first})  # of another label
    changed = first[:-8] + ("A" if first[-8] != "A" else "B") + first[-7:]
    code_of(lambda **page: lister(low, **page), **{members[1]: changed})
    assert names_of(lister(low, **{members[0]: 2, members[1]: first}))  # good for its own question, again


def test_a_token_of_one_operation_is_nothing_to_another(served):
    _door, client = served
    iam = client("iam")
    for number in range(3):
        iam.create_group(GroupName=f"crossed-{number}")
        iam.create_user(UserName=f"crossed-{number}")
    marker = iam.list_groups(MaxItems=1)["Marker"]
    assert code_of(iam.list_users, Marker=marker) == "ValidationError"
    assert iam.list_groups(MaxItems=1, Marker=marker)["Groups"]


def test_the_same_place_gives_the_same_token(served):
    """GetLogEvents' clients compare tokens to see the end of a stream."""
    _door, client = served
    logs = client("logs")
    logs.create_log_group(logGroupName="steady")
    logs.create_log_stream(logGroupName="steady", logStreamName="s")
    place = {"logGroupName": "steady", "logStreamName": "s", "startFromHead": True}
    first = logs.get_log_events(**place)
    again = logs.get_log_events(**place, nextToken=first["nextForwardToken"])
    assert again["nextForwardToken"] == first["nextForwardToken"]


def test_boto3s_paginators_walk_over_them(served):
    _door, client = served
    found = client("iam").get_paginator("list_users").paginate(PaginationConfig={"PageSize": 1})
    names = [user["UserName"] for page in found for user in page["Users"]]
    assert {"admin", "nobody"} <= set(names)
    assert len(names) == len(set(names))
