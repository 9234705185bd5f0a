"""Endpoints and errors of Anthropic's dialect.

/v1/models is also OpenAI's: it is Anthropic's for requests with a header that only Anthropic's clients send.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from honmaru.core.members import refusal
from honmaru.gateway.anthropic import messages
from honmaru.gateway.dialects import Asked, Dialect, Endpoint, Translation, get_model, list_models

_ROOT = "(?:/anthropic)?/v1"
_ERRORS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "model",
        "id": model["id"],
        "display_name": model["name"],
        "created_at": model["created"].isoformat(),
        "lifecycle": "active",
    }


def _models(asked: Asked) -> Translation:
    """A page of the newest thousand models."""
    limit = asked.query.get("limit", ["20"])[0]
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:5]) <= 1000):
        raise refusal("limit", "limit must be a number between 1 and 1000")
    marks = {name: asked.query[name][0] for name in ("after_id", "before_id") if name in asked.query}
    if len(marks) > 1:
        raise refusal("before_id", "after_id and before_id exclude each other: send one")

    def answer(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        found = [_model(model) for model in models]
        position = next((at for at, model in enumerate(found) if model["id"] in marks.values()), None)
        if marks and position is None:
            found = []
        if "before_id" in marks:
            found = found[:position]
            page, more = found[-int(limit) :], len(found) > int(limit)
        else:
            found = found if position is None else found[position + 1 :]
            page, more = found[: int(limit)], len(found) > int(limit)
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return {"data": page, "has_more": more, **ends}

    return list_models(asked, answer)


def _one_model(asked: Asked) -> Translation:
    return get_model(asked, _model)


class AnthropicWire(Dialect):
    """See the module."""

    dialect = "anthropic"
    request_id_header = b"request-id"
    signed_as = "bedrock-mantle"
    endpoints = (
        Endpoint("POST", re.compile(f"{_ROOT}/messages"), "bedrock-runtime", "Converse", messages.message),
        Endpoint(
            "POST", re.compile(f"{_ROOT}/messages/count_tokens"), "bedrock-runtime", "CountTokens", messages.count
        ),
        Endpoint("GET", re.compile(f"{_ROOT}/models"), "bedrock", "ListImportedModels", _models),
        Endpoint("GET", re.compile(f"{_ROOT}/models/(?P<label>.+)"), "bedrock", "GetImportedModel", _one_model),
    )

    def is_path(self, path: str, headers: Iterable[bytes]) -> bool:
        if path == "/v1/messages" or path.startswith(("/v1/messages/", "/anthropic/v1/")):
            return True
        return path.startswith("/v1/") and bool({b"anthropic-version", b"x-api-key"}.intersection(headers))

    def error(self, status: int, message: str, error: BaseException | None, request_id: str) -> Any:  # noqa: ARG002
        kind = _ERRORS.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
