"""Codes, statuses and wordings of errors that real clients match on, through unmodified boto3.

Each row: what is called, the code, the HTTP status, and what the message must hold. Wordings are AWS's where clients,
their SDKs or well-known tools compare them (botocore's waiters, s3fs, the SageMaker SDK, Terraform's provider).
"""

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

ROWS = [
    # S3
    ("s3", "head_bucket", {"Bucket": "not-there"}, "404", 404, "Not Found"),
    ("s3", "list_objects_v2", {"Bucket": "not-there"}, "NoSuchBucket", 404, "The specified bucket does not exist"),
    ("s3", "get_object", {"Bucket": "errors", "Key": "x"}, "NoSuchKey", 404, "The specified key does not exist."),
    ("s3", "head_object", {"Bucket": "errors", "Key": "x"}, "404", 404, "Not Found"),
    ("s3", "delete_bucket", {"Bucket": "errors"}, "BucketNotEmpty", 409, "The bucket you tried to delete is not empty"),
    ("s3", "get_bucket_policy", {"Bucket": "errors"}, "NoSuchBucketPolicy", 404, "The bucket policy does not exist"),
    ("s3", "get_bucket_tagging", {"Bucket": "errors"}, "NoSuchTagSet", 404, "The TagSet does not exist"),
    (
        "s3",
        "get_bucket_cors",
        {"Bucket": "errors"},
        "NoSuchCORSConfiguration",
        404,
        "The CORS configuration does not exist",
    ),
    (
        "s3",
        "get_bucket_lifecycle_configuration",
        {"Bucket": "errors"},
        "NoSuchLifecycleConfiguration",
        404,
        "The lifecycle configuration does not exist",
    ),
    (
        "s3",
        "get_object",
        {"Bucket": "errors", "Key": "there", "Range": "bytes=99-100"},
        "InvalidRange",
        416,
        "The requested range is not satisfiable",
    ),
    (
        "s3",
        "get_object",
        {"Bucket": "errors", "Key": "there", "IfMatch": '"00"'},
        "PreconditionFailed",
        412,
        "At least one of the pre-conditions you specified did not hold",
    ),
    (
        "s3",
        "put_object",
        {"Bucket": "errors", "Key": "there", "Body": b"y", "IfNoneMatch": "*"},
        "PreconditionFailed",
        412,
        "At least one of the pre-conditions you specified did not hold",
    ),
    (
        "s3",
        "abort_multipart_upload",
        {"Bucket": "errors", "Key": "x", "UploadId": "nothing"},
        "NoSuchUpload",
        404,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted",
    ),
    (
        "s3",
        "create_bucket",
        {"Bucket": "errors", "CreateBucketConfiguration": {"LocationConstraint": REGION}},
        "BucketAlreadyOwnedByYou",
        409,
        "Your previous request to create the named bucket succeeded and you already own it.",
    ),
    (
        "s3",
        "create_bucket",
        {"Bucket": "Bad_Name", "CreateBucketConfiguration": {"LocationConstraint": REGION}},
        "InvalidBucketName",
        400,
        "The specified bucket is not valid.",
    ),
    # IAM and STS
    ("iam", "get_user", {"UserName": "x"}, "NoSuchEntity", 404, "The user with name x cannot be found."),
    ("iam", "get_role", {"RoleName": "x"}, "NoSuchEntity", 404, "The role with name x cannot be found."),
    ("iam", "get_group", {"GroupName": "x"}, "NoSuchEntity", 404, "The group with name x cannot be found."),
    ("iam", "create_user", {"UserName": "admin"}, "EntityAlreadyExists", 409, "User with name admin already exists."),
    (
        "iam",
        "create_role",
        {"RoleName": "r", "AssumeRolePolicyDocument": "{"},
        "MalformedPolicyDocument",
        400,
        "",
    ),
    (
        "sts",
        "assume_role",
        {"RoleArn": f"arn:aws-us-gov:iam::{{account}}:role/x", "RoleSessionName": "s1"},  # noqa: F541
        "AccessDenied",
        403,
        "is not authorized to perform: sts:AssumeRole on resource: arn:aws-us-gov:iam::{account}:role/x",
    ),
    # Logs
    (
        "logs",
        "describe_log_streams",
        {"logGroupName": "x"},
        "ResourceNotFoundException",
        400,
        "The specified log group does not exist.",
    ),
    (
        "logs",
        "create_log_group",
        {"logGroupName": "errors"},
        "ResourceAlreadyExistsException",
        400,
        "The specified log group already exists",
    ),
    (
        "logs",
        "get_log_events",
        {"logGroupName": "errors", "logStreamName": "x"},
        "ResourceNotFoundException",
        400,
        "The specified log stream does not exist.",
    ),
    # SageMaker: the SDK looks for these
    (
        "sagemaker",
        "describe_training_job",
        {"TrainingJobName": "x"},
        "ValidationException",
        400,
        "Requested resource not found.",
    ),
    (
        "sagemaker",
        "describe_model_package_group",
        {"ModelPackageGroupName": "x"},
        "ValidationException",
        400,
        "ModelPackageGroup arn:aws-us-gov:sagemaker:us-gov-west-1:{account}:model-package-group/x does not exist.",
    ),
    # KMS
    (
        "kms",
        "describe_key",
        {"KeyId": "alias/x"},
        "NotFoundException",
        400,
        "Alias arn:aws-us-gov:kms:{region}:{account}:alias/x is not found.",
    ),
    (
        "kms",
        "describe_key",
        {"KeyId": "00000000-0000-0000-0000-000000000000"},
        "NotFoundException",
        400,
        "Key 'arn:aws-us-gov:kms:{region}:{account}:key/00000000-0000-0000-0000-000000000000' does not exist",
    ),
    # Bedrock
    ("bedrock", "get_imported_model", {"modelIdentifier": "x"}, "ResourceNotFoundException", 404, ""),
    ("bedrock", "get_model_import_job", {"jobIdentifier": "x"}, "ResourceNotFoundException", 404, ""),
    # Others
    (
        "ecr",
        "describe_images",
        {"repositoryName": "xx"},
        "RepositoryNotFoundException",
        400,
        "does not exist in the registry",
    ),
    (
        "organizations",
        "describe_organization",
        {},
        "AWSOrganizationsNotInUseException",
        400,
        "Your account is not a member of an organization.",
    ),
    ("cloudtrail", "get_trail", {"Name": "xyz"}, "TrailNotFoundException", 400, "Unknown trail"),
]


@pytest.fixture(scope="module")
def client(enclave):  # noqa: F811
    door = Door(enclave, list(enclave.providers))
    key, secret = enclave.identity.access_key("admin", Label.parse("UNCLASSIFIED"))
    with door.served() as port:

        @functools.cache
        def client(service, key=key, secret=secret):
            return boto3.client(
                service,
                endpoint_url=f"http://127.0.0.1:{port}",
                region_name=REGION,
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                config=Config(retries={"total_max_attempts": 1}),
            )

        client.account = enclave.account
        s3 = client("s3")
        s3.create_bucket(Bucket="errors", CreateBucketConfiguration={"LocationConstraint": REGION})
        s3.put_object(Bucket="errors", Key="there", Body=b"x")
        client("logs").create_log_group(logGroupName="errors")
        yield client
    door.gateway.close()


def filled(value, account):
    if isinstance(value, str):
        return value.replace("{account}", account).replace("{region}", REGION)
    return {name: filled(item, account) for name, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}-{row[3]}")
def test_errors_that_clients_match_on(client, row):
    service, operation, members, code, status, words = row
    with pytest.raises(ClientError) as caught:
        getattr(client(service), operation)(**filled(members, client.account))
    said = caught.value.response
    assert said["Error"]["Code"] == code
    assert said["ResponseMetadata"]["HTTPStatusCode"] == status
    assert filled(words, client.account) in said["Error"]["Message"]


@pytest.mark.parametrize(
    ("service", "operation", "code", "status", "words"),
    [
        (
            "sts",
            "get_caller_identity",
            "InvalidClientTokenId",
            403,
            "The security token included in the request is invalid.",
        ),
        ("iam", "list_users", "InvalidClientTokenId", 403, "The security token included in the request is invalid."),
        (
            "logs",
            "describe_log_groups",
            "UnrecognizedClientException",
            400,
            "The security token included in the request is invalid.",
        ),
        (
            "bedrock",
            "list_imported_models",
            "UnrecognizedClientException",
            403,
            "The security token included in the request is invalid.",
        ),
        (
            "s3",
            "list_buckets",
            "InvalidAccessKeyId",
            403,
            "The AWS Access Key Id you provided does not exist in our records.",
        ),
    ],
)
def test_an_unknown_key(client, service, operation, code, status, words):
    with pytest.raises(ClientError) as caught:
        getattr(client(service, "AKIA" + "Z" * 16), operation)()
    said = caught.value.response
    assert (said["Error"]["Code"], said["ResponseMetadata"]["HTTPStatusCode"]) == (code, status)
    assert said["Error"]["Message"] == words


@pytest.mark.parametrize(
    ("service", "operation", "code", "status"),
    [
        ("sts", "get_caller_identity", "SignatureDoesNotMatch", 403),
        ("logs", "describe_log_groups", "InvalidSignatureException", 400),
        ("bedrock", "list_imported_models", "InvalidSignatureException", 403),
        ("s3", "list_buckets", "SignatureDoesNotMatch", 403),
    ],
)
def test_a_wrong_secret(client, service, operation, code, status):
    with pytest.raises(
        ClientError, match="The request signature we calculated does not match the signature you provided"
    ) as caught:
        getattr(client(service, secret="wrong"), operation)()
    said = caught.value.response
    assert (said["Error"]["Code"], said["ResponseMetadata"]["HTTPStatusCode"]) == (code, status)
