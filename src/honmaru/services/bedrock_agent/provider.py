"""The operations of Bedrock's build time that honmaru carries: managed prompts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from honmaru.core.conversation.prompts import PROMPT_KIND
from honmaru.core.errors import ValidationFault
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call, Provider, Target
from honmaru.services.bedrock_agent import prompt

Request = Mapping[str, Any]
_PAGE = 100


class BedrockAgent(Provider):
    """See the module."""

    service = "bedrock-agent"
    targets = {  # noqa: RUF012 - declared as a ClassVar by Provider
        "CreatePrompt": Target("bedrock:CreatePrompt"),
        "ListPrompts": Target("bedrock:ListPrompts"),
        "GetPrompt": Target("bedrock:GetPrompt", "{promptIdentifier}"),
        "UpdatePrompt": Target("bedrock:UpdatePrompt", "{promptIdentifier}"),
        "DeletePrompt": Target("bedrock:DeletePrompt", "{promptIdentifier}"),
        "CreatePromptVersion": Target("bedrock:CreatePromptVersion", "{promptIdentifier}"),
    }

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    def create_prompt(self, call: Call, request: Request) -> dict[str, Any]:
        return self._told(call, prompt.describe(call, prompt.create(call, request, self._ids)))

    def get_prompt(self, call: Call, request: Request) -> dict[str, Any]:
        record = prompt.find(call, request["promptIdentifier"], request.get("promptVersion"))
        self._ask(call, "GetPrompt", request["promptIdentifier"], record.name)
        return prompt.describe(call, record)

    def update_prompt(self, call: Call, request: Request) -> dict[str, Any]:
        found = prompt.find(call, request["promptIdentifier"])
        self._ask(call, "UpdatePrompt", request["promptIdentifier"], found.name)
        return self._told(call, prompt.describe(call, prompt.update(call, request)))

    def delete_prompt(self, call: Call, request: Request) -> dict[str, Any]:
        found = prompt.find(call, request["promptIdentifier"], request.get("promptVersion"))
        self._ask(call, "DeletePrompt", request["promptIdentifier"], found.name)
        return prompt.delete(call, request)

    def create_prompt_version(self, call: Call, request: Request) -> dict[str, Any]:
        found = prompt.find(call, request["promptIdentifier"])
        self._ask(call, "CreatePromptVersion", request["promptIdentifier"], found.name)
        return self._told(call, prompt.describe(call, prompt.make_version(call, request)))

    def list_prompts(self, call: Call, request: Request) -> dict[str, Any]:
        """Drafts; or, of one prompt, its draft and versions."""
        one = request.get("promptIdentifier")
        after = _position(request["nextToken"]) if request.get("nextToken") else ""
        prefix = prompt.find(call, one).body["id"] if one else ""
        size = int(request.get("maxResults") or _PAGE)
        found = [
            record
            for record in call.records.iterate(PROMPT_KIND, prefix=prefix)
            if record.name > after and (one or record.body["version"] == prompt.DRAFT)
        ]
        shown = found[:size]
        token = base64.urlsafe_b64encode(shown[-1].name.encode()).decode() if len(found) > size else None
        return {"promptSummaries": [prompt.summarise(call, record) for record in shown], "nextToken": token}

    def _told(self, call: Call, described: dict[str, Any]) -> dict[str, Any]:
        call.resources.append((described["arn"], "AWS::Bedrock::Prompt"))
        return described

    def _ask(self, call: Call, operation: str, identifier: str, name: str) -> None:
        # The door asked about what the caller wrote; policies speak of ARNs, so an id is asked about again.
        arn = prompt.arn(call, name)
        if identifier != arn:
            call.authorize(f"bedrock:{operation}", arn)


def _position(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token.encode()).decode()
    except (ValueError, binascii.Error):
        raise ValidationFault("nextToken is not one that this operation returned") from None
