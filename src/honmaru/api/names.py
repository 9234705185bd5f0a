"""Operation names as Python method names: ListObjectsV2 → list_objects_v2, GetMFADevice → get_mfa_device."""

from __future__ import annotations

import re
from functools import cache

_WORD = re.compile(r"(.)([A-Z][a-z]+)")
_ONE_WORD = (("OTel", "Otel"),)
"""Words that boto3 spells as one, against their capitals."""
_BOUNDARY = re.compile(r"([a-z0-9])([A-Z])")


@cache
def method_name(operation: str) -> str:
    """The name of the method that carries out an operation, the same as boto3's client method."""
    for word, plain in _ONE_WORD:
        operation = operation.replace(word, plain)
    return _BOUNDARY.sub(r"\1_\2", _WORD.sub(r"\1_\2", operation)).lower()
