"""AWS's well-known managed policies, as documents of honmaru's own under AWS's names.

Invariants:
- Every document is a valid identity policy, and works in every partition (ARN patterns name none).
- They follow the intent of AWS's documents for the services that honmaru carries, not their text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def _allow(*actions: str, resource: str | list[str] = "*", **condition: Any) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": "Allow", "Action": list(actions), "Resource": resource}
    if condition:
        statement["Condition"] = condition
    return statement


def _pass_role(*services: str) -> dict[str, Any]:
    return _allow(
        "iam:PassRole",
        resource="arn:*:iam::*:role/*",
        StringEquals={"iam:PassedToService": [f"{service}.amazonaws.com" for service in services]},
    )


_SAGEMAKER_BUCKETS = ["arn:*:s3:::*sagemaker*", "arn:*:s3:::*SageMaker*", "arn:*:s3:::*Sagemaker*"]
_READ_LOGS = ("logs:Describe*", "logs:Get*", "logs:List*", "logs:FilterLogEvents", "logs:StartQuery", "logs:StopQuery")
_READ = ("Get*", "List*", "Describe*", "Head*", "Lookup*", "Search*", "BatchGet*", "Filter*")
_SERVICES = (
    "bedrock",
    "braket",
    "cloudtrail",
    "cloudwatch",
    "ecr",
    "eks",
    "guardduty",
    "iam",
    "kms",
    "logs",
    "s3",
    "sagemaker",
    "sts",
)

_STATEMENTS: dict[str, list[dict[str, Any]]] = {
    "AdministratorAccess": [_allow("*")],
    "PowerUserAccess": [
        {"Effect": "Allow", "NotAction": ["iam:*", "organizations:*", "account:*"], "Resource": "*"},
        _allow("iam:ListRoles", "iam:CreateServiceLinkedRole", "account:ListRegions", "organizations:Describe*"),
    ],
    "ReadOnlyAccess": [_allow(*(f"{service}:{verb}" for service in _SERVICES for verb in _READ))],
    "SecurityAudit": [
        _allow(
            *(f"{service}:{verb}" for service in _SERVICES if service != "s3" for verb in ("Describe*", "List*")),
            "cloudtrail:Get*",
            "cloudtrail:LookupEvents",
            "guardduty:Get*",
            "iam:Get*",
            "iam:GenerateCredentialReport",
            "iam:SimulatePrincipalPolicy",
            "kms:Get*",
            "s3:GetBucket*",
            "s3:GetEncryptionConfiguration",
            "s3:ListAllMyBuckets",
        )
    ],
    "job-function/ViewOnlyAccess": [
        _allow(
            *(f"{service}:{verb}" for service in _SERVICES if service != "s3" for verb in ("Describe*", "List*")),
            "s3:ListAllMyBuckets",
            "s3:ListBucket",
        )
    ],
    "IAMFullAccess": [_allow("iam:*", "organizations:Describe*", "organizations:List*")],
    "IAMReadOnlyAccess": [_allow("iam:Get*", "iam:List*", "iam:Simulate*", "iam:GenerateCredentialReport")],
    "AmazonS3FullAccess": [_allow("s3:*", "s3-object-lambda:*")],
    "AmazonS3ReadOnlyAccess": [_allow("s3:Get*", "s3:List*", "s3:Describe*", "s3-object-lambda:Get*")],
    "AmazonSageMakerFullAccess": [
        _allow("sagemaker:*", "sagemaker-geospatial:*"),
        _allow(
            "ecr:BatchGetImage",
            "ecr:Describe*",
            "ecr:GetAuthorizationToken",
            "ecr:GetDownloadUrlForLayer",
            "cloudwatch:GetMetricData",
            "cloudwatch:GetMetricStatistics",
            "cloudwatch:ListMetrics",
            "cloudwatch:PutMetricData",
            "iam:GetRole",
            "iam:ListRoles",
            "iam:SimulatePrincipalPolicy",
            "kms:DescribeKey",
            "kms:ListAliases",
            "logs:CreateLogGroup",
            "logs:CreateLogStream",
            "logs:PutLogEvents",
            *_READ_LOGS,
        ),
        _allow("s3:CreateBucket", "s3:GetBucketLocation", "s3:ListBucket", "s3:ListAllMyBuckets", "s3:GetBucketCors"),
        _allow(
            "s3:GetObject",
            "s3:PutObject",
            "s3:DeleteObject",
            "s3:AbortMultipartUpload",
            "s3:ListMultipartUploadParts",
            resource=[f"{bucket}/*" for bucket in _SAGEMAKER_BUCKETS],
        ),
        _pass_role("sagemaker"),
    ],
    "AmazonSageMakerReadOnly": [
        _allow("sagemaker:Describe*", "sagemaker:Get*", "sagemaker:List*", "sagemaker:Search", *_READ_LOGS)
    ],
    "AmazonBedrockFullAccess": [
        _allow("bedrock:*", "bedrock-mantle:*", "kms:DescribeKey", "iam:ListRoles"),
        _pass_role("bedrock"),
    ],
    "AmazonBedrockLimitedAccess": [
        _allow("bedrock:Get*", "bedrock:List*", "bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream"),
        _allow("bedrock:Converse*", "bedrock:CountTokens", "bedrock:ApplyGuardrail", "bedrock:CallWithBearerToken"),
    ],
    "AmazonBedrockReadOnly": [_allow("bedrock:Get*", "bedrock:List*")],
    "CloudWatchLogsFullAccess": [_allow("logs:*", "cloudwatch:GenerateQuery")],
    "CloudWatchLogsReadOnlyAccess": [_allow(*_READ_LOGS)],
    "CloudWatchFullAccess": [_allow("cloudwatch:*", "logs:*")],
    "CloudWatchFullAccessV2": [_allow("cloudwatch:*", "logs:*")],
    "CloudWatchReadOnlyAccess": [
        _allow("cloudwatch:Describe*", "cloudwatch:Get*", "cloudwatch:List*", *_READ_LOGS, "logs:StartLiveTail")
    ],
    "AmazonEC2ContainerRegistryFullAccess": [_allow("ecr:*", "cloudtrail:LookupEvents")],
    "AmazonEC2ContainerRegistryReadOnly": [
        _allow("ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer"),
        _allow("ecr:GetRepositoryPolicy", "ecr:Describe*", "ecr:List*", "ecr:BatchGetImage", "ecr:GetLifecyclePolicy*"),
    ],
    "ResourceGroupsandTagEditorReadOnlyAccess": [_allow("tag:GetResources", "tag:GetTagKeys", "tag:GetTagValues")],
    "ServiceQuotasFullAccess": [_allow("servicequotas:*")],
    "ServiceQuotasReadOnlyAccess": [_allow("servicequotas:Get*", "servicequotas:List*")],
    "AWSCloudTrail_FullAccess": [_allow("cloudtrail:*")],
    "AWSCloudTrail_ReadOnlyAccess": [
        _allow("cloudtrail:Get*", "cloudtrail:Describe*", "cloudtrail:List*", "cloudtrail:LookupEvents")
    ],
    "AmazonBraketFullAccess": [_allow("braket:*", "iam:ListRoles", *_READ_LOGS), _pass_role("braket")],
    "AmazonGuardDutyFullAccess": [_allow("guardduty:*")],
    "AmazonGuardDutyReadOnlyAccess": [_allow("guardduty:Get*", "guardduty:List*", "guardduty:Describe*")],
}

MANAGED: Mapping[str, str] = {
    name: json.dumps({"Version": "2012-10-17", "Statement": statements}, separators=(",", ":"))
    for name, statements in _STATEMENTS.items()
}
"""Path and name after `policy/` → document text."""


def managed_arn(partition: str, name: str) -> str | None:
    """The ARN of a managed policy by its name, with or without its path; None when there is none."""
    for known in MANAGED:
        if name in (known, known.rpartition("/")[2]):
            return f"arn:{partition}:iam::aws:policy/{known}"
    return None


def managed_document(arn: str, partition: str) -> str | None:
    """The text of a managed policy by ARN in this partition; None when there is none."""
    return MANAGED.get(arn.removeprefix(f"arn:{partition}:iam::aws:policy/"))
