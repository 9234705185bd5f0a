"""Tags of keys.

Source: AWS KMS API reference, TagResource (its TagException); quotas: 50 tags a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from honmaru.core.errors import QuotaExceeded, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.security.calls import Call
from honmaru.services.kms.keys import lists, page, permitted, require_kept, require_own, revise

_LIMIT = 50
_LABEL_TAG = "honmaru:label"
Request = Mapping[str, Any]


def checked(given: Sequence[Mapping[str, str]] | None, session: Session) -> dict[str, str]:
    """Tags by key. Raises TagException for doubled or reserved ones, or a label that is not the session's."""
    tags: dict[str, str] = {}
    for tag in given or ():
        key, value = tag["TagKey"], tag["TagValue"]
        if key in tags:
            raise ValidationFault("Duplicate tag keys", code="TagException")
        if key.lower().startswith("aws:"):
            raise ValidationFault("aws: prefixed tag key names are not allowed", code="TagException")
        tags[key] = value
    stated = tags.get(_LABEL_TAG)
    if stated is not None and Label.parse(stated) != session.label:
        raise ValidationFault(
            f"tag {_LABEL_TAG} states {stated!r}, and this session works at {session.label.banner!r}",
            code="TagException",
        )
    if len(tags) > _LIMIT:
        raise QuotaExceeded("Too many tags", code="LimitExceededException")
    return tags


def tag(call: Call, request: Request) -> None:
    added = checked(request["Tags"], call.session)
    context = {"aws:TagKeys": list(added), **{f"aws:RequestTag/{key}": value for key, value in added.items()}}
    inside, key = permitted(call, request["KeyId"], "TagResource", context)
    require_own(key)
    require_kept(key)

    def change(body: Mapping[str, Any]) -> Mapping[str, Any]:
        tags = {**body["tags"], **added}
        if len(tags) > _LIMIT:
            raise QuotaExceeded("Too many tags", code="LimitExceededException")
        return {**body, "tags": tags}

    revise(inside, key, change)


def untag(call: Call, request: Request) -> None:
    gone = request["TagKeys"]
    inside, key = permitted(call, request["KeyId"], "UntagResource", {"aws:TagKeys": list(gone)})
    require_own(key)
    require_kept(key)

    def change(body: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**body, "tags": {name: value for name, value in body["tags"].items() if name not in gone}}

    revise(inside, key, change)


def list_all(call: Call, request: Request) -> dict[str, Any]:
    _, key = permitted(call, request["KeyId"], "ListResourceTags")
    names = sorted(key.body["tags"])
    start, end, marker = page(request, names, 50, 1000)
    shown = [{"TagKey": name, "TagValue": key.body["tags"][name]} for name in names[start:end]]
    return lists("Tags", shown, marker)
