"""Where invocations of models are logged to: one configuration for an account, at the label it was made at.

It holds for every session that may read it, so for that label and those above; what is logged carries the label of
the invocation, never that of the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.ports.models import INVOCATION_LOGGING_KIND
from honmaru.security.calls import Call
from honmaru.services.bedrock import passed_role

NAME = "configuration"


def put(call: Call, config: Mapping[str, Any], roles: passed_role.Roles) -> None:
    """Raises ValidationFault, AccessDenied (role)."""
    cloud, bucket = config.get("cloudWatchConfig"), config.get("s3Config")
    if not cloud and not bucket:
        raise ValidationFault("loggingConfig needs a cloudWatchConfig, an s3Config, or both")
    body: dict[str, Any] = {"text": config.get("textDataDeliveryEnabled", True)}
    for member in ("imageDataDeliveryEnabled", "videoDataDeliveryEnabled", "audioDataDeliveryEnabled"):
        if config.get(member):
            raise ValidationFault(f"{member} is not supported: text and embeddings are delivered")
    body["embedding"] = config.get("embeddingDataDeliveryEnabled", True)
    if cloud:
        if cloud.get("largeDataDeliveryS3Config"):
            raise ValidationFault("largeDataDeliveryS3Config is not supported: entries are delivered whole")
        body["human"] = passed_role.check(call, roles, cloud["roleArn"], "bedrock-logging")
        body["cloud"] = {"group": cloud["logGroupName"], "role": cloud["roleArn"]}
    if bucket:
        call.authorize("s3:PutObject", f"arn:{call.session.partition}:s3:::{bucket['bucketName']}/*")
        body["bucket"] = {"name": bucket["bucketName"], "prefix": bucket.get("keyPrefix") or ""}
        body["owner"] = call.session.principal_arn
    present = call.records.get(INVOCATION_LOGGING_KIND, NAME)
    if present is not None and present.label == call.session.label:
        call.records.update(present, body)
    else:
        call.records.create(INVOCATION_LOGGING_KIND, NAME, body)


def described(call: Call) -> dict[str, Any]:
    """Members of GetModelInvocationLoggingConfiguration; none when there is no configuration."""
    record = call.records.get(INVOCATION_LOGGING_KIND, NAME)
    if record is None:
        return {}
    body = record.body
    config: dict[str, Any] = {
        "textDataDeliveryEnabled": body["text"],
        "embeddingDataDeliveryEnabled": body["embedding"],
    }
    if body.get("cloud"):
        config["cloudWatchConfig"] = {"logGroupName": body["cloud"]["group"], "roleArn": body["cloud"]["role"]}
    if body.get("bucket"):
        config["s3Config"] = {"bucketName": body["bucket"]["name"], "keyPrefix": body["bucket"]["prefix"]}
    return {"loggingConfig": config}


def delete(call: Call) -> None:
    record = call.records.get(INVOCATION_LOGGING_KIND, NAME)
    if record is not None:
        call.records.delete(record)
