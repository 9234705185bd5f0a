"""Which model a request means, and whether the session may ask it.

Invariant: a model that the session may not see is answered as one that does not exist, word for word.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from honmaru.core.conversation import prompts
from honmaru.core.errors import EngineFailed, NotFound, NotReady
from honmaru.deployments import routers
from honmaru.deployments.catalog import find_artifact
from honmaru.deployments.routers import ROUTER_KIND
from honmaru.ports.models import MODEL_SERVICE, FoundationModels, ModelArtifact
from honmaru.security.calls import Call

_ROUTER = re.compile(r"(arn:[^:]+:bedrock:[^:]*:\d{12}):(?:default-)?prompt-router/(.+)")


async def resolve(
    call: Call, foundation: FoundationModels, operation: str, identifier: str, asked: str = ""
) -> ModelArtifact:
    """The model that a caller names by id, name or ARN. Raises NotFound, AccessDenied.

    `asked` is what the door asked IAM about, where that is not `identifier` itself (a prompt, a router).
    """
    model = await _found(call, foundation, identifier)
    if model is None:
        raise _missing(identifier)
    if (asked or identifier) != model.arn:
        # The door asked about what the caller wrote; policies speak of ARNs.
        call.authorize(f"bedrock:{operation}", model.arn)
    call.resources.append((model.arn, model.arn_type))
    return model


async def routed(
    call: Call,
    foundation: FoundationModels,
    operation: str,
    identifier: str,
    asked: str,
    check: Callable[[ModelArtifact], object],
) -> ModelArtifact | None:
    """The model that a prompt router chooses; None when `identifier` is of no router.

    `check` raises ValidationFault for a model that cannot do what the request asks for. Raises NotFound,
    AccessDenied, ValidationFault.
    """
    router = _ROUTER.fullmatch(identifier)
    if router is None:
        return None
    session = call.session
    own = f"arn:{session.partition}:bedrock:{session.region}:{session.account}"
    records = call.guard.records(session, MODEL_SERVICE)
    record = await asyncio.to_thread(records.get, ROUTER_KIND, router[2]) if router[1] == own else None
    if record is None:
        raise _missing(identifier)
    if asked != identifier:
        call.authorize(f"bedrock:{operation}", identifier)
    call.resources.append((identifier, "AWS::Bedrock::PromptRouter"))
    fallback = await _found(call, foundation, record.body["fallback"])
    if fallback is None:
        raise _missing(record.body["fallback"])
    models = [await _found(call, foundation, one) for one in record.body["models"]]
    seen = [model for model in models if model is not None]
    model = routers.chosen(seen, fallback, float(record.body["difference"]), check)
    call.authorize(f"bedrock:{operation}", model.arn)
    call.resources.append((model.arn, model.arn_type))
    call.details["routedTo"] = model.arn
    return model


async def _found(call: Call, foundation: FoundationModels, identifier: str) -> ModelArtifact | None:
    model = foundation.find(call.session, identifier)
    if model is None:
        model = await asyncio.to_thread(find_artifact, call.guard, call.session, identifier, foundation)
    return model


def _missing(identifier: str) -> NotFound:
    return NotFound(
        f"Could not resolve the model from the model identifier {identifier!r}; "
        "list the models that you can use with ListFoundationModels and ListImportedModels",
        code="ResourceNotFoundException",
    )


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
