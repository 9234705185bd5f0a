"""The tags that a request brings, as condition keys of IAM: `aws:RequestTag/<key>` and `aws:TagKeys`.

Source: IAM user guide, "AWS global condition context keys".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TAGS = ("Tags", "tags", "TagList", "tagList")
_KEYS = ("TagKeys", "tagKeys", "TagKeyList")
_NAMES = (("Key", "Value"), ("key", "value"), ("TagKey", "TagValue"))


def request_tags(members: Mapping[str, Any]) -> dict[str, Any]:
    """Condition keys from the members that hold tags or names of tags; {} when there are none.

    Every key is named once in `aws:TagKeys`, in the case that the caller wrote.
    """
    found: dict[str, Any] = {}
    keys: list[str] = []
    for name in _TAGS:
        given = members.get(name)
        if given:
            for key, value in _pairs(given):
                found[f"aws:RequestTag/{key}"] = value
                keys.append(key)
    for name in _KEYS:
        keys += [key for key in members.get(name) or () if isinstance(key, str)]
    if keys:
        found["aws:TagKeys"] = list(dict.fromkeys(keys))
    return found


def _pairs(given: Any) -> list[tuple[str, str]]:
    if isinstance(given, Mapping):
        return [(str(key), str(value)) for key, value in given.items()]
    pairs = []
    for entry in given if isinstance(given, list) else ():
        for key, value in _NAMES:
            if isinstance(entry, Mapping) and key in entry:
                pairs.append((str(entry[key]), str(entry.get(value) or "")))
                break
    return pairs
