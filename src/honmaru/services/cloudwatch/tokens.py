"""Page tokens: where a listing goes on."""

from __future__ import annotations

import base64
from typing import Any

import orjson

from honmaru.services.cloudwatch.faults import bad_token


def write_token(place: Any) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode()


def read_token(token: str) -> Any:
    """What a token holds. Raises ValidationFault (InvalidNextToken)."""
    try:
        return orjson.loads(base64.urlsafe_b64decode(token.encode()))
    except ValueError:
        raise bad_token() from None
