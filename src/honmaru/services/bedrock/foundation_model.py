"""Foundation models: those of the engines that the operator declared, as far as the session may reach them.

Invariant: one that the session may not reach is answered as one that is not declared, word for word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import AccessDenied, NotFound
from honmaru.ports.models import FoundationModels, ModelArtifact
from honmaru.security.calls import Call


def find(call: Call, identifier: str, foundation: FoundationModels) -> ModelArtifact:
    """By id or ARN. Raises NotFound."""
    model = foundation.find(call.session, identifier)
    if model is None:
        raise NotFound(
            f"Could not find foundation model {identifier}; foundation models are those of declared engines "
            "(`honmaru engine`), other models are imported with CreateModelImportJob",
            code="ResourceNotFoundException",
        )
    return model


def described(call: Call, identifier: str, foundation: FoundationModels) -> dict[str, Any]:
    """Members of GetFoundationModel's modelDetails."""
    model = find(call, identifier, foundation)
    if identifier != model.arn:
        call.authorize("bedrock:GetFoundationModel", model.arn)
    return _summary(model)


def listed(call: Call, request: Mapping[str, Any], foundation: FoundationModels) -> list[dict[str, Any]]:
    """The summaries that pass the request's filters."""
    wanted = {
        "byCustomizationType": "customizationsSupported",
        "byOutputModality": "outputModalities",
        "byInferenceType": "inferenceTypesSupported",
    }
    found = [_summary(model) for model in foundation.all(call.session)]
    if request.get("byProvider"):
        found = [one for one in found if one["providerName"].lower() == request["byProvider"].lower()]
    for name, member in wanted.items():
        if request.get(name):
            found = [one for one in found if request[name] in one[member]]
    return found


def availability(call: Call, identifier: str, foundation: FoundationModels) -> dict[str, Any]:
    """Members of GetFoundationModelAvailability: what is declared is available, without an agreement."""
    model = find(call, identifier, foundation)
    return {
        "modelId": model.name,
        "agreementAvailability": {"status": "AVAILABLE"},
        "authorizationStatus": "AUTHORIZED",
        "entitlementAvailability": "AVAILABLE",
        "regionAvailability": "AVAILABLE",
    }


def beside(call: Call, foundation: FoundationModels) -> list[dict[str, Any]]:
    """The summaries for lists of other dialects, which know one kind of model; none for who may not list them."""
    try:
        call.authorize("bedrock:ListFoundationModels", "*")
    except AccessDenied:
        return []
    return listed(call, {}, foundation)


def _summary(model: ModelArtifact) -> dict[str, Any]:
    embeds = "embeddings" in model.features
    return {
        "modelArn": model.arn,
        "modelId": model.name,
        "modelName": model.details["name"],
        "providerName": model.details["provider"],
        "inputModalities": ["TEXT", "IMAGE"] if "images" in model.features else ["TEXT"],
        "outputModalities": ["EMBEDDING"] if embeds else ["TEXT"],
        "responseStreamingSupported": not embeds,
        "customizationsSupported": [],
        "inferenceTypesSupported": ["ON_DEMAND"],
        "modelLifecycle": {"status": "ACTIVE"},
    }
