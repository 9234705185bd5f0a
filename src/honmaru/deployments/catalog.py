"""Finding an imported model by what callers name it: ARN, id or name.

Invariant: what the session's label does not dominate is not found, by the same path as what does not exist.
"""

from __future__ import annotations

from honmaru.core.sessions import Session
from honmaru.ports.models import (
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
    return ModelArtifact(
        arn=model_arn(session, record.name),
        name=str(body["name"]),
        label=record.label.canonical,
        files=dict(body["files"]),
        architecture=str(body["architecture"]),
        context_length=int(body["context_length"]),
        instruct=bool(body["instruct"]),
        features=EMBEDDED_FEATURES.get(str(body.get("engine")), frozenset()),
    )


def find_artifact(
    guard: Guard, session: Session, identifier: str, foundation: FoundationModels
) -> ModelArtifact | None:
    """The model that a caller means by an id, name or ARN. Blocking. Label: reads at or below the session's label."""
    record = find_model(guard.records(session, MODEL_SERVICE), identifier)
    return artifact(session, record) if record is not None else foundation.find(session, identifier)
