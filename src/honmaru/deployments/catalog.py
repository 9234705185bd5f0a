"""Finding an imported model by what callers name it: ARN, id or name.

Invariant: what the session's label does not dominate is not found, by the same path as what does not exist.
"""

from __future__ import annotations

from honmaru.core.sessions import Session
from honmaru.ports.models import (
    CUSTOM_MODEL_KIND,
    CUSTOM_MODEL_NAME_KIND,
    EMBEDDED_FEATURES,
    MODEL_KIND,
    MODEL_NAME_KIND,
    MODEL_SERVICE,
    FoundationModels,
    ModelArtifact,
)
from honmaru.security.guard import Guard, GuardedRecords, Record


def model_arn(session: Session, model_id: str) -> str:
    """The ARN of an imported model in the session's partition, region and account."""
    return f"arn:{session.partition}:bedrock:{session.region}:{session.account}:imported-model/{model_id}"


def custom_model_arn(session: Session, model_id: str) -> str:
    """The ARN of a custom model."""
    return f"arn:{session.partition}:bedrock:{session.region}:{session.account}:custom-model/imported/{model_id}"


ALIAS_KINDS = ("provisioned-model", "custom-model-deployment", "application-inference-profile")
"""Kinds of records that name a model: body {"name", "model_arn", ...}. The kind is also their part of the ARN."""


def alias_arn(session: Session, kind: str, identifier: str) -> str:
    """The ARN of a name for a model."""
    return f"arn:{session.partition}:bedrock:{session.region}:{session.account}:{kind}/{identifier}"


def find_custom_model(records: GuardedRecords, identifier: str) -> Record | None:
    """A custom model's record, by ARN, id or name. Label: reads at or below the session's label."""
    if identifier.startswith("arn:"):
        prefix = custom_model_arn(records.session, "")
        return (
            records.get(CUSTOM_MODEL_KIND, identifier.removeprefix(prefix)) if identifier.startswith(prefix) else None
        )
    name = records.get(CUSTOM_MODEL_NAME_KIND, identifier)
    return records.get(CUSTOM_MODEL_KIND, str(name.body["id"]) if name is not None else identifier)


def _behind(records: GuardedRecords, identifier: str) -> str:
    """The ARN of the model behind a name for it; `identifier` itself when it is no such name."""
    for kind in ALIAS_KINDS:
        prefix = alias_arn(records.session, kind, "")
        if identifier.startswith(prefix):
            record = records.get(kind, identifier.removeprefix(prefix))
            return str(record.body["model_arn"]) if record is not None else ""
    return identifier


def find_model(records: GuardedRecords, identifier: str) -> Record | None:
    """The model's record, from records of service "bedrock". Label: reads at or below the session's label."""
    session = records.session
    if identifier.startswith("arn:"):
        prefix = model_arn(session, "")
        return records.get(MODEL_KIND, identifier.removeprefix(prefix)) if identifier.startswith(prefix) else None
    name = records.get(MODEL_NAME_KIND, identifier)
    return records.get(MODEL_KIND, str(name.body["id"]) if name is not None else identifier)


def artifact(session: Session, record: Record) -> ModelArtifact:
    """What a model server needs of a model's record."""
    body = record.body
    custom = record.kind == CUSTOM_MODEL_KIND
    return ModelArtifact(
        arn=custom_model_arn(session, record.name) if custom else model_arn(session, record.name),
        name=str(body["name"]),
        label=record.label.canonical,
        files=dict(body["files"]),
        architecture=str(body["architecture"]),
        context_length=int(body["context_length"]),
        instruct=bool(body["instruct"]),
        features=EMBEDDED_FEATURES.get(str(body.get("engine")), frozenset()),
        arn_type="AWS::Bedrock::CustomModel" if custom else "AWS::Bedrock::ImportedModel",
    )


def find_artifact(
    guard: Guard, session: Session, identifier: str, foundation: FoundationModels
) -> ModelArtifact | None:
    """The model that a caller means by an id, name or ARN. Blocking. Label: reads at or below the session's label."""
    records = guard.records(session, MODEL_SERVICE)
    identifier = _behind(records, identifier) if identifier.startswith("arn:") else identifier
    record = find_model(records, identifier) or find_custom_model(records, identifier)
    return artifact(session, record) if record is not None else foundation.find(session, identifier)
