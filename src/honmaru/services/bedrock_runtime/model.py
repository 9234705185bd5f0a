"""Which model a request means, and whether the session may ask it.

Invariant: a model that the session may not see is answered as one that does not exist, word for word.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from honmaru.core.conversation import prompts
from honmaru.core.errors import EngineFailed, NotFound, NotReady
from honmaru.deployments.catalog import find_artifact
from honmaru.ports.models import FoundationModels, ModelArtifact
from honmaru.security.calls import Call


async def resolve(call: Call, foundation: FoundationModels, operation: str, identifier: str) -> ModelArtifact:
    """The model that a caller names by id, name or ARN. Raises NotFound, AccessDenied."""
    model = foundation.find(call.session, identifier)
    if model is None:
        model = await asyncio.to_thread(find_artifact, call.guard, call.session, identifier, foundation)
    if model is None:
        raise NotFound(
            f"Could not resolve the model from the model identifier {identifier!r}; "
            "list the models that you can use with ListFoundationModels and ListImportedModels",
            code="ResourceNotFoundException",
        )
    if identifier != model.arn:
        # The door asked about what the caller wrote; policies speak of ARNs.
        call.authorize(f"bedrock:{operation}", model.arn)
    call.resources.append((model.arn, model.arn_type))
    return model


async def rendered(call: Call, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request that a managed prompt makes; the request itself when its model is no prompt.

    Raises NotFound, AccessDenied, ValidationFault.
    """
    mark = f":{call.session.account}:prompt/"
    if mark not in request["modelId"]:
        return request
    identifier = request["modelId"].rpartition("/")[2]
    name = identifier.removesuffix(":DRAFT")
    record = await asyncio.to_thread(call.records_of(prompts.SERVICE).get, prompts.PROMPT_KIND, name)
    arn = call.arn("bedrock", f"prompt/{identifier}")
    if record is None or arn != request["modelId"]:
        raise NotFound(f"Could not find prompt {request['modelId']}", code="ResourceNotFoundException")
    call.authorize("bedrock:RenderPrompt", arn)
    call.resources.append((arn, "AWS::Bedrock::Prompt"))
    return prompts.rendered(record.body, request)


@contextlib.contextmanager
def modelled(model: ModelArtifact) -> Iterator[None]:
    """Give the faults of a model server the codes that Bedrock has for them."""
    try:
        yield
    except NotReady as fault:
        raise NotReady(fault.message, code="ModelNotReadyException") from fault
    except EngineFailed as fault:
        raise EngineFailed(
            fault.message,
            code="ModelErrorException",
            members={"originalStatusCode": 500, "resourceName": model.name},
        ) from fault
