"""Managed prompts as Converse's members: a variant's texts with their variables filled in.

Invariants:
- Every variable of the variant has a value, and every value a variable; a mistake is refused by name.
- A value is text: it becomes part of a text block and never a block, a role or a tool of its own.

Source: Amazon Bedrock user guide, "Construct and store reusable prompts with Prompt management".
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from honmaru.core.errors import ValidationFault

PROMPT_KIND = "prompt"
"""Records of service "bedrock-agent": drafts by id, versions by "id:number". Body: {"id", "name", "variants", ...}."""
SERVICE = "bedrock-agent"
_HOLE = re.compile(r"\{\{\s*([0-9A-Za-z_-]{1,100})\s*\}\}")
_OWN = ("system", "toolConfig", "inferenceConfig", "additionalModelRequestFields")


def variables_of(variant: Mapping[str, Any]) -> set[str]:
    """The names between double braces in a variant's texts."""
    return {name for text in _texts(variant) for name in _HOLE.findall(text)}


def _texts(variant: Mapping[str, Any]) -> list[str]:
    template = variant["templateConfiguration"]
    if template.get("text") is not None:
        return [template["text"]["text"]]
    chat = template.get("chat") or {}
    blocks = [block for message in chat.get("messages", ()) for block in message["content"]]
    return [block["text"] for block in (*blocks, *(chat.get("system") or ())) if block.get("text")]


def chosen(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variant that a prompt is rendered from. Raises ValidationFault."""
    variants: Sequence[Mapping[str, Any]] = body.get("variants") or ()
    wanted = body.get("default_variant")
    found = next((one for one in variants if one["name"] == wanted), variants[0] if variants else None)
    if found is None or not found.get("modelId"):
        raise ValidationFault(f"prompt {body['name']} has no variant with a model: add one with UpdatePrompt")
    return found


def rendered(body: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """A Converse request for the prompt's model. Raises ValidationFault."""
    variant = chosen(body)
    for member in _OWN:
        if request.get(member):
            raise ValidationFault(f"{member} cannot be sent with a prompt: it is the prompt's own")
    given = {name: value.get("text") for name, value in (request.get("promptVariables") or {}).items()}
    holes = variables_of(variant)
    for name in sorted(holes - {name for name, value in given.items() if value is not None}):
        raise ValidationFault(f"promptVariables lacks {name!r}, which the prompt asks for")
    for name in sorted(set(given) - holes):
        raise ValidationFault(f"promptVariables has {name!r}, which the prompt does not ask for")

    def fill(text: str) -> str:
        return _HOLE.sub(lambda match: str(given[match[1]]), text)

    out = {name: value for name, value in request.items() if name != "promptVariables"}
    out["modelId"] = variant["modelId"]
    template = variant["templateConfiguration"]
    if template.get("text") is not None:
        messages = [{"role": "user", "content": [{"text": fill(template["text"]["text"])}]}]
    else:
        chat = copy.deepcopy(dict(template.get("chat") or {}))
        messages = [{**one, "content": [_filled(block, fill) for block in one["content"]]} for one in chat["messages"]]
        if chat.get("system"):
            out["system"] = [_filled(block, fill) for block in chat["system"]]
        if chat.get("toolConfiguration"):
            out["toolConfig"] = chat["toolConfiguration"]
    out["messages"] = [*messages, *(request.get("messages") or ())]
    inference = (variant.get("inferenceConfiguration") or {}).get("text")
    if inference:
        out["inferenceConfig"] = dict(inference)
    if variant.get("additionalModelRequestFields"):
        out["additionalModelRequestFields"] = variant["additionalModelRequestFields"]
    return out


def _filled(block: Mapping[str, Any], fill: Any) -> dict[str, Any]:
    return {**block, "text": fill(block["text"])} if block.get("text") else dict(block)
