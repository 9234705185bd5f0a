"""Page tokens: where a listing goes on."""

from __future__ import annotations

from typing import Any

import orjson

from honmaru.services.cloudwatch.faults import bad_token


def write_token(place: Any) -> str:
    return orjson.dumps(place).decode()


def read_token(token: str) -> Any:
    """What a token holds. Raises ValidationFault (InvalidNextToken)."""
    try:
        return orjson.loads(token)
    except ValueError:
        raise bad_token() from None
