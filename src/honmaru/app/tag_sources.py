"""Which resources have tags, and how each service reads and writes them: the table behind the tagging API.

One row a kind of resource. Another kind costs one row here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from honmaru.security.calls import Call, Provider
from honmaru.security.guard import Record

Tags = Mapping[str, str]
_PLAIN: Callable[[Any], Tags] = lambda stored: stored or {}  # noqa: E731
_LOWER: Callable[[Any], Tags] = lambda stored: {tag["key"]: tag["value"] for tag in stored or ()}  # noqa: E731


@dataclass(frozen=True, slots=True)
class Row:
    """`arn` is a template of a record: {name}, or {body arn} for records that keep theirs; `tag` and `untag` write the
    request of the service's own operation."""

    service: str
    kind: str
    resource_type: str
    arn: str
    tag_operation: str
    untag_operation: str
    tag: Callable[[str, Tags], dict[str, Any]]
    untag: Callable[[str, Sequence[str]], dict[str, Any]]
    read: Callable[[Any], Tags] = _PLAIN
    shown: Callable[[Record], bool] = lambda _record: True


def _pairs(tags: Tags, key: str = "Key", value: str = "Value") -> list[dict[str, str]]:
    return [{key: name, value: text} for name, text in tags.items()]


def _last(arn: str) -> str:
    return arn.rpartition("/")[2]


def _sagemaker(kind: str) -> Row:
    return Row(
        "sagemaker",
        kind,
        f"sagemaker:{kind}",
        "arn:{partition}:sagemaker:{region}:{account}:" + kind + "/{name}",
        "AddTags",
        "DeleteTags",
        lambda arn, tags: {"ResourceArn": arn, "Tags": _pairs(tags)},
        lambda arn, keys: {"ResourceArn": arn, "TagKeys": list(keys)},
    )


def _bedrock(kind: str, place: str = "{name}") -> Row:
    return Row(
        "bedrock",
        kind,
        f"bedrock:{kind}",
        "arn:{partition}:bedrock:{region}:{account}:" + kind + f"/{place}",
        "TagResource",
        "UntagResource",
        lambda arn, tags: {"resourceARN": arn, "tags": _pairs(tags, "key", "value")},
        lambda arn, keys: {"resourceARN": arn, "tagKeys": list(keys)},
        _LOWER,
    )


def _braket(kind: str, arn: str = "") -> Row:
    return Row(
        "braket",
        kind,
        f"braket:{kind}",
        arn or "arn:{partition}:braket:{region}:{account}:" + kind + "/{name}",
        "TagResource",
        "UntagResource",
        lambda arn, tags: {"resourceArn": arn, "tags": dict(tags)},
        lambda arn, keys: {"resourceArn": arn, "tagKeys": list(keys)},
    )


ROWS = (
    _sagemaker("training-job"),
    _sagemaker("model-package-group"),
    _bedrock("model-import-job"),
    _bedrock("imported-model"),
    _bedrock("model-invocation-job"),
    _bedrock("model-customization-job", "honmaru.imported/{name}"),
    _bedrock("provisioned-model"),
    _bedrock("custom-model-deployment"),
    _bedrock("application-inference-profile"),
    _braket("quantum-task"),
    _braket("job"),
    _braket("spending-limit"),
    Row(
        "logs",
        "log-group",
        "logs:log-group",
        "arn:{partition}:logs:{region}:{account}:log-group:{name}",
        "TagResource",
        "UntagResource",
        lambda arn, tags: {"resourceArn": arn, "tags": dict(tags)},
        lambda arn, keys: {"resourceArn": arn, "tagKeys": list(keys)},
    ),
    Row(
        "cloudwatch",
        "alarm",
        "cloudwatch:alarm",
        "arn:{partition}:cloudwatch:{region}:{account}:alarm:{name}",
        "TagResource",
        "UntagResource",
        lambda arn, tags: {"ResourceARN": arn, "Tags": _pairs(tags)},
        lambda arn, keys: {"ResourceARN": arn, "TagKeys": list(keys)},
    ),
    Row(
        "cloudtrail",
        "trail",
        "cloudtrail:trail",
        "arn:{partition}:cloudtrail:{region}:{account}:trail/{name}",
        "AddTags",
        "RemoveTags",
        lambda arn, tags: {"ResourceId": arn, "TagsList": _pairs(tags)},
        lambda arn, keys: {"ResourceId": arn, "TagsList": [{"Key": key} for key in keys]},
    ),
    Row(
        "ecr",
        "repository",
        "ecr:repository",
        "arn:{partition}:ecr:{region}:{account}:repository/{name}",
        "TagResource",
        "UntagResource",
        lambda arn, tags: {"resourceArn": arn, "tags": _pairs(tags)},
        lambda arn, keys: {"resourceArn": arn, "tagKeys": list(keys)},
    ),
    Row(
        "kms",
        "key",
        "kms:key",
        "arn:{partition}:kms:{region}:{account}:key/{name}",
        "TagResource",
        "UntagResource",
        lambda arn, tags: {"KeyId": _last(arn), "Tags": _pairs(tags, "TagKey", "TagValue")},
        lambda arn, keys: {"KeyId": _last(arn), "TagKeys": list(keys)},
    ),
)


class ServiceTags:
    """A `services.resourcegroupstaggingapi.TagSource` over one row and the provider of its service."""

    def __init__(self, row: Row, provider: Provider) -> None:
        self._row = row
        self._provider = provider

    @property
    def resource_type(self) -> str:
        return self._row.resource_type

    def tagged(self, call: Call) -> Iterator[tuple[str, Tags]]:
        for record in call.records_of(self._row.service).iterate(self._row.kind):
            tags = self._row.read(record.body.get("tags"))
            if tags:
                yield self._arn(call, record.name), tags

    def owns(self, call: Call, arn: str) -> bool:
        head, _, tail = self._arn(call, "\0").partition("\0")
        return arn.startswith(head) and arn.endswith(tail) and len(arn) > len(head) + len(tail)

    def tag(self, call: Call, arn: str, tags: Tags) -> None:
        self._ask(call, arn, self._row.tag_operation, self._row.tag(arn, tags), tags)

    def untag(self, call: Call, arn: str, keys: Collection[str]) -> None:
        self._ask(call, arn, self._row.untag_operation, self._row.untag(arn, list(keys)), {})

    def _ask(self, call: Call, arn: str, operation: str, request: dict[str, Any], tags: Tags) -> None:
        context: dict[str, Any] = {f"aws:RequestTag/{key}": value for key, value in tags.items()}
        if tags:
            context["aws:TagKeys"] = list(tags)
        call.authorize(f"{self._row.service}:{operation}", arn, context)
        method = getattr(self._provider, re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower())
        inner = replace(call, service=self._row.service, operation=operation)
        method(inner, request)

    def _arn(self, call: Call, name: str) -> str:
        session = call.session
        return self._row.arn.format(partition=session.partition, region=session.region, account=call.account, name=name)


class BucketTags:
    """Buckets of S3: a bucket's tags are replaced whole, so a change reads them first."""

    resource_type = "s3:bucket"

    def __init__(self, provider: Provider) -> None:
        self._provider: Any = provider

    def tagged(self, call: Call) -> Iterator[tuple[str, Tags]]:
        for record in call.records_of("s3").iterate("bucket"):
            if record.body.get("tags"):
                yield f"arn:{call.session.partition}:s3:::{record.name}", record.body["tags"]

    def owns(self, call: Call, arn: str) -> bool:
        head, _, bucket = arn.partition(":::")
        return head == f"arn:{call.session.partition}:s3" and bool(bucket) and not {"/", ":"} & set(bucket)

    def tag(self, call: Call, arn: str, tags: Tags) -> None:
        self._replace(call, arn, lambda own: {**own, **tags})

    def untag(self, call: Call, arn: str, keys: Collection[str]) -> None:
        self._replace(call, arn, lambda own: {key: value for key, value in own.items() if key not in keys})

    def _replace(self, call: Call, arn: str, change: Callable[[Tags], Tags]) -> None:
        bucket = arn.partition(":::")[2]  # all of what IAM is asked about: nothing else may be changed
        call.authorize("s3:PutBucketTagging", arn)
        record = call.records_of("s3").get("bucket", bucket)
        tags = change({} if record is None else record.body.get("tags") or {})
        inner = replace(call, service="s3", operation="PutBucketTagging")
        if tags:
            self._provider.put_bucket_tagging(inner, {"Bucket": bucket, "Tagging": {"TagSet": _pairs(tags)}})
        else:
            self._provider.delete_bucket_tagging(inner, {"Bucket": bucket})


def tag_sources(providers: Sequence[Provider]) -> list[ServiceTags | BucketTags]:
    """The sources of the services that an enclave carries."""
    carried = {provider.service: provider for provider in providers}
    sources: list[ServiceTags | BucketTags] = [
        ServiceTags(row, carried[row.service]) for row in ROWS if row.service in carried
    ]
    if "s3" in carried:
        sources.append(BucketTags(carried["s3"]))
    return sources
