"""Prompt routers: creating, finding, describing, deleting. Which model is asked is `deployments.routers`.

Invariant: a router names only models that its maker can see, and its fallback model is one of them or beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.deployments import tags
from honmaru.deployments.catalog import find_artifact
from honmaru.deployments.routers import ROUTER_KIND
from honmaru.ports.models import FoundationModels
from honmaru.ports.runtime import Ids
from honmaru.security import idempotency
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Creation, GuardedChange, Removal

NAME_KIND = "prompt-router-name"
"""Keeps a router's name taken; body {"id"}. Made together with the router."""
STEP = 5
"""AWS takes differences in steps of five percent."""


def arn(call: Call, router_id: str) -> str:
    """The form that Bedrock's service model has for every router, its own and its users'."""
    return call.arn("bedrock", f"default-prompt-router/{router_id}")


def create(call: Call, request: Mapping[str, Any], ids: Ids, foundation: FoundationModels) -> dict[str, Any]:
    """Make the records. Raises ValidationFault, NotFound (a model), Conflict (name taken)."""
    difference = float(request["routingCriteria"]["responseQualityDifference"])
    if not 0 <= difference <= 100 or difference % STEP:
        raise ValidationFault(
            f"routingCriteria.responseQualityDifference is {difference:g}; expected a multiple of {STEP} from 0 to 100"
        )
    models = [one["modelArn"] for one in request["models"]]
    fallback = request["fallbackModel"]["modelArn"]
    if len(set(models)) != len(models):
        raise ValidationFault("models names a model twice")
    for one in (*models, fallback):
        if find_artifact(call.guard, call.session, one, foundation) is None:
            raise NotFound(f"Could not find the model {one}", code="ResourceNotFoundException")

    def make() -> tuple[list[GuardedChange], dict[str, Any]]:
        name = request["promptRouterName"]
        present = call.records.get(NAME_KIND, name)
        if present is not None and present.label == call.session.label:
            raise Conflict(f"a prompt router named {name!r} exists; choose another name")
        router_id = ids.token("", 12).lower()
        body = {
            "name": name,
            "models": models,
            "fallback": fallback,
            "difference": difference,
            "description": request.get("description"),
            "tags": tags.checked(call.session, request.get("tags")),
        }
        call.resources.append((arn(call, router_id), "AWS::Bedrock::PromptRouter"))
        changes = [Creation(NAME_KIND, name, {"id": router_id}), Creation(ROUTER_KIND, router_id, body, "AVAILABLE")]
        return list(changes), {"promptRouterArn": arn(call, router_id)}

    return idempotency.once(call, request, make)


def find(call: Call, identifier: str) -> Record:
    """By ARN. Raises NotFound."""
    prefix = arn(call, "")
    record = call.records.get(ROUTER_KIND, identifier.removeprefix(prefix)) if identifier.startswith(prefix) else None
    if record is None:
        raise NotFound(f"Could not find prompt router {identifier}", code="ResourceNotFoundException")
    return record


def delete(call: Call, record: Record) -> None:
    """Raises AccessDenied for a router at a lower label."""
    pointer = call.records.get(NAME_KIND, record.body["name"])
    changes = [Removal(record)]
    if pointer is not None and pointer.body["id"] == record.name:
        changes.append(Removal(pointer))
    call.records.apply(changes)


def describe(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetPromptRouter, and of its summary."""
    body = record.body
    return {
        "promptRouterName": body["name"],
        "routingCriteria": {"responseQualityDifference": body["difference"]},
        "description": body["description"],
        "createdAt": record.created,
        "updatedAt": record.updated,
        "promptRouterArn": arn(call, record.name),
        "models": [{"modelArn": one} for one in body["models"]],
        "fallbackModel": {"modelArn": body["fallback"]},
        "status": "AVAILABLE",
        "type": "custom",
    }
