"""Where the service models and the real world differ: one small table, a reason for each entry.

Applied while a model is loaded, so everything compiled from it sees the corrected model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

OPEN_ENUMS: Mapping[tuple[str, str], str] = {
    ("s3", "BucketLocationConstraint"): "the list lacks the iso regions; the service compares with its own region",
    ("s3", "EncodingType"): "S3 ignores values it does not know; the listing then answers without encoding",
}
"""(service, shape) → why values outside the enum are let through to the service."""

_RUNAWAY = "the original backtracks without bound"
_JOB_NAME = r"[a-zA-Z0-9][a-zA-Z0-9+.\-]*"

PATTERNS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("logs", "ResourceType"): (r"[\w_-]*", "`\\w-_` is a bad range outside Java"),
    ("cloudtrail", "EventSource"): (r"^[a-z0-9_-]+\.[a-z0-9.-]+$", "the iso partitions have another DNS suffix"),
    # Patterns that Python's engine needs exponential or quadratic time to refuse, written so that it does not; within
    # the shapes' lengths they accept the same texts. tests/unit/test_api_checks.py looks for others.
    ("bedrock", "ContentType"): (r"(?>[^/\n]|(?<![a-z])/)*(?<=[a-z])/.+", _RUNAWAY),
    ("bedrock", "JobName"): (_JOB_NAME, _RUNAWAY),
    ("bedrock", "ModelInvocationJobName"): (_JOB_NAME, _RUNAWAY),
    ("bedrock", "ModelCustomizationJobIdentifier"): (
        (
            r"(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:model-customization-job/[a-z0-9-]{1,63}[.]{1}"
            r"[a-z0-9-]{1,63}([a-z0-9-]{1,63}[.]){0,2}[a-z0-9-]{1,63}([:][a-z0-9-]{1,63}){0,2}/[a-z0-9]{12})"
            rf"|({_JOB_NAME})"
        ),
        _RUNAWAY,
    ),
    ("bedrock", "ModelImportJobIdentifier"): (
        rf"(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{{1,20}}:[0-9]{{12}}:model-import-job/[a-z0-9]{{12}})|({_JOB_NAME})",
        _RUNAWAY,
    ),
    ("bedrock-agent", "ByteContentDocMimeTypeString"): (r"(?>[^/\n]|(?<![a-z])/)*(?<=[a-z])/.+", _RUNAWAY),
    ("bedrock-agent", "QueryGenerationTableName"): (r"[^.\n]*\.[^.\n]*\..*", _RUNAWAY),
    ("ecr", "ScanningRepositoryFilterValue"): (r"[a-z0-9*]+(?:[._\-/][a-z0-9*]+)*", _RUNAWAY),
    ("s3", "CopySource"): (r".[^/\n]*/.+", _RUNAWAY),
    ("s3", "RenameSource"): (r".[^/\n]*/.+", _RUNAWAY),
    ("sagemaker", "ClusterSchedulerPriorityClassName"): (r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", _RUNAWAY),
    ("sagemaker", "ComputeQuotaTargetTeamName"): (r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", _RUNAWAY),
    ("sagemaker", "RepositoryUrl"): (r"https://[.\-_a-zA-Z0-9](/?[.\-_a-zA-Z0-9]){2,}/?", _RUNAWAY),
}
"""(service, shape) → (pattern, why)."""

TYPES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("s3", "Expires"): ("timestamp", "botocore's own extras make it one; an HTTP date on the wire either way"),
}
"""(service, shape) → (type, why)."""

UNROUTABLE: Mapping[tuple[str, str], str] = {
    ("s3", "ListDirectoryBuckets"): "same method and path as ListBuckets; real clients sign it for s3express",
}
"""(service, operation) → why no request is ever routed to it."""

ROOT_ELEMENTS: Mapping[str, str] = {
    "ListBuckets": "ListAllMyBucketsResult",
    "ListObjects": "ListBucketResult",
    "ListObjectsV2": "ListBucketResult",
    "ListObjectVersions": "ListVersionsResult",
    "ListMultipartUploads": "ListMultipartUploadsResult",
    "ListParts": "ListPartsResult",
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "CompleteMultipartUpload": "CompleteMultipartUploadResult",
    "CopyObject": "CopyObjectResult",
    "UploadPartCopy": "CopyPartResult",
    "DeleteObjects": "DeleteResult",
    "GetBucketLocation": "LocationConstraint",
    "GetBucketVersioning": "VersioningConfiguration",
    "GetBucketTagging": "Tagging",
    "GetObjectTagging": "Tagging",
    "GetBucketAcl": "AccessControlPolicy",
    "GetObjectAcl": "AccessControlPolicy",
}
"""S3 operation → root element of its XML answer as S3's documentation shows it; the model does not say. boto3
ignores the name, other S3 clients check it."""

PAGE_TOKENS = frozenset(
    {
        "continuationtoken",
        "marker",
        "nextbackwardtoken",
        "nextcontinuationtoken",
        "nextforwardtoken",
        "nextmarker",
        "nexttoken",
        "paginationtoken",
    }
)
"""Members that hold page tokens, by lower-case name: what botocore's paginators name, and GetLogEvents' two."""

PLAIN_MARKERS: Mapping[str, frozenset[str]] = {
    "s3": frozenset({"marker", "nextmarker"}),
}
"""Services where some of them are keys in the clear that clients write themselves."""

IAM_PREFIXES: Mapping[str, str] = {
    "cloudwatch": "cloudwatch",
    "resourcegroupstaggingapi": "tag",
}
"""Services whose IAM actions are not named after the service in the credential scope ("monitoring", "tagging")."""

QUERY_EXTRAS: Mapping[str, frozenset[str]] = {
    "s3": frozenset({"x-id"}),
}
"""Query parameters that clients send beside the modelled ones and that mean nothing to the operation."""

SIGNED_QUERY = re.compile(
    r"X-Amz-(Algorithm|Credential|Date|Expires|SignedHeaders|Signature|Security-Token"
    r"|Content-Sha256|User-Agent)",
    re.IGNORECASE,
)
"""Query parameters of a presigned request."""

_CATEGORY = re.compile(r"\\p\{(\w+)\}")
_SURROGATE_PAIRS = r"\uD800\uDC00-\uDBFF\uDFFF"


def correct(service: str, model: dict[str, Any]) -> dict[str, Any]:
    """Apply the table to a loaded model, in place; returns it."""
    shapes = model["shapes"]
    for owner, shape in OPEN_ENUMS:
        if owner == service:
            shapes[shape].pop("enum", None)
    for (owner, shape), (pattern, _) in PATTERNS.items():
        if owner == service:
            shapes[shape]["pattern"] = pattern
    for (owner, shape), (kind, _) in TYPES.items():
        if owner == service:
            shapes[shape]["type"] = kind
    for owner, operation in UNROUTABLE:
        if owner == service:
            model["operations"][operation]["unroutable"] = True
    return model


def python_pattern(pattern: str) -> re.Pattern[str]:
    """A model's (Java) regular expression as Python's, ASCII classes as in Java.

    Java knows Unicode categories and writes astral characters as surrogate pairs; a quantifier behind `$` is a slip of
    the model's author and means nothing.
    """
    pattern = pattern.replace("${1,128}", "").replace("${1,256}", "").replace(_SURROGATE_PAIRS, "\U00010000-\U0010ffff")
    in_class = False
    out = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            match = _CATEGORY.match(pattern, position)
            if match:
                ranges = _category_ranges(match[1])
                out.append(ranges if in_class else f"[{ranges}]")
                position = match.end()
                continue
            out.append(pattern[position : position + 2])
            position += 2
            continue
        if character == "[" and not in_class:
            in_class = True
        elif character == "]" and in_class:
            in_class = False
        elif character == "[" and in_class:
            out.append("\\")
        out.append(character)
        position += 1
    return re.compile("".join(out), re.ASCII)


def _category_ranges(category: str) -> str:
    """The inside of a character class with every character of a Unicode category (L, Lu, M, ... Z, Zs, or Alnum)."""
    if category == "Alnum":
        return "a-zA-Z0-9"
    if not _RANGES:
        _scan_unicode()
    return _RANGES[category]


_RANGES: dict[str, str] = {}


def _scan_unicode() -> None:
    import sys
    import unicodedata

    spans: dict[str, list[list[int]]] = {}
    for point in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(point))
        for name in (category[0], category):
            found = spans.setdefault(name, [])
            if found and found[-1][1] == point - 1:
                found[-1][1] = point
            else:
                found.append([point, point])
    for letter, found in spans.items():
        _RANGES[letter] = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in found)
