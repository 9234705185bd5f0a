"""Endpoints and errors of OpenAI's dialect. Lists of models show at most the newest thousand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from honmaru.core.errors import HonmaruError, NotFound
from honmaru.gateway.dialects import Asked, Dialect, Endpoint, Translation, get_model, list_models
from honmaru.gateway.openai import chat, embeddings, responses

_ROOT = r"(?:/openai)?/v1"
_ERRORS: Mapping[int, tuple[str, str | None]] = {
    # status: (type, code)
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    408: ("invalid_request_error", "request_timeout"),
    409: ("invalid_request_error", "conflict"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("requests", "rate_limit_exceeded"),
    501: ("server_error", "not_implemented"),
    503: ("server_error", "unavailable"),
}


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    created = int(model["created"].timestamp())
    return {"id": model["id"], "object": "model", "created": created, "owned_by": model["owner"]}


def _models(asked: Asked) -> Translation:
    return list_models(asked, lambda models: {"object": "list", "data": [_model(model) for model in models]})


def _one_model(asked: Asked) -> Translation:
    return get_model(asked, _model)


class OpenAiWire(Dialect):
    """See the module."""

    dialect = "openai"
    request_id_header = b"x-request-id"
    endpoints = (
        Endpoint("POST", re.compile(f"{_ROOT}/chat/completions"), "bedrock-runtime", "Converse", chat.completion),
        Endpoint("POST", re.compile(f"{_ROOT}/responses"), "bedrock-runtime", "Converse", responses.response),
        Endpoint("POST", re.compile(f"{_ROOT}/embeddings"), "bedrock-runtime", "InvokeModel", embeddings.embeddings),
        Endpoint("GET", re.compile(f"{_ROOT}/models"), "bedrock", "ListImportedModels", _models),
        Endpoint("GET", re.compile(f"{_ROOT}/models/(?P<label>.+)"), "bedrock", "GetImportedModel", _one_model),
    )

    def is_path(self, path: str, headers: Iterable[bytes]) -> bool:  # noqa: ARG002
        return path.startswith(("/openai/v1/", "/v1/"))

    def error(self, status: int, message: str, error: BaseException | None, request_id: str) -> Any:  # noqa: ARG002
        kind, code = _ERRORS.get(status, ("server_error", None))
        members = error.members if isinstance(error, HonmaruError) else {}
        if isinstance(error, NotFound) and error.code == "ResourceNotFoundException":
            code = "model_not_found"
        body = {"message": message, "type": kind, "param": members.get("param"), "code": members.get("reason") or code}
        return {"error": body}
