"""Tags named `honmaru:label` on a request state the label that the caller expects its resource to carry.

Invariants:
- A stated label other than the session's is refused before anything is done; so is one that does not parse.
- STS is left out: there the tag asks for the label of a new session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

from honmaru.api.plans import Plan
from honmaru.core.errors import ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session

TAG = "honmaru:label"


def check_stated_labels(plan: Plan, members: Mapping[str, Any], session: Session) -> None:
    """Raises ValidationFault when a tag states another label than the session's."""
    if not plan.tag_members and plan.operation.service.name != "s3":
        return
    for marking in _stated(plan, members):
        if Label.parse(marking) != session.label:
            raise ValidationFault(
                f"The tag {TAG} states '{marking}', and this session is at '{session.label.banner}': "
                "sign in at the label that the resource shall have, or leave the tag out"
            )


def _stated(plan: Plan, members: Mapping[str, Any]) -> Iterator[str]:
    for name in plan.tag_members:
        yield from _of_tags(members.get(name))
    if plan.operation.service.name == "s3":
        tagging = members.get("Tagging")
        if isinstance(tagging, str):
            yield from (value for key, value in parse_qsl(tagging, keep_blank_values=True) if key == TAG)
        elif tagging:
            yield from _of_tags(tagging.get("TagSet"))
        yield from _of_tags((members.get("CreateBucketConfiguration") or {}).get("Tags"))


def _of_tags(tags: Any) -> Iterator[str]:
    if isinstance(tags, Mapping):
        if TAG in tags:
            yield str(tags[TAG])
        return
    for tag in tags or ():
        if tag.get("Key", tag.get("key")) == TAG:
            yield str(tag.get("Value", tag.get("value", "")))
