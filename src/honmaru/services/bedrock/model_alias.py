"""Names under which a model is reached: provisioned throughput, custom model deployments, inference profiles.

One form for the three: a record with a name of its own that holds the ARN of the model behind it
(`deployments.catalog` resolves it when a caller asks that model).

Invariants:
- Provisioned units are reserved: all units of an account at a label together are at most the enclave's cores, and a
  request beyond that is refused.
- What the session may not see is not found, also as the model behind a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from honmaru.core.errors import Conflict, NotFound, QuotaExceeded
from honmaru.deployments import tags
from honmaru.deployments.catalog import ALIAS_KINDS, alias_arn, find_artifact
from honmaru.ports.models import FoundationModels
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Creation, GuardedChange, Removal, Revision


@dataclass(frozen=True, slots=True)
class Alias:
    """One of the three kinds. `wording` is what messages call it."""

    kind: str
    wording: str

    @property
    def name_kind(self) -> str:
        return f"{self.kind}-name"


PROVISIONED = Alias("provisioned-model", "provisioned model throughput")
DEPLOYMENT = Alias("custom-model-deployment", "custom model deployment")
PROFILE = Alias("application-inference-profile", "inference profile")
assert {PROVISIONED.kind, DEPLOYMENT.kind, PROFILE.kind} == set(ALIAS_KINDS)  # noqa: S101 - one list, seen from two layers


def create(
    call: Call,
    alias: Alias,
    name: str,
    model: str,
    foundation: FoundationModels,
    ids: Ids,
    *,
    more: Mapping[str, Any],
    given: Any,
) -> str:
    """Make the records; returns the ARN. Raises NotFound (model), Conflict (name taken)."""
    found = find_artifact(call.guard, call.session, model, foundation)
    if found is None:
        raise NotFound(f"Could not find the model {model}", code="ResourceNotFoundException")
    present = call.records.get(alias.name_kind, name)
    if present is not None and present.label == call.session.label:
        raise Conflict(f"a {alias.wording} named {name!r} exists; choose another name")
    identifier = ids.token("", 12).lower()
    body = {"name": name, "model_arn": found.arn, "tags": tags.checked(call.session, given), **more}
    call.records.apply(
        [Creation(alias.name_kind, name, {"id": identifier}), Creation(alias.kind, identifier, body, "InService")]
    )
    arn = alias_arn(call.session, alias.kind, identifier)
    call.resources.append((arn, "AWS::Bedrock::ModelAlias"))
    return arn


def find(call: Call, alias: Alias, identifier: str) -> Record:
    """By ARN, id or name. Raises NotFound."""
    name = identifier.removeprefix(alias_arn(call.session, alias.kind, ""))
    pointer = call.records.get(alias.name_kind, name)
    record = call.records.get(alias.kind, str(pointer.body["id"]) if pointer is not None else name)
    if record is None:
        raise NotFound(f"Could not find {alias.wording} {identifier}", code="ResourceNotFoundException")
    return record


def listed(call: Call, alias: Alias, request: Mapping[str, Any]) -> Iterator[Record]:
    """The records of a kind that pass the filters of its list. Every profile here is one of an application."""
    if request.get("typeEquals", request.get("type")) == "SYSTEM_DEFINED":
        return iter(())
    wanted = request.get("modelArnEquals")
    return (one for one in call.records.iterate(alias.kind) if wanted in (None, one.body["model_arn"]))


def delete(call: Call, alias: Alias, identifier: str) -> None:
    record = find(call, alias, identifier)
    pointer = call.records.get(alias.name_kind, record.body["name"])
    changes = [Removal(record)]
    if pointer is not None and pointer.body["id"] == record.name:
        changes.append(Removal(pointer))
    call.records.apply(changes)


def change(
    call: Call, alias: Alias, record: Record, name: str | None, model: str | None, foundation: FoundationModels
) -> None:
    """Another name, another model behind it, or both; callers that ask the ARN get the new model from then on.

    Raises NotFound (model), Conflict (name taken), AccessDenied for a record at a lower label.
    """
    body = dict(record.body)
    changes: list[GuardedChange] = []
    if model is not None:
        found = find_artifact(call.guard, call.session, model, foundation)
        if found is None:
            raise NotFound(f"Could not find the model {model}", code="ResourceNotFoundException")
        body["model_arn"] = found.arn
    if name is not None and name != body["name"]:
        present = call.records.get(alias.name_kind, name)
        if present is not None and present.label == call.session.label:
            raise Conflict(f"a {alias.wording} named {name!r} exists; choose another name")
        pointer = call.records.get(alias.name_kind, body["name"])
        changes.append(Creation(alias.name_kind, name, {"id": record.name}))
        if pointer is not None and pointer.body["id"] == record.name:
            changes.append(Removal(pointer))
        body["name"] = name
    call.records.apply([Revision(record, body), *changes])


def reserve(call: Call, units: int, cores: int, beside: str = "") -> None:
    """Raises QuotaExceeded when `units` more, beside those of other names, exceed what the enclave has."""
    taken = sum(int(record.body["units"]) for record in call.records.iterate(PROVISIONED.kind) if record.name != beside)
    if taken + units > cores:
        raise QuotaExceeded(
            f"{units} model units were asked for; {max(0, cores - taken)} of {cores} are free in this enclave",
            code="ServiceQuotaExceededException",
        )


def provisioned(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetProvisionedModelThroughput, and of its summary."""
    body = record.body
    return {
        "modelUnits": body["units"],
        "desiredModelUnits": body["units"],
        "provisionedModelName": body["name"],
        "provisionedModelArn": alias_arn(call.session, PROVISIONED.kind, record.name),
        "modelArn": body["model_arn"],
        "desiredModelArn": body["model_arn"],
        "foundationModelArn": body["model_arn"],
        "status": "InService",
        "creationTime": record.created,
        "lastModifiedTime": record.updated,
        "commitmentDuration": body.get("commitment"),
    }


def deployment(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetCustomModelDeployment, and of its summary."""
    body = record.body
    return {
        "customModelDeploymentArn": alias_arn(call.session, DEPLOYMENT.kind, record.name),
        "modelArn": body["model_arn"],
        "createdAt": record.created,
        "lastUpdatedAt": record.updated,
        "status": "Active",
        "description": body.get("description"),
    }


def profile(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetInferenceProfile, and of its summary."""
    body = record.body
    return {
        "inferenceProfileName": body["name"],
        "description": body.get("description"),
        "createdAt": record.created,
        "updatedAt": record.updated,
        "inferenceProfileArn": alias_arn(call.session, PROFILE.kind, record.name),
        "models": [{"modelArn": body["model_arn"]}],
        "inferenceProfileId": record.name,
        "status": "ACTIVE",
        "type": "APPLICATION",
    }
