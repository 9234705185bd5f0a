"""Tags of Bedrock resources, in Bedrock's spelling: {"key", "value"}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from honmaru.core.errors import RequestFault, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session

LABEL_TAG = "honmaru:label"
MAX_TAGS = 50


class TooManyTags(RequestFault):
    """More than MAX_TAGS tags on one resource."""


def checked(session: Session, tags: Sequence[Mapping[str, str]] | None) -> list[dict[str, str]]:
    """Tags of a create call. Raises ValidationFault for a doubled key or another label than the session's."""
    result = [{"key": tag["key"], "value": tag["value"]} for tag in tags or ()]
    if len({tag["key"] for tag in result}) != len(result):
        raise ValidationFault("a tag key appears twice")
    for tag in result:
        if tag["key"] == LABEL_TAG and Label.parse(tag["value"]) != session.label:
            raise ValidationFault(
                f"tag {LABEL_TAG} expects {tag['value']!r} and this session is at {session.label.banner}: "
                "what a session makes carries the session's label"
            )
    return _within_limit(result)


def merged(session: Session, present: Sequence[Mapping[str, str]], added: Any) -> list[dict[str, str]]:
    """Present tags with the added ones over them."""
    new = checked(session, added)
    keys = {tag["key"] for tag in new}
    return _within_limit([dict(tag) for tag in present if tag["key"] not in keys] + new)


def _within_limit(tags: list[dict[str, str]]) -> list[dict[str, str]]:
    if len(tags) > MAX_TAGS:
        raise TooManyTags(f"{len(tags)} tags; a resource has at most {MAX_TAGS}", code="TooManyTagsException")
    return tags
